"""PEMT stage 2 on real targets with the six experts of configs/real_data/stage1.py.

python launch/train.py --config=configs/real_data/stage2.py --workdir=runs/real_data/stage2 \\
  --config.model.name=runs/real_data/adapt/backbone --config.data.root=DATA \\
  --config.sources="('runs/real_data/stage1',)"

`configs/real_data/stage2.py:k=16` draws 16 rows per label. Figures: results/real_data.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.real_data.common import set_data
from pemt_jax.stages.config import base_config, parse_argument


def make(method: str) -> mlc.ConfigDict:
  """One method on CB and RTE."""
  config = set_data(base_config(method))
  config.tasks = ('superglue-cb', 'rte')
  config.seeds = (0, 1)
  config.data.batch_size = 16
  config.generation.max_length = 16
  config.train.steps = 150
  config.train.learning_rate = 1e-3
  config.train.eval_every = 50
  return config


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """Argument `k`: rows per label; 0 takes all rows."""
  shots = parse_argument(argument, k=0)['k']
  config = make('pemt/stage2')
  if shots:
    config.data.few_shot = shots
    config.few_shot_by_seed = True
  return config
