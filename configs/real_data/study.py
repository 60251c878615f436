"""The real-data study: PEMT against four rivals on twelve targets, k = 4, 16, 32 and all rows.

python launch/train.py --config=configs/real_data/study.py --workdir=runs/real_data/study \\
  --config.model=runs/real_data/pretrain/backbone --config.root=DATA \\
  --config.sources="('runs/real_data/stage1',)"

`configs/real_data/study.py:targets=2,shots=16` takes the first two targets and k = 16 only.
Figures: results/real_data.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.real_data import stage1, stage2
from configs.real_data.common import SHOTS, TARGETS
from pemt_jax.stages.config import parse_argument
from pemt_jax.stages.study_config import add_column, add_condition, study_config

COLUMNS = {'prompt': 'prompt', 'adapter': 'adapter', 'attention_lora': 'lora', 'full': 'full',
           'PEMT': 'pemt/stage2'}


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """Arguments `targets` (number, 0: all), `shots` (one k, -1: all) and `steps` per run."""
  chosen = parse_argument(argument, targets=0, shots=-1, steps=150)
  config = study_config(stage1.get_config())
  config.seeds = (0, 1, 2)
  config.learning_rates = (3e-4, 3e-3, 3e-2)
  config.selection_seeds = 1
  config.reference = 'PEMT'
  for name, stage in COLUMNS.items():
    column = stage2.make(stage)
    column.train.steps, column.train.eval_every = chosen['steps'], max(chosen['steps'] // 3, 1)
    if stage == 'lora':
      column.method.up_init = 'zero'
    add_column(config, name, column)
  targets = TARGETS[:chosen['targets'] or None]
  for shots in (*SHOTS, 0) if chosen['shots'] < 0 else (chosen['shots'],):
    name = f'k{shots}' if shots else 'all'
    add_condition(config, name, targets, shots, tuple(COLUMNS))
  return config.lock()
