"""Second stage: the learned routes stay, layers start from the pretrained ones again.

python launch/train.py --config=configs/task_moe/stage2.py:first=EXPERT --workdir=DIR \\
  --config.data.root=ROOT

EXPERT is what configs/task_moe/stage1.py has left, DIR/experts/mixture. Its router and its task
vectors are taken and not trained; every layer starts from copies of the backbone's. Routes go from
even ones at temperature 300 to softmax(logits) at 1. As published: 60,000 updates at 1e-5, the
first 15,000 without evaluation, then one every 3000. Arguments as in configs/task_moe/stage1.py.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.task_moe.stage1 import ARGUMENTS, routed
from pemt_jax.methods.task_moe import PLACE
from pemt_jax.stages.config import parse_argument
from pemt_jax.stages.task_moe import shape_of


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """Softmax routes that are annealed from uniform to the learned ones."""
  values = parse_argument(argument, **ARGUMENTS, first='')
  config = routed(values, 60_000)
  config.start_only = (f'{PLACE}/router_.*',)
  if values['first']:
    config.starts = (values['first'],)
    config.method.update(shape_of(values['first']))
  method = config.method
  method.mode, method.tune_vectors = 'softmax', False
  method.initial_temperature, method.minimum_temperature = 300.0, 1.0
  method.anneal_rate = 1e-4
  # Gradients of the router count in the norm that is clipped; it does not move.
  config.train.group_multipliers = {'router': 0.0}
  config.train.eval_after, config.train.eval_every = 15_000, 3000
  return config.lock()
