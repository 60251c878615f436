"""AdaMix: 6 experts of 64 units, one shared up projection, lr 1e-3, batch 128.

`consistency=1` adds the divergence between two passes that AdaMix has and the published comparison
leaves out.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.baselines.common import recipe
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: the target; `consistency`: weight of the divergence."""
  values = parse_argument(argument, task='superglue-cb', consistency=0.0)
  config = recipe('adamix', values['task'], 1e-3)
  config.method.consistency = values['consistency']
  return config
