"""Adapters after self-attention and feed-forward, norms trained: reduction 16, lr 1e-3."""

from __future__ import annotations

import ml_collections as mlc

from configs.baselines.common import recipe
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: the target."""
  return recipe('houlsby', parse_argument(argument, task='superglue-cb')['task'], 1e-3)
