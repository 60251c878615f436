"""Routed layers as a stage: trained, opened, scored, on unseen tasks, in two stages."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts.library import load_expert
from pemt_jax.experts.task_vectors import random_vectors
from pemt_jax.interop import task_vector_files
from pemt_jax.methods.task_moe import PLACE
from pemt_jax.stages.artefacts import open_expert
from pemt_jax.stages.build import build
from pemt_jax.stages.predict import evaluate_experts, predict_file
from pemt_jax.stages.run import run_stage
from pemt_jax.trees import flatten
from tests.stages import small

VECTORS, ROUTER = f'{PLACE}/vectors', f'{PLACE}/router_hidden/kernel'
TASKS = (*small.SOURCES, small.TARGET)


@pytest.fixture(scope='module')
def vectors(base):
  """A folder with vectors of three tasks, of which two are trained on."""
  folder = base / 'vectors'
  task_vector_files.write_task_vectors(folder, random_vectors(TASKS, 6, 1.0, 0))
  return folder


def config_of(backbone, vectors='', **changes):
  return small.config_of('task_moe', backbone, **{
      'mixture__sampling': 'proportional', 'method__vectors': str(vectors), 'method__experts': 2,
      'method__hidden': 4, 'method__router': 'linear', 'method__mode': 'softmax',
      'train__eval_every': 1, **changes})


@pytest.fixture(scope='module')
def first(base, backbone, vectors):
  """A first stage with frozen vectors; it predicts with one expert of each layer."""
  config = config_of(backbone, vectors, method__tune_vectors=False, method__hard_prediction=True,
                     method__noise=0.1)
  return run_stage(config, base / 'routed')


def test_a_run_trains_keeps_frozen_vectors_and_its_expert_scores_as_it_did(first, vectors):
  expert = first.experts['mixture']
  tuned, constants, card = load_expert(expert)
  flat, state = flatten(tuned), flatten(constants)
  given = np.load(vectors / 'task_vecs.npy')
  names = list(json.loads((vectors / 'id2task.json').read_text()).values())
  np.testing.assert_array_equal(state[VECTORS], given[[names.index(t) for t in small.SOURCES]])
  assert VECTORS not in flat
  assert flat['encoder/layers/experts/mlp/wi/kernel'].shape == (1, 2, 16, 24)
  step = first.trained.results['mixture']['best_step']
  assert float(state[f'{PLACE}/temperature']) == pytest.approx(2.0 * np.exp(-3e-4 * step))
  moved = [path for path, leaf in flat.items() if path.startswith(PLACE) and np.abs(leaf).max() > 0]
  assert moved and card.method == 'task_moe'
  found = evaluate_experts(expert, 'test', {})
  final = first.trained.results['mixture']['final_metrics']
  for task in small.SOURCES:
    assert found['mixture'][f'{task}/average_metrics'] == final[f'{task}/average_metrics']
    assert found['mixture'][f'{task}/loss'] == pytest.approx(final[f'{task}/loss'], rel=1e-5)


def test_an_expert_is_scored_on_a_task_that_it_was_not_trained_on_by_the_tasks_vector(
    first, vectors, workdir):
  expert, target = first.experts['mixture'], small.TARGET
  overrides = {'tasks': (target,), 'method.vectors': str(vectors)}
  found = evaluate_experts(expert, 'test', overrides)['mixture']
  assert np.isfinite(found[f'{target}/loss']) and np.isfinite(found['average_metrics'])
  loaded = open_expert(expert, first.stage.backbone, overrides)
  given = task_vector_files.read_task_vectors(vectors).chosen([target]).vectors
  np.testing.assert_array_equal(flatten(loaded.constants)[VECTORS][0], given)
  one = {'tasks': small.SOURCES[1:]}
  own = open_expert(expert, first.stage.backbone, one)
  np.testing.assert_array_equal(flatten(own.constants)[VECTORS][0],
                                flatten(load_expert(expert)[1])[VECTORS][1:])
  with pytest.raises(UserError, match=f"no vector or routes of '{target}'"):
    open_expert(expert, first.stage.backbone, {'tasks': (target,)})
  rows, out = workdir / 'rows.jsonl', workdir / 'out.jsonl'
  rows.write_text(json.dumps({'source': 'is it lucky today ?'}) + '\n')
  assert predict_file(expert, rows, out, {}, small.SOURCES[1]) == 1
  assert np.isfinite(list(json.loads(out.read_text())['label_scores'].values())).all()


def test_a_second_stage_takes_the_router_and_starts_its_layers_anew(first, base, backbone):
  expert = first.experts['mixture']
  config = config_of(backbone, method__tune_vectors=False, method__initial_temperature=300.0,
                     starts=(str(expert),), start_only=(f'{PLACE}/router_.*',),
                     train__group_multipliers={'router': 0.0}, train__steps=0, method__noise=0.0)
  stage = build(config, base / 'second', first.stage.backbone)
  spec, = stage.specs.values()
  tuned, constants = stage.start(first.trained.replicas[0])
  flat, state, learned = flatten(tuned), flatten(constants), small.leaves_of(expert)
  for path in (path for path in learned if path.startswith(PLACE)):
    np.testing.assert_array_equal(flat[path], learned[path], err_msg=path)
  np.testing.assert_array_equal(state[VECTORS], flatten(load_expert(expert)[1])[VECTORS])
  assert float(state[f'{PLACE}/temperature']) == pytest.approx(300.0)
  plain = flatten(first.stage.backbone.params)['encoder/layers/mlp/wi/kernel']
  leaf = flat['encoder/layers/experts/mlp/wi/kernel']
  np.testing.assert_array_equal(leaf, np.stack([plain] * 2, axis=1))
  other = base / 'other_vectors'
  task_vector_files.write_task_vectors(other, random_vectors(TASKS, 6, 1.0, 1))
  with pytest.raises(UserError, match='has another vector of .* leave method.vectors empty'):
    build(config_of(backbone, other, starts=(str(expert),), method__tune_vectors=False),
          base / 'third', first.stage.backbone)
  with config.unlocked():
    config.start_only = ('router',)
  with pytest.raises(UserError, match="config.start_only has 'router', which no leaf"):
    build(config, base / 'second', first.stage.backbone).start(first.trained.replicas[0])


@pytest.mark.parametrize('changes, message', [
    ({'mixture__sampling': ''}, 'config.tasks names 2 tasks, which task_moe trains together'),
    ({'method__plain_encoder_layers': (3,)}, 'names layer 3, but the encoder has 1 layers'),
    ({'method__plain_encoder_layers': (0,), 'method__plain_decoder_layers': (0,)},
     'no layer has experts'),
    ({'tasks': ('playground/omen', 'playground/oath')}, "there is no task vector for 'playgr"),
])
def test_mistakes_are_told(first, vectors, workdir, changes, message):
  config = config_of('unused', vectors, **changes)
  with pytest.raises(UserError, match=message):
    build(config, workdir, first.stage.backbone)


@pytest.mark.slow
def test_a_bart_trains_evaluates_and_predicts_with_one_expert_as_with_all(workdir):
  """Straight-through routes with exploration, the regulariser and turns of router and layers."""
  backbone = small.write_bart(workdir / 'backbone')
  config = config_of(backbone, method__mode='gumbel_softmax_st', method__vector_size=5,
                     method__exploration=0.3, method__regularization=1e-3, method__noise=0.3,
                     method__alternate_every=1, method__prediction_temperature=0.1,
                     train__group_multipliers={'router': 10.0, 'task_vectors': 10.0})
  result = run_stage(config, workdir / 'run')
  expert = result.experts['mixture']
  assert flatten(load_expert(expert)[0])[VECTORS].shape == (2, 5)
  found = [evaluate_experts(expert, 'test', {'method.hard_prediction': hard})['mixture']
           for hard in (False, True)]
  final = result.trained.results['mixture']['final_metrics']
  for name, value in found[0].items():
    if not name.endswith(('expert_distance', 'loss')):  # One expert alone has no distance.
      assert found[1][name] == pytest.approx(value, rel=1e-4, nan_ok=True), name
  assert 'cross_entropy_nats' in found[0]
  assert found[0]['average_metrics'] == final['average_metrics']
  rows, outs = workdir / 'rows.jsonl', []
  rows.write_text(json.dumps({'source': 'is it lucky today ?'}) + '\n')
  for hard in (False, True):
    out = workdir / f'{hard}.jsonl'
    predict_file(expert, rows, out, {'method.hard_prediction': hard}, small.SOURCES[0])
    outs.append(json.loads(out.read_text())['prediction'])
  assert outs[0] == outs[1]
