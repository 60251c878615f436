"""What the span-corruption configs share."""

from __future__ import annotations

import ml_collections as mlc

from pemt_jax.stages.config import base_config


def small_t5(**shape: int) -> mlc.ConfigDict:
  """A small T5 (v1.0 form, no dropout) from random weights; the step of least loss is kept.

  Args:
    **shape: fields of T5Config.
  """
  config = base_config('span_corruption')
  config.model.name = 't5-small'
  config.model.weights = 'random'
  with config.model.shape.unlocked():
    config.model.shape.update({**shape, 'dropout': 0.0})
  config.data.validation_chunks = 256
  config.train.learning_rate = 3e-3
  config.train.schedule = 'cosine'
  config.train.metric = 'loss'
  config.train.greater_is_better = False
  config.train.final_split = ''
  return config
