"""Full tuning: lr 3e-4, batch 16, 5 epochs, inputs of 512 tokens."""

from __future__ import annotations

import ml_collections as mlc

from configs.baselines.common import recipe
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: the target."""
  task = parse_argument(argument, task='superglue-cb')['task']
  return recipe('full', task, 3e-4, batch=16, epochs=5.0, length=512)
