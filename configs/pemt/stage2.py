"""PEMT stage 2: a target on the frozen experts of six sources.

Reproduces the authors' stage-2 script: t5-base, lr 3e-4, 20 epochs, batch 32, 256 tokens, target
adapter with reduction 16, seed 4096. Give the run folder of stage 1 as
`--config.sources="('runs/pemt/stage1',)"`. Arguments: `task` (a target), `preset=1` takes the
authors' batch size, epochs and length for the task, `grid=1` trains their three learning rates as
replicas. The only published figure known to us: CB accuracy 92.857 (mean gates .6418 .0734 .0514
.0623 .0425 .1285, sources in the order of stage 1).
"""

from __future__ import annotations

import ml_collections as mlc

from configs.pemt import presets
from pemt_jax.stages.config import base_config, parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """One target task."""
  values = parse_argument(argument, task='superglue-cb', preset=0, grid=0)
  config = base_config('pemt/stage2')
  config.tasks = (values['task'],)
  config.seeds = (4096,)
  config.data.batch_size = 32
  config.train.learning_rate = 3e-4
  config.train.epochs = 20.0
  if values['grid']:
    config.learning_rates = presets.LEARNING_RATE_GRID
  if values['preset']:
    config.update(presets.STAGE2.get(values['task'], presets.STAGE2_DEFAULT))
  return config
