"""PEMT stage 2 with the first `count` sources of the authors' pool, the target left out.

`library` is the folder that holds the source experts under their task names, such as
runs/pemt/stage1/experts. The authors compare 18, 16 and 14 sources.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.pemt import presets
from configs.pemt import stage2
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """Arguments: `task`, `count`, `library`."""
  values = parse_argument(argument, task='superglue-cb', count=18,
                          library='runs/pemt/stage1/experts')
  config = stage2.get_config(f"task={values['task']},preset=1")
  names = presets.pool_without(values['task'], values['count'])
  config.sources = tuple(f"{values['library']}/{name}" for name in names)
  return config
