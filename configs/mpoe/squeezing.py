"""Ranks that fall one by one on one task: factorised t5-base, each round an epoch.

python launch/train.py --config=configs/mpoe/squeezing.py:task=rte --workdir=DIR \\
  --config.root=ROWS

The original's trainer draws a component for each step down; the call that asks for a step is not
published, nor are numbers. Ranks start at 60, those of the central cores' bonds.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.mpoe import common
from pemt_jax.stages.config import parse_argument
from pemt_jax.stages.squeezing import squeezing_config


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: without prefix; `rank`: of all components at the start; `rounds`."""
  values = parse_argument(argument, task='rte', rank=60, rounds=10)
  run = common.single_task('mpo', 0, values['task'], rate=3e-5, epochs=1.0)
  run.method.components = ('word_embed', 'mlp', 'attention')
  run.method.embed_rank = run.method.mlp_rank = run.method.attention_rank = values['rank']
  config = squeezing_config(run)
  config.rounds = values['rounds']
  return config.lock()
