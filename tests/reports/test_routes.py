"""Routes: files, order of tasks, pictures, animation, correlation with features."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from pemt_jax.errors import UserError
from pemt_jax.reports import files, pictures, route_features, routes
from pemt_jax.reports.route_files import Routes, read_routes

TASKS = ('gym/b1', 'gym/a1', 'gym/b2', 'gym/a2')
LAYERS = ('encoder/0', 'decoder/0', 'decoder/1')


def routes_of(temperature=1.0, seed=0):
  """Tasks a1, a2 and b1, b2 have routes close to each other."""
  rng = np.random.default_rng(seed)
  groups = {'a': 3 * rng.normal(size=(3, 2)), 'b': 3 * rng.normal(size=(3, 2))}
  logits = np.stack([groups[name[4]] for name in TASKS]) + 0.1 * rng.normal(size=(4, 3, 2))
  soft = lambda z: np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
  return Routes(TASKS, tuple(f'kind {name[4]}' for name in TASKS), tuple('one two one two'.split()),
                LAYERS, soft(logits / temperature), soft(logits), temperature)


def write(path, replicas, routed=(True, True, True)):
  """A file of routes of several replicas."""
  path.parent.mkdir(parents=True, exist_ok=True)
  each = list(replicas.values())
  join = lambda name: np.concatenate([getattr(own, name) for own in each])
  np.savez(path, replicas=np.repeat(list(replicas), len(TASKS)), tasks=join('tasks'),
           categories=join('categories'), groups=join('groups'), layers=LAYERS, routed=routed,
           routes=join('now'), routes_t1=join('at_one'),
           temperatures=np.repeat([own.temperature for own in each], len(TASKS)))


def test_a_run_has_the_routes_of_its_replicas_at_every_step(workdir):
  first, second = routes_of(), routes_of(5.0, 1)
  write(workdir / 'routes.npz', {'r0': first, 'r1': second}, (True, False, True))
  for step in (10, 9):
    write(workdir / 'routes' / f'{step}.npz', {'r0': routes_of(step)})
  write(workdir / 'replicas' / 'r2' / 'routes' / '9.npz', {'r2': first})
  (workdir / 'replicas' / 'r2' / 'metrics.jsonl').write_text('{"step": 1}\n')
  for name in ('result.json', 'config.json'):
    (workdir / name).write_text('{}')
  stage, = files.read_workdir(workdir)
  assert list(stage.routes) == ['r0', 'r1']
  found = stage.routes['r1']
  assert found.layers == ('encoder/0', 'decoder/1') and found.tasks == TASKS
  np.testing.assert_array_equal(found.now, second.now[:, [0, 2]])
  np.testing.assert_array_equal(found.at_one, second.at_one[:, [0, 2]])
  assert {name: list(own) for name, own in stage.route_steps.items()} == {'r0': [9, 10], 'r2': [9]}
  assert stage.route_steps['r0'][10].temperature == 10.0


def test_a_misshaped_file_is_told(workdir):
  own = routes_of()
  write(workdir / 'routes.npz', {'r': dataclasses.replace(own, now=own.now[:, :2])})
  with pytest.raises(UserError, match=r"Array 'routes' of .* it must have \[4, 3, any\]"):
    read_routes(workdir / 'routes.npz')


def test_tasks_stand_by_their_ontology_or_beside_tasks_with_close_routes():
  own = routes_of()
  assert [TASKS[i] for i in routes.ontology_order(own)] == ['gym/a1', 'gym/a2', 'gym/b1', 'gym/b2']
  with pictures.settings():
    picture = routes.Picture(own)
  labels = [text.get_text() for text in picture.figure.axes[-1].get_xticklabels()]
  assert {frozenset(labels[:2]), frozenset(labels[2:])} == {
      frozenset({'a1', 'a2'}), frozenset({'b1', 'b2'})}
  drawn = np.asarray(picture.figure.axes[-1].collections[0].get_array()).reshape(6, 4)
  place = TASKS.index('gym/' + labels[0])
  np.testing.assert_allclose(drawn[:, 0], own.now[place].ravel())
  with pytest.raises(UserError, match="order of tasks.*'random'"):
    routes.Picture(own, 'random')


def test_a_report_shows_clusters_and_the_way_through_training():
  steps = {step: routes_of(300.0 / step) for step in (1, 50, 300)}
  shown = routes.blocks({'r': routes_of()}, {'r': steps})
  assert [(block.title, block.kind) for block in shown] == [
      ('Routes of tasks', 'svg'), ('Routes over training', 'gif')]
  assert 'decoder/1/1' in shown[0].content and 'kind a' in shown[0].content
  assert routes.blocks(None, {}) == []
  moving = Image.open(io.BytesIO(routes.routes_gif(steps, 'ontology', seconds=0.1)))
  assert (moving.n_frames, moving.info['duration'], moving.info['loop']) == (3, 100, 0)
  assert Image.open(io.BytesIO(routes.routes_png(routes_of(), which='at_one'))).format == 'PNG'


def test_routes_are_correlated_with_features():
  rng = np.random.default_rng(0)
  features = rng.random((12, 2)) < 0.5
  weights = rng.random((12, 3, 2))
  weights[:, 1, 0] = features[:, 1] * 0.5 + 0.01 * rng.random(12)
  weights[:, 2] = 0.5  # the same for all tasks
  found = route_features.correlations(weights, LAYERS, features, ('x', 'y'))
  assert list(found.columns) == ['layer', 'expert', 'feature', 'tasks', 'r', 'p', 'q']
  best = found.iloc[0]
  assert tuple(best[['layer', 'expert', 'feature']]) == ('decoder/0', 0, 'y') and best['r'] > 0.99
  assert best['p'] < best['q'] < 1e-3 and best['tasks'] == features[:, 1].sum()
  for row in found[found['layer'] != 'decoder/1'].itertuples():
    weight = weights[:, LAYERS.index(row.layer), row.expert]
    expected = np.corrcoef(weight, features[:, 'xy'.index(row.feature)])[0, 1]
    assert row.r == pytest.approx(expected)
  assert found[found['layer'] == 'decoder/1'][['r', 'p', 'q']].isna().all(axis=None)
  assert len(found) == 12
