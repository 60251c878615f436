"""ProPETL on t5-base, summaries of XSum: adapters of full width, masks keep 0.5.

lr 1e-4, batch 32, 100000 steps, 512 and 64 tokens; `form=adapter` has 96 units in every layer,
`form=finetune` tunes all parameters with two microbatches of 32.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.propetl.t5_common import recipe
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`form`: propetl, adapter or finetune; `published`: 1 or 0."""
  values = parse_argument(argument, form='propetl', published=0)
  form = values['form']
  config = recipe(form, ('propetl/xsum',), 8 if form == 'adapter' else 1, rate=1e-4,
                  batch=64 if form == 'finetune' else 32, steps=100000, lengths=(512, 64),
                  published=bool(values['published']))
  config.train.weight_decay = 0.01
  config.train.eval_every = 5000
  config.train.accumulate = 2 if form == 'finetune' else 1
  config.data.max_validation_rows = 1024
  if form == 'finetune':
    config.data.eval_batch_size = 16
  return config
