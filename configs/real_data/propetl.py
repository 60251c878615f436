"""ProPETL on eight tasks of GLUE against adapters of their own, on the T5 of the real-data stages.

python launch/train.py --config=configs/real_data/propetl.py --workdir=runs/real_data/propetl \\
  --config.model.name=runs/real_data/pretrain/backbone --config.data.root=DATA

`configs/real_data/propetl.py:form=adapter` trains one adapter in every layer for each task, an
eighth of the steps each. Figures: results/propetl.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.propetl.t5_common import GLUE, recipe
from configs.real_data.common import set_data
from pemt_jax.errors import one_of
from pemt_jax.stages.config import parse_argument

STEPS = 1600  # over all tasks


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """Arguments `form`: propetl or adapter; `steps` over all tasks."""
  values = parse_argument(argument, form='propetl', steps=STEPS)
  form, steps = values['form'], values['steps']
  one_of('config argument form', form, ('propetl', 'adapter'))
  config = set_data(recipe(form, GLUE, 4, rate=3e-3, batch=16, steps=steps, lengths=(64, 16)))
  if form == 'adapter':  # A replica for each task.
    config.mixture.sampling = ''
    config.together = 'none'
    config.method.owners = ()
    config.train.steps = steps // len(GLUE)
  data, train = config.data, config.train
  data.max_source_length = 64
  data.buckets, data.target_buckets = (64,), (8,)
  with data.per_task.unlocked():  # The local folder has no mismatched rows.
    data.per_task['propetl/mnli'] = mlc.ConfigDict({'split_rule': 'first_n_of_train'})
  train.warmup_steps = train.steps // 16
  train.eval_every = train.steps // 2
  return config
