"""PEMT stage 1 on six real sources, on the T5 of configs/real_data/adapt.py.

python launch/train.py --config=configs/real_data/stage1.py --workdir=runs/real_data/stage1 \\
  --config.model.name=runs/real_data/adapt/backbone --config.data.root=DATA

Figures: results/real_data.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.pemt.presets import SOURCES
from configs.real_data.common import set_data
from pemt_jax.stages.config import base_config


def get_config() -> mlc.ConfigDict:
  """Six sources, rank 16 experts."""
  config = set_data(base_config('pemt/stage1'))
  config.tasks = SOURCES
  config.together = 'task'  # Short texts need not wait for the padding of long ones.
  config.method.rank = 16
  config.method.alpha = 16.0
  config.data.batch_size = 16
  config.generation.max_length = 16
  config.train.steps = 2000
  config.train.learning_rate = 3e-3
  config.train.warmup_steps = 100
  config.train.eval_every = 500
  return config
