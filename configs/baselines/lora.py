"""LoRA on q, k, v and o of every attention: rank and alpha 8, lr 6e-4, batch 128."""

from __future__ import annotations

import ml_collections as mlc

from configs.baselines.common import recipe
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: the target."""
  return recipe('lora', parse_argument(argument, task='superglue-cb')['task'], 6e-4)
