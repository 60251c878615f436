"""What task vectors are made from: bart-base and one draw of each of the 160 gym tasks.

Give the folder of draws as config.data.root, and config.tasks for fewer tasks. `tune=backbone` is
for random vectors and those of texts, `tune=adapters` for Fisher vectors: adapters of width 8
behind all sub-layers. Training as published: 2500 steps, lr 3e-5, batch 8, the sum of the
label-smoothed losses clipped at 0.1; the last step is read. `init=ones` starts adapters from ones,
as published, after which all their units stay equal.
"""

from __future__ import annotations

import ml_collections as mlc

from pemt_jax.data.gym import GYM_PREFIX, SPACED
from pemt_jax.data.gym_table import RANDOM, SEEDS, partition
from pemt_jax.errors import one_of
from pemt_jax.stages.config import base_config, parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`tune`: backbone or adapters; `init` of adapters: normal or ones."""
  values = parse_argument(argument, tune='backbone', init='normal')
  one_of('tune', values['tune'], ('backbone', 'adapters'))
  one_of('init', values['init'], ('normal', 'ones'))
  config = base_config('houlsby' if values['tune'] == 'adapters' else 'full')
  config.tasks = tuple(GYM_PREFIX + title for titles in partition(RANDOM).values()
                       for title in titles)
  config.model.name = 'bart-base'
  config.together = 'none'
  data, train = config.data, config.train
  data.source, data.template = 'crossfit', SPACED
  data.few_shot_seed = SEEDS[0]
  data.batch_size, data.eval_batch_size = 8, 32
  data.max_source_length, data.max_target_length = 512, 64
  train.steps, train.warmup_steps, train.learning_rate = 2500, 150, 3e-5
  train.label_smoothing, train.reduction = 0.1, 'sum'
  train.clip_norm, train.weight_decay = 0.1, 0.01
  train.eval_every, train.final_split, train.checkpoint_every = 'never', '', 'never'
  if values['tune'] == 'adapters':
    config.method.update(size=8, activation='gelu', after_cross_attention=True,
                         after_dropout=True, tune_norms=False, up_init=values['init'])
  return config
