"""Eight tasks of GLUE on t5-base, all parameters: lr 3e-5, 65536 steps, batch 32, temperature 10.

`stage` names the method: `full` is the dense model.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.mpoe.common import MIXTURE, recipe
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`stage`: of the method; `published`: 1 or 0."""
  values = parse_argument(argument, stage='full', published=0)
  config = recipe(values['stage'], MIXTURE, rate=3e-5, batch=32, warmup=500, every=1000,
                  published=bool(values['published']))
  config.train.steps = 65536
  config.train.checkpoint_every, config.train.keep = 5000, 5
  config.data.template = 'name_in_front'
  return config
