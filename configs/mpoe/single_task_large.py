"""One task on t5-large, all parameters: lr 1e-4, three epochs, batch 4, 3 experts.

`form` is a key of `FORMS` of configs/mpoe/common.py: by default experts that share central cores.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.mpoe import common
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: without prefix; `form`; `experts`: of a feed-forward; `published`: 1 or 0."""
  values = parse_argument(argument, task='cola', form='mpoe', experts=3, published=0)
  config = common.single_task(values['form'], values['experts'], values['task'], rate=1e-4,
                              epochs=3.0, batch=4, published=bool(values['published']))
  config.model.name = 't5-large'
  return config
