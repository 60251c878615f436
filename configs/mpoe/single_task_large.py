"""One task on t5-large, all parameters: lr 1e-4, three epochs, batch 4."""

from __future__ import annotations

import ml_collections as mlc

from configs.mpoe import common
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: without prefix; `stage`: of the method; `published`: 1 or 0."""
  values = parse_argument(argument, task='cola', stage='full', published=0)
  config = common.single_task(values['stage'], values['task'], rate=1e-4, epochs=3.0, batch=4,
                              published=bool(values['published']))
  config.model.name = 't5-large'
  return config
