"""The playground study: PEMT against its rivals, with controls, on targets of known relations.

python launch/train.py --config=configs/playground/study.py --workdir=runs/playground/study

Findings: docs/playground.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.playground import stage1, stage2
from pemt_jax.data.playground_world import RELATIONS
from pemt_jax.stages.study_config import add_column, add_condition, study_config

COLUMNS = {'prompt': 'prompt', 'adapter': 'adapter', 'attention_lora': 'lora', 'full': 'full',
           'PEMT': 'pemt/stage2'}
CONTROLS = {
    'shuffled': {'bank': 'shuffled'},
    'without_true': {'bank': 'unrelated'},
    'no_correlation': {'method': {'correlation': False}},
    'no_sparsity': {'method': {'sparsity_weight': 0.0}},
}


# Two targets that need one source each, two that need two, one that needs none.
TARGETS = ('charm', 'oath', 'quest', 'voyage', 'breath')


def get_config() -> mlc.ConfigDict:
  """All columns at 256 rows per label; controls, fewer rows and noisy labels for one target."""
  config = study_config(stage1.get_config())
  config.seeds = tuple(range(10))
  config.learning_rates = (1e-3, 1e-2, 1e-1)
  config.selection_seeds = 1
  config.reference = 'PEMT'
  config.relations = mlc.ConfigDict({
      f'playground/{name}': {f'playground/{source}': share for source, share in shares.items()}
      for name, shares in RELATIONS.items()})
  for name, stage in COLUMNS.items():
    add_column(config, name, stage2.get_config(stage))
  for name, change in CONTROLS.items():
    column = stage2.get_config('pemt/stage2')
    column.method.update(change.get('method', {}))
    add_column(config, name, column, change.get('bank', 'trained'), rates_of='PEMT')
  add_condition(config, 'main', [f'playground/{name}' for name in TARGETS], 256, tuple(COLUMNS))
  add_condition(config, 'controls', ('playground/charm',), 256, tuple(CONTROLS))
  add_condition(config, 'k64', ('playground/charm',), 64, ('adapter', 'PEMT'))
  # A name in a config holds no dot, hence 1e-1.
  add_condition(config, 'noise', ('playground/charm@noise=1e-1',), 256, ('adapter', 'PEMT'))
  return config.lock()
