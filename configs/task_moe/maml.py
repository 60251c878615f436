"""Meta-learning baseline: the loss behind one step on the support of a task, second order.

python launch/train.py --config=configs/task_moe/maml.py --workdir=DIR --config.data.root=ROOT

A batch has four episodes, each with 16 rows of support and 16 of query from one task (Ye et al.
2021). What the run leaves is an expert; see configs/task_moe/multi_task.py.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.task_moe.multi_task import multi_task
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """6000 updates at 1e-5 behind inner steps at 3e-5."""
  values = parse_argument(argument, model='facebook/bart-base', partition='random', part='train')
  config = multi_task('maml', values)
  config.method.inner_rate, config.method.rows = 3e-5, 16
  config.mixture.batches, config.mixture.episodes = 'episodes', 4
  config.data.batch_size = 4 * 2 * config.method.rows
  config.train.learning_rate = 1e-5
  config.train.steps = 6_000
  config.train.warmup_steps = 360
  return config.lock()
