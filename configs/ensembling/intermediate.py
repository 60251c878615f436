"""Step 2: 200 updates of every source on every target, in one program.

python launch/train.py --config=configs/ensembling/intermediate.py --workdir=DIR
  --config.starts="('SOURCES/experts/crossfit-boolq', ...)"

The run is the `--moved` and `--scores` of launch/similarity.py.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.ensembling import few_shot


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """As configs/ensembling/few_shot.py, with validation every 50 of 200 updates."""
  config = few_shot.get_config(argument)
  config.train.steps = 200
  config.train.eval_every = 50
  config.train.log_every = 50
  return config
