"""ATTEMPT on one target: source prompts of 100 rows, temperature 2087, lr 0.3, warm-up 500.

`config.sources` names the prompts of the six sources: experts of
`configs/baselines/prompt_tuning.py`, or files `prefix_embeddings.pt`. `published=1` takes padding
into what the attention reads, as the published code does.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.baselines.common import recipe
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: the target; `published=1`: every behaviour of the published code."""
  values = parse_argument(argument, task='superglue-cb', published=0)
  config = recipe('attempt', values['task'], 0.3, warmup=500)
  config.method.temperature = 2087.0
  config.method.mask_padding = not values['published']
  return config
