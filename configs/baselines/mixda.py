"""MixDA in the layers 7 and 11 of both stacks: lr 1e-3, batch 128.

`published=1` lets the gate read the last position of the padded sequence, as the published code
does.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.baselines.common import recipe
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: the target; `published=1`: every behaviour of the published code."""
  values = parse_argument(argument, task='superglue-cb', published=0)
  config = recipe('mixda', values['task'], 1e-3)
  config.method.gate_reads = 'last' if values['published'] else 'real'
  return config
