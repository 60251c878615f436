"""PEMT stage 2 on the playground: few-shot targets on six frozen sources, seeds as replicas.

Needs the experts of configs/playground/stage1.py as config.sources.
"""

from __future__ import annotations

import ml_collections as mlc

from pemt_jax.data.playground_world import TARGETS
from pemt_jax.stages.config import base_config


def get_config(method: str = 'pemt/stage2') -> mlc.ConfigDict:
  """k-shot targets; `method` may also be 'prompt' or 'adapter' (the other columns)."""
  config = base_config(method)
  config.tasks = tuple(f'playground/{name}' for name in TARGETS)
  config.seeds = (0, 1, 2)
  config.few_shot_by_seed = True
  config.model.name = 'playground'
  config.data.source = 'playground'
  config.data.few_shot = 32
  config.data.max_source_length = 16
  config.data.max_target_length = 4
  config.data.buckets = (16,)
  config.data.target_buckets = (4,)
  config.data.lookahead = 1
  config.data.batch_size = 32
  config.data.eval_batch_size = 512
  config.generation.max_length = 4
  config.train.steps = 300
  config.train.learning_rate = 5e-3
  config.train.eval_every = 100
  return config
