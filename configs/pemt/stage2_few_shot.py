"""PEMT stage 2, few-shot: k rows per label, batch k, lr 3e-4, 20 epochs (authors' script: k = 8).

Arguments: `task`, `k`, `grid` as in stage2.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.pemt import presets
from configs.pemt import stage2
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """One target task with k rows per label."""
  values = parse_argument(argument, task='superglue-cb', k=8, grid=0)
  config = stage2.get_config(f"task={values['task']}")
  config.data.few_shot = values['k']
  config.data.batch_size = values['k']
  if values['grid']:
    config.learning_rates = presets.LEARNING_RATE_GRID
  return config
