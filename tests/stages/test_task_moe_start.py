"""Starts from routed layers on a new task: routes that stay, that are trained, a plain backbone."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from pemt_jax.data import gym_files
from pemt_jax.data.gym import SPACED
from pemt_jax.errors import UserError
from pemt_jax.experts.library import load_expert
from pemt_jax.experts.task_vectors import random_vectors
from pemt_jax.interop import backbones, task_vector_files
from pemt_jax.methods.task_moe import PLACE
from pemt_jax.stages import few_shot
from pemt_jax.stages.few_shot_config import few_shot_config
from pemt_jax.stages.predict import evaluate_experts
from pemt_jax.stages.run import run_stage
from pemt_jax.stages.task_moe_start import StartOptions, adapt, save_squeezed, write_start
from pemt_jax.trees import flatten
from tests.stages import small

TITLES = ('mc_taco', 'boolq')
NEW = 'crossfit/boolq'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Two gym tasks, their vectors, a backbone, and an expert of routed layers on the first."""
  root = tmp_path_factory.mktemp('routed')
  for title in TITLES:
    (root / title).mkdir()
    for part in ('train', 'dev', 'test'):
      gym_files.write_lines(root / title / f'{title}_16_13_{part}.tsv', [
          (f'word {part} {i}', [('yes', 'no')[i % 2]]) for i in range(4)])
  task_vector_files.write_task_vectors(root / 'vectors', random_vectors(TITLES, 6, 1.0, 0))
  small.write_backbone(root / 'backbone', ['[mc_taco] [boolq] word train dev test yes no 0 1 2 3'])
  return root


def config_of(stage, root, **changes):
  return small.config_of(stage, str(root / 'backbone'), (f'crossfit/{TITLES[0]}',), **{
      'data__source': 'crossfit', 'data__root': str(root), 'data__template': SPACED,
      'train__eval_every': 'never', 'train__metric': '', 'train__final_split': '', **changes})


@pytest.fixture(scope='module')
def expert(root):
  """One task, vectors from the folder, hard decoding."""
  config = config_of('task_moe', root, method__experts=2, method__router='linear',
                     method__mode='softmax', method__vectors=str(root / 'vectors'),
                     method__noise=0.3, method__hard_prediction=True, method__hidden=4)
  result = run_stage(config, root / 'run')
  return next(iter(result.experts.values())), result.stage.backbone


def options_of(root, expert, **changes):
  return StartOptions(str(expert[0]), str(root / 'vectors'), **changes)


def test_a_squeezed_start_is_a_plain_backbone(root, expert):
  options = options_of(root, expert, squeeze=True)
  found = adapt(options, NEW, expert[1])
  assert flatten(found.tuned).keys() == flatten(expert[1].params).keys()
  written = save_squeezed(options, NEW, root / 'plain')
  config, params = backbones.load(root / 'plain')
  assert config == expert[1].config
  for path, leaf in flatten(written.tuned).items():
    np.testing.assert_array_equal(flatten(params)[path], leaf, err_msg=path)


def test_routes_stay_or_are_trained_and_come_from_the_router_or_not(root, expert):
  routed = adapt(options_of(root, expert), NEW, expert[1])
  assert routed.options.routes == 'fixed' and not routed.options.fixed
  np.testing.assert_allclose(routed.routes.sum(-1), 1.0, rtol=1e-6)
  other = adapt(options_of(root, expert), f'crossfit/{TITLES[0]}', expert[1])
  assert np.abs(routed.routes - other.routes).max() > 1e-5
  trained = adapt(options_of(root, expert, train_routes=True), NEW, expert[1])
  logits = flatten(trained.tuned)[f'{PLACE}/logits']
  np.testing.assert_allclose(jax.nn.softmax(logits)[0], routed.routes, rtol=1e-5)
  even = adapt(StartOptions(str(expert[0]), routes='average'), NEW, expert[1])
  np.testing.assert_array_equal(even.routes, np.full((2, 2), 0.5))
  drawn = adapt(StartOptions(str(expert[0]), routes='random'), NEW, expert[1])
  assert drawn.options.fixed and (drawn.routes.max(-1) == 1).all()
  with pytest.raises(UserError, match='no vector or routes of'):
    adapt(StartOptions(str(expert[0])), NEW, expert[1])
  with pytest.raises(UserError, match='config.routed.squeeze is True'):
    StartOptions(squeeze=True, train_routes=True)


@pytest.mark.slow
def test_a_squeezed_start_on_an_unseen_task_is_what_hard_decoding_runs(root, expert):
  overrides = {'tasks': (NEW,), 'method.vectors': str(root / 'vectors')}
  hard, = evaluate_experts(expert[0], 'test', overrides).values()
  found = adapt(options_of(root, expert, squeeze=True), NEW, expert[1])
  write_start(found, NEW, expert[1], root / 'squeezed')
  plain = evaluate_experts(root / 'squeezed', 'test', {})['squeezed']
  assert np.isfinite(plain['loss']) and plain['loss'] == pytest.approx(hard['loss'], rel=1e-5)
  with pytest.raises(UserError, match=f"belongs to the task '{NEW}' alone"):
    evaluate_experts(root / 'squeezed', 'test', {'tasks': ('crossfit/mc_taco',)})


@pytest.mark.slow
@pytest.mark.parametrize('form', [{}, {'train_routes': True}, {'routes': 'random'},
                                  {'squeeze': True}], ids=str)
def test_a_grid_starts_from_the_route_of_the_new_task(root, expert, tmp_path, form):
  config = few_shot_config(config_of(
      'full', root, train__eval_every=1, train__metric='average_metrics',
      train__final_split='test', train__best_trees='memory'))
  config.tasks, config.samples, config.keep = TITLES[1:], (13,), 'experts'
  config.learning_rates, config.batch_sizes = (0.0,), (2,)
  config.routed.update(expert=str(expert[0]), vectors=str(root / 'vectors'), **form)
  few_shot.run_few_shot(config, tmp_path / 'few')
  start, = (tmp_path / 'few').glob('*/start')
  tuned, = [path.parent for path in (tmp_path / 'few').rglob('card.json')
            if path.parent.name != 'start']
  small.assert_same_leaves(small.leaves_of(tuned), small.leaves_of(start), 0, 0)
  own, given = (flatten(load_expert(place)[1]) for place in (tuned, start))
  for path, leaf in given.items():
    np.testing.assert_array_equal(own[path], leaf, err_msg=path)
