"""Training on rows that hold several examples: which stages may, and that they do."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.methods import zoo
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.stages.build import build
from pemt_jax.stages.config import base_config
from pemt_jax.stages.packing import front_positions
from pemt_jax.stages.rows import ReplicaSpec, replica_specs
from pemt_jax.stages.run import run_stage
from tests import tiny
from tests.stages import small


def spec_of(packing=True, parts=()):
  config = base_config('lora')
  config.data.packing = packing
  return ReplicaSpec('a', 'rte', 0, None, None, config, tuple(parts))


def positions(stage, *specs, config=tiny.CONFIG):
  """Positions that rows of a stage keep free."""
  options = zoo.default_options(stage)
  method = zoo.make(stage, options if len(options) > 1 else options[stage], config, tiny.PROMPT)
  return front_positions(method, types.SimpleNamespace(config=config, name='b'), specs)


def test_rows_keep_places_for_a_prompt():
  assert positions('lora', spec_of()) == 0
  assert positions('adapter+prompt', spec_of()) == tiny.PROMPT
  assert positions('adapter+prompt', spec_of(False)) == 0


@pytest.mark.parametrize('stage, match', [
    ('attempt', "Attempt at 'encoder/embed' of method 'attempt'"), ('switch', "Switch at"),
    ('maml', "'maml' cuts batches")])
def test_methods_that_read_rows_are_refused(stage, match):
  with pytest.raises(UserError, match=match):
    positions(stage, spec_of())
  assert positions(stage, spec_of(False)) == 0


def test_backbones_and_mixtures_that_cannot_be_packed_are_refused():
  gpt2 = GPT2Config(32, 8, 2, 16, 1)
  with pytest.raises(UserError, match='needs an encoder and a decoder'):
    positions('lora', spec_of(), config=gpt2)
  with pytest.raises(UserError, match='differs between the tasks'):
    positions('lora', spec_of(parts=[spec_of(), spec_of(False)]))


@pytest.mark.parametrize('field', ['packed_length', 'packed_target_length'])
def test_negative_lengths_are_refused(field):
  config = small.config_of('lora', 'b', **{f'data__{field}': -1})
  with pytest.raises(UserError, match=f'config.data.{field}'):
    replica_specs(config)


@pytest.mark.slow
def test_packed_replicas_train_on_all_examples(backbone, workdir):
  config = small.stage1_config(backbone, data__packing=True, data__packed_length=64)
  config.train.epochs, config.train.steps = 1, 0
  stage = build(config, workdir / 'built')
  experiment = stage.experiment()
  for replica in experiment.replicas:
    stream = experiment.stream(replica)
    batches = [next(stream) for _ in range(replica.total_steps)]
    ids = np.concatenate([batch['example_ids'].reshape(-1) for batch in batches])
    examples = stage.store.examples(stage.specs[replica.name], 'train').examples
    assert sorted(ids[ids >= 0].tolist()) == list(range(len(examples)))
    assert batches[0]['example_ids'].shape[1] > 1
  result = run_stage(config, workdir / 'run')
  for values in result.trained.results.values():
    assert np.isfinite(values['final_metrics']['loss'])
