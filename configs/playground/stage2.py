"""PEMT stage 2 on the playground: few-shot targets on six frozen sources, seeds as replicas.

Needs the experts of configs/playground/stage1.py as config.sources.
"""

from __future__ import annotations

import ml_collections as mlc

from pemt_jax.data.playground_world import TARGETS
from pemt_jax.stages.config import base_config


# Peak rates that suit each method; a prompt alone needs larger steps.
LEARNING_RATES = {'pemt/stage2': 3e-3, 'adapter': 3e-3, 'prompt': 0.1, 'full': 1e-3}


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
  config.data.eval_batch_size = 400
  config.generation.max_length = 4
  config.train.steps = 120
  config.train.learning_rate = LEARNING_RATES[method]
  config.train.eval_every = 40
  return config
