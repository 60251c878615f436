"""One task on bert-base-uncased with a head: lr 1e-5, three epochs, batch 32.

The published script feeds BERT through the text-to-text trainer and cannot run; its numbers are
kept, the loss is that of a classifier. `form` is `mpo`, factorised feed-forwards, or `dense`.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.mpoe import common
from pemt_jax.errors import one_of
from pemt_jax.stages.config import base_config, parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: without prefix; `form`: mpo or dense."""
  values = parse_argument(argument, task='cola', form='mpo')
  one_of('config argument form', values['form'], ('mpo', 'dense'))
  config = base_config(common.FORMS[values['form']][0])
  config.tasks = common.one_task(values['task'])
  config.model.name = 'bert-base-uncased'
  data, train = config.data, config.train
  data.template, data.max_source_length = 'pair', common.TOKENS
  data.batch_size = data.eval_batch_size = 32
  train.epochs, train.learning_rate, train.warmup_steps = 3.0, 1e-5, 320
  train.eval_every, train.checkpoint_every = 250, 500
  return config
