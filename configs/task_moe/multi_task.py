"""Multi-task baseline: every parameter on all rows of the train tasks, one model for all.

python launch/train.py --config=configs/task_moe/multi_task.py --workdir=DIR \\
  --config.data.root=ROOT

All draws of a task count, their rows to train on and those to select on, as published (Ye et al.
2021); rows are drawn uniformly over all tasks. There is no evaluation: the last step counts. What
the run leaves is an expert that `config.tuned.starts` of configs/task_moe/few_shot.py takes.
Arguments: `model`, `partition`, `part` and `stage`.
"""

from __future__ import annotations

import ml_collections as mlc

from pemt_jax.data import gym_files, gym_table
from pemt_jax.data.gym import GYM_PREFIX
from pemt_jax.stages.config import base_config, parse_argument
from pemt_jax.stages.few_shot_config import gym_recipe


def multi_task(stage: str, values: dict[str, str]) -> mlc.ConfigDict:
  """A stage on the rows of all draws of the tasks of a split."""
  config = gym_recipe(base_config(stage))
  config.tasks = tuple(GYM_PREFIX + title
                       for title in gym_table.partition(values['partition'])[values['part']])
  config.model.name = values['model']
  config.mixture.sampling = 'proportional'
  config.data.prefix = gym_files.EVERY
  config.data.train_on_validation = True
  config.train.eval_every = 'never'
  config.train.final_split = ''
  config.train.metric = ''
  return config


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """16,980 updates of 32 rows at 3e-5, warm-up of 6 %."""
  values = parse_argument(argument, model='facebook/bart-base', partition='random', part='train',
                          stage='full')
  config = multi_task(values['stage'], values)
  config.data.batch_size = 32
  config.train.learning_rate = 3e-5
  config.train.steps = 16_980
  config.train.warmup_steps = 1_018
  return config.lock()
