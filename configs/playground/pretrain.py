"""Backbone of the playground: span corruption on its unlabelled text.

The result (`<workdir>/backbone`) ships as `pemt_jax/assets/playground_t5`.
"""

from __future__ import annotations

import ml_collections as mlc

from pemt_jax.stages.config import base_config


def get_config() -> mlc.ConfigDict:
  """One small T5 (v1.0 form) from random weights."""
  config = base_config('span_corruption')
  config.model.name = 't5-small'
  config.model.weights = 'random'
  with config.model.shape.unlocked():
    config.model.shape.update(dict(
        vocab_size=512, embed=64, kv=16, heads=4, mlp=256, encoder_layers=2, decoder_layers=2,
        dropout=0.0))
  config.data.source = 'playground'
  config.data.sentences = 30000
  config.data.unit = 'line'
  config.data.batch_size = 64
  config.data.eval_batch_size = 256
  config.data.validation_chunks = 256
  config.data.noise_density = 0.2
  config.data.mean_span = 1.3
  config.train.steps = 2500
  config.train.learning_rate = 3e-3
  config.train.warmup_steps = 100
  config.train.schedule = 'cosine'
  config.train.eval_every = 500
  config.train.metric = 'loss'
  config.train.greater_is_better = False
  config.train.final_split = ''
  return config
