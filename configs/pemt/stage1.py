"""PEMT stage 1: one LoRA expert and one task prompt per source, all sources in one program.

Reproduces the authors' stage-1 script: t5-base, LoRA r 64 on the feed-forward output, lr 5e-4,
warm-up 500, 5 epochs, batch 128, 256 tokens. With every training row of the six sources this needs
an accelerator; the paper gives no figures for this stage. `configs/pemt/stage1.py:task=rte` trains
a further source with the authors' settings for it, `configs/pemt/stage1.py:pool=1` all 19 sources
of the source-count study (configs/pemt/source_count.py).
"""

from __future__ import annotations

from typing import Any

import ml_collections as mlc

from configs.pemt import presets
from pemt_jax.stages.config import base_config, parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: one further source; `pool=1`: the whole pool; else the six main sources."""
  values = parse_argument(argument, task='', pool=0)
  config = base_config('pemt/stage1')
  config.tasks = presets.POOL if values['pool'] else presets.SOURCES
  config.data.batch_size = 128
  config.data.eval_batch_size = 256
  config.train.learning_rate = 5e-4
  config.train.warmup_steps = 500
  config.train.epochs = 5.0
  if values['task']:
    config.tasks = (values['task'],)
    config.update(_further(values['task']))
  elif values['pool']:
    with config.per_task.unlocked():
      config.per_task.update({task: _further(task) for task in presets.POOL})
  return config


def _further(task: str) -> dict[str, Any]:
  """What differs from the script of the main sources; nothing for those themselves."""
  if task in presets.SOURCES:
    return {}
  values = presets.STAGE1_EXTRA.get(task, presets.STAGE1_EXTRA_DEFAULT)
  return values | {'train': values['train'] | {'warmup_steps': 0}}
