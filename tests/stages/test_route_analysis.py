"""Routes of a run over its evaluations, of its expert, with features of tasks, without experts."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.reports import html, route_features
from pemt_jax.reports.route_files import read_routes
from pemt_jax.stages import route_analysis
from pemt_jax.stages.route_analysis import RouteOptions
from pemt_jax.stages.run import run_stage
from pemt_jax.trees import flatten, unflatten
from tests.stages import small

TASKS = (*small.SOURCES, small.TARGET)
SHAPE = dict(small.SHAPE, encoder_layers=2, decoder_layers=2)
LAYERS = ('encoder/1', 'decoder/0', 'decoder/1')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Three tasks, a plain layer, experts that differ; two evaluations."""
  base = tmp_path_factory.mktemp('routes')
  config = small.config_of(
      'task_moe', small.write_backbone(base / 'backbone', **SHAPE), TASKS,
      mixture__sampling='proportional', method__experts=2, method__hidden=4, method__noise=0.5,
      method__router='linear', method__mode='softmax', method__vector_size=6,
      method__plain_encoder_layers=(0,), method__anneal_rate=0.5, train__eval_every=1)
  return run_stage(config, base / 'run')


@pytest.fixture
def run(trained):
  """Folder of the run."""
  return trained.trained.workdir


@pytest.fixture(scope='module')
def routed(trained):
  """The expert, opened, with routes that are nearly one-hot."""
  expert, rule = route_analysis.open_routed(trained.trained.workdir, RouteOptions())
  flat = dict(flatten(expert.constants))
  flat['deltas/task_moe/temperature'] = np.full(1, 1e-4, np.float32)
  return dataclasses.replace(expert, constants=unflatten(flat)), rule


def test_a_run_keeps_the_routes_of_every_evaluation(trained, run):
  steps = {step: read_routes(run / 'routes' / f'{step}.npz')['mixture'] for step in (1, 2)}
  for step, own in steps.items():
    assert (own.tasks, own.layers) == (TASKS, LAYERS)
    assert own.now.shape == (3, 3, 2) and own.temperature == pytest.approx(2 * np.exp(-0.5 * step))
    np.testing.assert_allclose(own.now.sum(axis=-1), 1.0, rtol=1e-5)
    ratio = lambda weights: np.log(weights[..., 0] / weights[..., 1])
    np.testing.assert_allclose(ratio(own.now) * own.temperature, ratio(own.at_one), atol=1e-5)
  assert np.abs(steps[1].at_one - steps[2].at_one).max() > 1e-6
  best = read_routes(run / 'routes.npz')['mixture']
  np.testing.assert_allclose(
      best.now, steps[trained.trained.results['mixture']['best_step']].now, rtol=1e-6)


def test_an_expert_alone_gives_the_routes_of_its_run(trained, run, workdir):
  route_analysis.write_routes(trained.experts['mixture'], workdir, RouteOptions())
  own, best = (read_routes(place / 'routes.npz')['mixture'] for place in (workdir, run))
  np.testing.assert_allclose(own.now, best.now, rtol=1e-6)
  names = tree_files.read_json(workdir / 'tasks.json')
  everything = np.load(workdir / 'route_t1.npy')
  assert everything.shape == (3, 4, 2)
  for name, routes in zip(names, everything, strict=True):
    np.testing.assert_allclose(routes[1:], best.at_one[TASKS.index(name)], rtol=1e-6)
  table = pd.read_csv(workdir / 'routes.csv').set_index(['task', 'layer', 'expert'])
  assert table.loc[(TASKS[2], 'decoder/0', 1), 'route'] == pytest.approx(best.now[2, 1, 1])


def test_a_report_and_a_command_draw_them(run, workdir):
  text = html.write_report(run).read_text()
  assert 'Routes of tasks' in text and 'src="data:image/gif;base64,' in text
  route_analysis.write_heat_map(run, workdir, RouteOptions(order='ontology', which='at_one'))
  assert (workdir / 'routes.png').read_bytes().startswith(b'\x89PNG')
  assert 'decoder/1/1' in (workdir / 'routes.svg').read_text()
  assert route_analysis.write_animation(run, workdir, RouteOptions()) == [
      f"2 steps: {workdir / 'routes.gif'}"]
  with pytest.raises(UserError, match='no folder routes'):
    route_analysis.write_animation(workdir, workdir, RouteOptions())
  with pytest.raises(UserError, match="no routes of replica 'other', only of mixture"):
    route_analysis.write_heat_map(run, workdir, RouteOptions(replica='other'))


def test_routes_are_compared_with_features_of_tasks_and_of_rows(run, workdir):
  text, = route_analysis.write_correlations(run, workdir, RouteOptions())
  table = pd.read_csv(workdir / 'correlation.csv')
  assert 'long input' in set(table['feature']) and 'Pearson' in text
  found = json.loads((workdir / 'correlation.json').read_text())
  weights = read_routes(run / 'routes.npz')['mixture'].now
  for row in table.dropna().itertuples():
    has = [task in found['features'][row.feature] for task in TASKS]
    own = weights[:, LAYERS.index(row.layer), row.expert]
    assert row.r == pytest.approx(np.corrcoef(own, has)[0, 1], abs=1e-4)
  assert 'Routes and features of tasks' in html.write_report(workdir).read_text()


def losses(routed, pairs):
  """Loss of every task with some experts disabled."""
  expert, rule = routed
  found = route_analysis.scores_without(expert, rule, pairs, RouteOptions(metric='loss'))
  _, statistics = expert.stage.evaluator.latest[expert.name, 'validation']
  assert list(found) == list(TASKS)
  np.testing.assert_allclose(
      list(found.values()), [stats['total'] / stats['weight'] for stats in statistics], rtol=1e-6)
  return np.array(list(found.values()))


def test_only_what_a_task_uses_is_missed(routed):
  expert, rule = routed
  arrays = route_analysis._arrays(expert, rule)
  used = arrays['routes'][:, 2].argmax(axis=-1)  # first layer of the decoder
  full = losses(routed, ())
  without = np.stack([losses(routed, ((2, number),)) for number in range(2)])
  for task, number in enumerate(used):
    assert without[1 - number, task] == pytest.approx(full[task], rel=1e-4)
    assert abs(without[number, task] - full[task]) > 1e-4
  assert losses(routed, ((0, 0),)) == pytest.approx(full, rel=1e-6)  # a plain layer
  assert expert.stage.evaluator.predict_of(TASKS[0])._cache_size() == 1


def test_what_is_disabled_has_a_name(routed):
  _, rule = routed
  found = route_analysis.settings_of(('encoder/*', 'decoder/0/1+decoder/1/0'), rule)
  assert found == {'encoder/1/0': ((1, 0),), 'encoder/1/1': ((1, 1),),
                   'decoder/0/1+decoder/1/0': ((2, 1), (3, 0))}
  for pattern, words in (('encoder/0/*', "'encoder/0/\\*', which is none of encoder/1/0"),
                         ('decoder/1/*+encoder/1/0', 'all experts of layer decoder/1; leave one')):
    with pytest.raises(UserError, match=words):
      route_analysis.settings_of((pattern,), rule)


def test_drops_are_tables_that_a_second_call_completes(routed, workdir, monkeypatch):
  calls, scores = [], {(): 50.0, ((1, 0),): 20.0, ((1, 1),): 60.0}

  def score(expert, rule, pairs, options):
    calls.append(pairs)
    return {task: scores[pairs] + i if i else float('nan') for i, task in enumerate(TASKS)}

  monkeypatch.setattr(route_analysis, 'open_routed', lambda *_: routed)
  monkeypatch.setattr(route_analysis, 'scores_without', score)
  place = workdir / 'experts' / 'mixture'
  output = workdir / 'out'
  for patterns in (('encoder/1/0',), ('encoder/1/*',)):
    options = RouteOptions(experts=patterns)
    text, = route_analysis.write_drops(place, output, options)
  assert calls == [(), ((1, 0),), ((1, 1),)]
  table = pd.read_csv(output / 'drop.csv', index_col='without')
  assert table['all'].to_dict() == {'encoder/1/0': 30.0, 'encoder/1/1': -10.0}
  assert table[TASKS[0]].isna().all() and (table[TASKS[1]] == table['all']).all()
  assert '+30.00' in text
  assert 'What is lost without experts' in html.write_report(output).read_text()
  scores = {'full': {'t': 1.0}, 'without': {'t': 3.0}}
  rises = route_features.drops(scores, 'full', {'t': 'c'}, True)
  assert rises.loc['without'].tolist() == [2.0] * 3
  with pytest.raises(UserError, match='choose another --output'):
    route_analysis.write_drops(place, output, dataclasses.replace(options, split='test'))
