"""Step 5 on all rows of a target, from random values or from merged experts.

python launch/train.py --config=configs/ensembling/full_data.py:task=boolq --workdir=DIR
  [--config.starts="('MERGED',)"]
"""

from __future__ import annotations

import ml_collections as mlc

from configs.ensembling.common import recipe
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """One target; its train split is cut behind 400,000 rows."""
  values = parse_argument(argument, delta='adapter', task='boolq')
  return recipe(values['delta'], (values['task'],))
