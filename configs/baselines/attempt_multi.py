"""ATTEMPT on several targets in one model, each with a prompt of its own, one attention for all.

lr 0.3 for the prompts and 0.1 for the attention (a rate of its own is named and without effect in
the published code), batch 32, 20 epochs, at most 100,000 rows of a task. The tasks of the recipe
are not stated; `config.tasks` names others.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.baselines import attempt

TASKS = ('superglue-boolq', 'superglue-cb', 'superglue-multirc', 'superglue-wic',
         'superglue-wsc-fixed')


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """See `attempt`; `task` is without effect."""
  config = attempt.get_config(argument)
  config.tasks = TASKS
  config.mixture.sampling = 'proportional'
  config.data.batch_size = 32
  config.data.max_train_rows = 100_000
  config.train.warmup_steps = 0
  config.train.group_multipliers = {'attention': 0.1 / 0.3}
  return config
