"""What the playground's stages share."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections as mlc

from pemt_jax.stages.config import base_config


def play(stage: str, tasks: Sequence[str]) -> mlc.ConfigDict:
  """A stage on playground tasks: inputs of at most 13 tokens in one shape, batch 32."""
  config = base_config(stage)
  config.tasks = tuple(f'playground/{name}' for name in tasks)
  config.model.name = 'playground'
  config.data.source = 'playground'
  config.data.max_source_length = 13
  config.data.max_target_length = 2
  config.data.buckets = (13,)
  config.data.target_buckets = (2,)
  config.data.lookahead = 1
  config.data.batch_size = 32
  config.generation.max_length = 3
  return config
