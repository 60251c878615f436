"""ProPETL on t5-base, eight tasks of GLUE: lr 3e-4, 20000 steps, batch 128, masks keep 0.3.

`reduction=16` is the smaller adapter, `form=adapter` the baseline of one adapter per layer,
`form=finetune` tunes all parameters; `published=1`: see configs/propetl/t5_common.py.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.propetl.t5_common import GLUE, recipe
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`form`: propetl, adapter or finetune; `reduction`; `published`: 1 or 0."""
  values = parse_argument(argument, form='propetl', reduction=12, published=0)
  config = recipe(values['form'], GLUE, values['reduction'], rate=3e-4, batch=128, steps=20000,
                  lengths=(128, 128), published=bool(values['published']))
  config.train.eval_every = 2000
  return config
