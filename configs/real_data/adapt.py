"""The T5 of configs/real_data/pretrain.py, adapted to continue texts before it is frozen.

python launch/train.py --config=configs/real_data/adapt.py --workdir=runs/real_data/adapt \\
  --config.model.name=runs/real_data/pretrain/backbone --config.data.text="('FOLDER_OF_TEXT',)" \\
  --config.data.root=DATA

Span corruption teaches that the first token of a target is a sentinel; answers want it to follow
from the input (Lester et al. 2021). Figures: results/real_data.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.real_data import pretrain


def get_config() -> mlc.ConfigDict:
  """Texts of 127 tokens and their next 15."""
  config = pretrain.get_config()
  config.model.weights, config.model.shape = 'pretrained', {}
  config.model.embedding = config.model.attention_start = 'random'
  config.data.objective = 'prefix_lm'
  config.train.steps = 1200
  config.train.warmup_steps = 50
  config.train.eval_every = 200
  return config
