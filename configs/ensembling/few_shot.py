"""Steps 1 and 5: few-shot tuning of every target, from random values or from merged experts.

python launch/train.py --config=configs/ensembling/few_shot.py --workdir=DIR
  [--config.starts="('MERGED',)"]

With `starts` each target begins at its expert `without_<target>` below the folder of a merge.
Arguments: `delta` ('adapter', 'lora', 'prefix'), `targets` (32 or 51), `grid=1` trains three rates
as replicas.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.ensembling.common import few_shot, recipe
from pemt_jax.data.tasks_gym import published_names, QA_TASKS, QUAN_TASKS
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """64-shot targets."""
  values = parse_argument(argument, delta='adapter', targets=32, grid=0)
  tasks = QUAN_TASKS if values['targets'] == 51 else QA_TASKS
  config = few_shot(recipe(values['delta'], published_names(tasks)))
  if values['grid']:
    config.learning_rates = (1e-4, 5e-4, 1e-3)
  return config
