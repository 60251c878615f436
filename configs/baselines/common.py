"""What the published recipes of the baselines share: t5-base, AdamW, one target task."""

from __future__ import annotations

import ml_collections as mlc

from pemt_jax.stages.config import base_config


def recipe(stage: str, task: str, rate: float, *, batch: int = 128, epochs: float = 20.0,
           warmup: int = 0, length: int = 256) -> mlc.ConfigDict:
  """Returns the config of a baseline.

  Args:
    stage: name in the zoo.
    task: target task.
    rate: peak learning rate.
    batch: rows per step.
    epochs: passes over the training rows.
    warmup: steps to the peak rate.
    length: greatest number of tokens of an input.
  """
  config = base_config(stage)
  config.tasks = (task,)
  config.data.batch_size = batch
  config.data.max_source_length = length
  config.train.learning_rate = rate
  config.train.epochs = epochs
  config.train.warmup_steps = warmup
  return config
