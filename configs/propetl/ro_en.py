"""ProPETL on t5-base, Romanian to English (WMT16): adapters of full width, masks keep 0.5.

lr 3e-4, batch 64, 60000 steps, 64 and 32 tokens; `form=adapter` has 96 units in every layer,
`form=finetune` tunes all parameters for 20000 steps.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.propetl.t5_common import recipe
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`form`: propetl, adapter or finetune; `published`: 1 or 0."""
  values = parse_argument(argument, form='propetl', published=0)
  form = values['form']
  config = recipe(form, ('propetl/wmt16-ro-en',), 8 if form == 'adapter' else 1, rate=3e-4,
                  batch=64, steps=20000 if form == 'finetune' else 60000, lengths=(64, 32),
                  published=bool(values['published']))
  config.train.weight_decay = 0.01
  config.train.eval_every = 1000 if form == 'finetune' else 5000
  config.data.eval_batch_size = 32
  if form == 'finetune':
    config.data.max_validation_rows = 256
  return config
