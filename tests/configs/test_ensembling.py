"""The recipes of weight ensembling hold the published numbers; every step has its config."""

from __future__ import annotations

import importlib

import jax
import numpy as np
import pytest

from pemt_jax.data.tasks_gym import QA_TASKS, QUAN_TASKS
from pemt_jax.errors import UserError
from pemt_jax.methods import zoo
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import PUBLISHED
from pemt_jax.stages.config import options_of
from pemt_jax.training.rules import split_params

PARAMETERS = 1_105_920  # of each delta on t5-base: they are matched in size


def load(name, argument=None):
  return importlib.import_module(f'configs.ensembling.{name}').get_config(argument)


@pytest.mark.parametrize('name', ['source', 'few_shot', 'full_data', 'intermediate'])
def test_a_recipe_holds_the_published_numbers(name):
  config = load(name)
  train = config.train
  assert (train.optimizer, train.schedule, train.learning_rate) == ('adafactor', 'constant', 5e-4)
  assert (train.clip_norm, train.patience, train.ties_improve) == (0.1, 10, True)
  assert (train.vanishing_loss, train.evaluate_last) == (1e-7, False)
  steps, every = (200, 50) if name == 'intermediate' else (100_000, 100)
  assert (train.steps, train.eval_every, train.log_every) == (steps, every, every)
  assert config.data.batch_size == (16 if name == 'source' else 8)
  assert (config.data.max_source_length, config.data.max_target_length) == (512, 64)
  few = name in ('few_shot', 'intermediate')
  shots = (config.data.few_shot, config.data.few_shot_per_class)
  assert shots == ((64, 16) if few else (None, None))


@pytest.mark.parametrize('delta', ['adapter', 'lora', 'prefix'])
def test_deltas_have_the_published_size(delta):
  config = load('source', f'delta={delta}')
  shape = PUBLISHED['t5-base-lm-adapt']
  method = zoo.make(config.stage, options_of(config), shape, 0)
  shapes = jax.tree.map(lambda leaf: getattr(leaf, 'value', leaf),
                        boxed_shapes(T5(shape, method.plan))['params'],
                        is_leaf=lambda leaf: hasattr(leaf, 'names'))
  _, tuned = split_params(shapes, method.tuned)
  assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tuned)) == PARAMETERS


def test_targets_and_grids():
  assert load('few_shot').tasks == QA_TASKS and len(QA_TASKS) == 32
  assert load('few_shot', 'targets=51').tasks == QUAN_TASKS and len(QUAN_TASKS) == 51
  assert load('few_shot', 'grid=1').learning_rates == (1e-4, 5e-4, 1e-3)
  assert load('full_data', 'task=swag').tasks == ('crossfit/swag',)
  with pytest.raises(UserError, match="'bias'"):
    load('source', 'delta=bias')
