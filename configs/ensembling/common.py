"""The published recipe of weight ensembling (Lv et al. 2023, ACL short 24)."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections as mlc

from pemt_jax.errors import one_of
from pemt_jax.stages.config import base_config

# Deltas of equal size: 1,105,920 parameters each on t5-base.
DELTAS = {'adapter': 'houlsby_ensembling', 'lora': 'lora_ensembling', 'prefix': 'prefix'}


def recipe(delta: str, tasks: Sequence[str]) -> mlc.ConfigDict:
  """Adafactor at a constant rate of 5e-4, batch 8, clip 0.1, validation every 100 updates.

  Args:
    delta: 'adapter', 'lora' or 'prefix'.
    tasks: names of the few-shot gym, without their prefix.

  Raises:
    UserError: another delta.
  """
  one_of('the delta', delta, DELTAS)
  config = base_config(DELTAS[delta])
  config.tasks = tuple(f'crossfit/{name}' for name in tasks)
  config.model.name = 't5-base-lm-adapt'
  config.data.max_source_length = 512
  config.data.max_target_length = 64
  config.data.batch_size = 8
  config.data.eval_batch_size = 80
  config.generation.max_length = 64
  config.train.optimizer = 'adafactor'
  config.train.schedule = 'constant'
  config.train.learning_rate = 5e-4
  config.train.clip_norm = 0.1
  config.train.steps = 100_000
  config.train.eval_every = 100
  config.train.log_every = 100
  config.train.patience = 10
  config.train.ties_improve = True
  config.train.vanishing_loss = 1e-7
  config.train.evaluate_last = False
  return config


def few_shot(config: mlc.ConfigDict) -> mlc.ConfigDict:
  """64 rows of a text task, 16 for each label otherwise, to train on and as many to select on."""
  config.data.few_shot = 64
  config.data.few_shot_per_class = 16
  return config
