"""Backbone of the playground: span corruption and visible questions of its text.

The result (`<workdir>/backbone`) ships as `pemt_jax/assets/playground_t5`.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.pretraining import small_t5


def get_config() -> mlc.ConfigDict:
  """One small T5 (v1.0 form) from random weights."""
  config = small_t5(vocab_size=320, embed=64, kv=16, heads=4, mlp=256, encoder_layers=2,
                    decoder_layers=2)
  config.data.source = 'playground'
  config.data.sentences = 60000
  config.data.unit = 'line'
  config.data.batch_size = 64
  config.data.eval_batch_size = 256
  config.data.noise_density = 0.25
  config.data.mean_span = 1.3
  config.train.steps = 2500
  config.train.warmup_steps = 100
  config.train.eval_every = 500
  return config
