"""Feed-forwards with routed experts on the playground: six sources share one model.

python launch/train.py --config=configs/playground/mpoe.py:form=mpoe --workdir=runs/mpoe/playground

`form` is a key of `FORMS` of configs/mpoe/common.py: dense, switch, mpoe and so on. All parameters
are tuned. Findings: results/mpoe.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.mpoe.common import FORMS
from configs.playground.common import play
from pemt_jax.data.playground_world import SOURCES
from pemt_jax.errors import one_of
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """Arguments `form`; `experts` of a feed-forward; `steps` over all sources."""
  values = parse_argument(argument, form='mpoe', experts=4, steps=600)
  one_of('config argument form', values['form'], tuple(FORMS))
  stage, kind = FORMS[values['form']]
  config = play(stage, SOURCES)
  if kind:
    config.method.experts, config.method.count = kind, values['experts']
  config.mixture.sampling = 'equal'
  config.data.batch_size = 96
  config.data.eval_batch_size = 256
  config.train.steps = values['steps']
  config.train.learning_rate = 3e-3
  config.train.warmup_steps = values['steps'] // 20
  config.train.eval_every = values['steps'] // 2
  return config
