"""Prompt tuning: 100 rows that start as rows of the embedding, lr 0.3, weight decay 1e-5."""

from __future__ import annotations

import ml_collections as mlc

from configs.baselines.common import recipe
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: the target."""
  task = parse_argument(argument, task='superglue-cb')['task']
  config = recipe('prompt', task, 0.3, warmup=500)
  config.prompt.length = 100
  config.prompt.init = 'sample'
  config.train.weight_decay = 1e-5
  return config
