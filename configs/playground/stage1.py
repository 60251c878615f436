"""PEMT stage 1 on the playground: all sources as replicas in one program."""

from __future__ import annotations

import ml_collections as mlc

from pemt_jax.data.playground_world import SOURCES
from pemt_jax.stages.config import base_config


def get_config() -> mlc.ConfigDict:
  """Six sources, rank 16 experts."""
  config = base_config('pemt/stage1')
  config.tasks = tuple(f'playground/{name}' for name in SOURCES)
  config.model.name = 'playground'
  config.data.source = 'playground'
  config.data.max_source_length = 16
  config.data.max_target_length = 4
  config.data.buckets = (16,)
  config.data.target_buckets = (4,)
  config.data.lookahead = 1
  config.data.batch_size = 32
  config.data.eval_batch_size = 256
  config.generation.max_length = 4
  config.method.rank = 16
  config.method.alpha = 16.0
  config.method.up_init = 'zero'
  config.train.steps = 700
  config.train.learning_rate = 1e-2
  config.train.warmup_steps = 20
  config.train.eval_every = 350
  return config
