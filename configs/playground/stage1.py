"""PEMT stage 1 on the playground: all sources as replicas in one program."""

from __future__ import annotations

import ml_collections as mlc

from configs.playground.common import play
from pemt_jax.data.playground_world import SOURCES


def get_config() -> mlc.ConfigDict:
  """Six sources, rank 16 experts."""
  config = play('pemt/stage1', SOURCES)
  config.data.eval_batch_size = 256
  config.method.rank = 16
  config.method.alpha = 16.0
  config.method.up_init = 'zero'
  config.train.steps = 1200
  config.train.learning_rate = 1e-2
  config.train.warmup_steps = 20
  config.train.eval_every = 400
  return config
