"""ProPETL on roberta-base, one GLUE task: adapter, LoRA or prefix under layer masks.

Published: batch 128, lr 1e-4, weight decay 0.1, warm-up of a tenth, linear, 128 tokens, 20 epochs
on small tasks and 10 on large ones; scores have a rate of their own. `shared=0` trains the same
forms without sharing and without masks.
"""

from __future__ import annotations

import math

import ml_collections as mlc

from pemt_jax.errors import one_of
from pemt_jax.methods.propetl_roberta import NO_DECAY
from pemt_jax.stages.config import base_config, parse_argument

# Train rows, after 1000 of them have become validation rows in large tasks.
ROWS = {'cola': 8551, 'sst2': 66349, 'mrpc': 3668, 'qqp': 362846, 'stsb': 5749, 'mnli': 391702,
        'qnli': 103743, 'rte': 2490}
SMALL = ('cola', 'mrpc', 'stsb', 'rte')
RATE, BATCH = 1e-4, 128
# form -> (density, rate of the scores, fields of the method)
FORMS = {
    'adapter': (0.5, 3e-3, {'reduction': 12, 'activation': 'relu', 'stddev': 0.02, 'fan': 'out'}),
    'lora': (0.1, 3e-2, {'rank': 32, 'alpha': 48.0, 'fan': 'in'}),
    'prefix': (0.1, 1e-4, {'length': 64, 'hidden': 512, 'fan': 'all'}),
}


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: of GLUE; `form`: adapter, lora or prefix; `shared`: 1 or 0."""
  values = parse_argument(argument, task='rte', form='adapter', shared=1)
  task, form = values['task'], values['form']
  one_of('config argument task', task, tuple(ROWS))
  one_of('config argument form', form, tuple(FORMS))
  density, score_rate, fields = FORMS[form]
  config = base_config('propetl')
  config.tasks = (f'propetl/{task}',)
  config.seeds = (42, 43, 44)
  config.model.name = 'roberta-base'
  config.method.update({'form': form, 'density': density, 'owners': ('layer',), **fields})
  if not values['shared']:
    config.method.update({'owners': (), 'place': 'layer'})
  data, train = config.data, config.train
  data.template, data.split_rule = 'pair', 'halved_or_cut'
  data.batch_size, data.max_source_length = BATCH, 128
  train.epochs = 20.0 if task in SMALL else 10.0
  train.warmup_steps = math.ceil(0.1 * train.epochs * math.ceil(ROWS[task] / BATCH))
  train.learning_rate, train.weight_decay = RATE, 0.1
  train.no_decay = NO_DECAY
  if values['shared']:
    train.group_multipliers = {'scores': score_rate / RATE}
  return config
