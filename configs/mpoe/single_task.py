"""One task on t5-base, all parameters: lr 2e-6, one epoch, batch 32, 8 experts.

`form` is a key of `FORMS` of configs/mpoe/common.py: by default experts that share central cores;
12 and 16 experts are published too. An earlier form of the recipe is `rate=1e-5,epochs=3`.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.mpoe import common
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: without prefix; `form`; `experts`; `rate`; `epochs`; `published`: 1 or 0."""
  values = parse_argument(argument, task='cola', form='mpoe', experts=8, rate=2e-6, epochs=1.0,
                          published=0)
  return common.single_task(values['form'], values['experts'], values['task'],
                            rate=values['rate'], epochs=values['epochs'],
                            published=bool(values['published']))
