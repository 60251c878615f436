"""SPoT: prompt tuning from source prompts; lr 0.3, batch 32, inputs of 128 tokens, all padded.

`config.sources` names experts of `configs/baselines/prompt_tuning.py`, or files
`prefix_embeddings.pt`. One source is copied; several need `config.prompt.weighting`.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.baselines.common import recipe
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: the target."""
  task = parse_argument(argument, task='superglue-cb')['task']
  config = recipe('prompt', task, 0.3, batch=32, length=128)
  config.prompt.init = 'sources'
  config.data.buckets = (128,)
  return config
