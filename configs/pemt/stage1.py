"""PEMT stage 1: one LoRA expert and one task prompt per source, all sources in one program.

Reproduces the authors' stage-1 script: t5-base, LoRA r 64 on the feed-forward output, lr 5e-4,
warm-up 500, 5 epochs, batch 128, 256 tokens. With every training row of the six sources this needs
an accelerator; the paper gives no figures for this stage. `configs/pemt/stage1.py:task=rte` trains
a further source with the authors' settings for it.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.pemt import presets
from pemt_jax.stages.config import base_config, parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """`task`: one further source; '' trains the six main sources."""
  task = parse_argument(argument, task='')['task']
  config = base_config('pemt/stage1')
  config.tasks = (task,) if task else presets.SOURCES
  config.data.batch_size = 128
  config.data.eval_batch_size = 256
  config.train.learning_rate = 5e-4
  config.train.warmup_steps = 500
  config.train.epochs = 5.0
  if task and task not in presets.SOURCES:
    config.train.warmup_steps = 0
    with config.per_task.unlocked():
      config.per_task[task] = mlc.ConfigDict(
          presets.STAGE1_EXTRA.get(task, presets.STAGE1_EXTRA_DEFAULT))
  return config
