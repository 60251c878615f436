"""PEMT stage 1 on the playground: all sources as replicas in one program."""

from __future__ import annotations

import ml_collections as mlc

from pemt_jax.data.playground_world import SOURCES
from pemt_jax.stages.config import base_config


def get_config() -> mlc.ConfigDict:
  """Six sources, rank 8 experts."""
  config = base_config('pemt/stage1')
  config.tasks = tuple(f'playground/{name}' for name in SOURCES)
  config.model.name = 'playground'
  config.data.source = 'playground'
  config.data.max_source_length = 40
  config.data.max_target_length = 8
  config.data.buckets = (40,)
  config.data.batch_size = 64
  config.data.eval_batch_size = 256
  config.generation.max_length = 5
  config.method.rank = 8
  config.method.alpha = 8.0
  config.train.epochs = 10.0
  config.train.learning_rate = 5e-3
  config.train.warmup_steps = 50
  config.train.eval_every = 'epoch'
  return config
