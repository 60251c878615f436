"""The real-data study: PEMT against four rivals on twelve targets, k = 4, 16, 32 and all rows.

python launch/train.py --config=configs/real_data/study.py --workdir=runs/real_data/study \\
  --config.model=runs/real_data/adapt/backbone --config.root=DATA \\
  --config.sources="('runs/real_data/stage1',)"

`configs/real_data/study.py:targets=mrpc+rte,columns=adapter+PEMT,shots=16` thins it; `shots` are
rows per label (in all for stsb and winogrande). Rates are chosen under the first of them; runs on
all rows take `all_steps`, the others `steps`.
Figures: results/real_data.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.real_data import stage1, stage2
from configs.real_data.common import TARGETS
from pemt_jax.errors import one_of
from pemt_jax.stages.config import parse_argument
from pemt_jax.stages.study_config import add_column, add_condition, study_config

COLUMNS = {'prompt': 'prompt', 'adapter': 'adapter', 'attention_lora': 'lora', 'full': 'full',
           'PEMT': 'pemt/stage2'}


MOST_ROWS = {'superglue-cb': 16}  # of its rarest label


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """Arguments `targets`, `shots` and `columns`, joined by `+`; steps of a run."""
  chosen = parse_argument(argument, targets='+'.join(TARGETS), shots='16+4+32+all',
                          columns='+'.join(COLUMNS), steps=100, all_steps=200)
  targets, sizes, names = (chosen[field].split('+') for field in ('targets', 'shots', 'columns'))
  config = study_config(stage1.get_config())
  config.seeds = (0, 1, 2)
  config.learning_rates = (3e-4, 3e-3, 3e-2)
  config.selection_seeds = 1
  config.reference = 'PEMT' if 'PEMT' in names else ''
  for name in names:
    one_of('columns', name, COLUMNS)
    stage = COLUMNS[name]
    column = stage2.make(stage)
    column.data.batch_size = 8
    column.data.max_validation_rows = 128
    column.train.steps, column.train.eval_every = chosen['steps'], max(chosen['steps'] // 2, 1)
    column.together = 'none'  # Short texts need not wait for the padding of long ones.
    column.generation.labels_only = True  # A few rows teach which label, not how it is spelled.
    if stage == 'lora':
      column.method.up_init = 'zero'
    add_column(config, name, column)
  for size in sizes:
    name, rows = ('all', 0) if size == 'all' else (f'k{int(size)}', int(size))
    enough = [task for task in targets if rows <= MOST_ROWS.get(task, rows)]
    add_condition(config, name, enough, rows, names, steps=0 if rows else chosen['all_steps'])
  return config.lock()
