"""ProPETL on t5-3b, eight tasks of GLUE: as on t5-base with 8 units, in microbatches.

`form=adapter` and `form=finetune` compute in bfloat16, as published; ProPETL in float32.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.propetl.t5_common import GLUE, recipe
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`form`: propetl, adapter or finetune; `published`: 1 or 0."""
  values = parse_argument(argument, form='propetl', published=0)
  config = recipe(values['form'], GLUE, 128, rate=3e-4, batch=128, steps=20000,
                  lengths=(128, 128), published=bool(values['published']))
  config.model.name = 't5-3b'
  config.model.dtype = 'float32' if values['form'] == 'propetl' else 'bfloat16'
  config.train.eval_every = 2000
  config.train.accumulate = 64 if values['form'] == 'finetune' else 4
  return config
