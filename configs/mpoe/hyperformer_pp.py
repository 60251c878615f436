"""HyperFormer++ on t5-base, eight GLUE tasks: lr 3e-4, 65536 steps, batch 32, embed / 32 units."""

from __future__ import annotations

import ml_collections as mlc

from configs.mpoe import common
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: without prefix, none for eight tasks of GLUE; `reduction`; `published`: 1 or 0."""
  values = parse_argument(argument, task='', reduction=common.ADAPTER_REDUCTION, published=0)
  return common.adapters('hyperformer_pp', values['task'], values['reduction'],
                         bool(values['published']))
