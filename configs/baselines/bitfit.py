"""BitFit with the bias of the head: lr 3e-4, batch 32, warm-up 500."""

from __future__ import annotations

import ml_collections as mlc

from configs.baselines.common import recipe
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: the target."""
  task = parse_argument(argument, task='superglue-cb')['task']
  return recipe('bitfit', task, 3e-4, batch=32, warmup=500)
