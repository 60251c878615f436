"""PEMT stage 2 on the playground: few-shot targets on six frozen sources, seeds as replicas.

Needs the experts of configs/playground/stage1.py as config.sources.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.playground.common import play
from pemt_jax.data.playground_world import TARGETS


# Peak rates that suit each method; a prompt alone needs larger steps.
LEARNING_RATES = {'pemt/stage2': 1e-2, 'adapter': 1e-2, 'lora': 1e-2, 'prompt': 0.1, 'full': 1e-3}


def get_config(method: str = 'pemt/stage2') -> mlc.ConfigDict:
  """k-shot targets; `method` may also be 'adapter', 'lora', 'prompt' or 'full' (other columns)."""
  config = play(method, TARGETS)
  config.seeds = (0, 1, 2)
  config.few_shot_by_seed = True
  config.data.few_shot = 256
  config.data.batch_size = 48
  config.data.eval_batch_size = 400
  config.train.steps = 141
  config.train.learning_rate = LEARNING_RATES[method]
  config.train.eval_every = 47
  if method == 'pemt/stage2':
    # Gates read wide states, so that their logits move faster than anything else.
    with config.train.group_multipliers.unlocked():
      config.train.group_multipliers.gate = 0.3
  if method == 'lora':
    config.method.up_init = 'zero'
  return config
