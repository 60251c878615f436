"""Eight GLUE tasks on t5-base, all parameters: lr 3e-5, 65536 steps, batch 32, temperature 10.

`form` is a key of `FORMS` of configs/mpoe/common.py: by default experts that share central cores.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.mpoe import common
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`form`; `experts`: of a feed-forward; `published`: 1 or 0."""
  values = parse_argument(argument, form='mpoe', experts=4, published=0)
  config = common.whole_model(values['form'], values['experts'], common.MIXTURE, rate=3e-5,
                              batch=32, warmup=500, every=1000,
                              published=bool(values['published']))
  config.train.steps = 65536
  config.train.checkpoint_every, config.train.keep = 5000, 5
  return config
