"""One task on t5-base, all parameters: lr 2e-6, one epoch, batch 32.

`stage` names the method: `full` is the dense model. An earlier form of the published recipe is
`rate=1e-5,epochs=3`.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.mpoe import common
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: without prefix; `stage`: of the method; `rate`; `epochs`; `published`: 1 or 0."""
  values = parse_argument(argument, task='cola', stage='full', rate=2e-6, epochs=1.0, published=0)
  return common.single_task(values['stage'], values['task'], rate=values['rate'],
                            epochs=values['epochs'], published=bool(values['published']))
