"""Task-level mixture of experts: routes and experts together, on all train tasks of a split.

python launch/train.py --config=configs/task_moe/stage1.py:vectors=VECTORS --workdir=DIR \\
  --config.data.root=ROOT

ROOT holds the folders of gym tasks, VECTORS their task vectors (launch/task_vectors.py); without,
they start at random. As published: 30,000 updates of 2 x 16 rows whose gradients are summed, rates
1e-5 for layers, 1e-3 for the router and 1e-2 for task vectors, warm-up of 6 %, evaluation every 750
updates. Further arguments: `model`, `partition`, `part`, `mode`, `tune_vectors`, and for what it is
compared with `routes` (average, instance_random, task_random) and `random_experts`. Decoding starts
with token `start_id`, as published `<s>` of BART; -1 is the token that training starts with.
"""

from __future__ import annotations

from typing import Any

import ml_collections as mlc

from configs.task_moe.multi_task import multi_task
from pemt_jax.methods import task_moe
from pemt_jax.stages.config import parse_argument

ARGUMENTS = {'model': 'facebook/bart-base', 'partition': 'random', 'part': 'train', 'vectors': '',
             'start_id': 0}


def routed(values: dict[str, Any], steps: int) -> mlc.ConfigDict:
  """What both stages have in common.

  Args:
    values: of `ARGUMENTS`.
    steps: updates.
  """
  config = multi_task(task_moe.NAME, values)
  config.method.vectors = values['vectors']
  config.data.train_on_validation = False
  config.data.batch_size, config.train.accumulate = 2 * 16, 2
  config.data.eval_batch_size = 64
  config.train.accumulation = 'sum'
  config.train.no_decay = task_moe.NO_DECAY
  config.train.learning_rate = 1e-5
  config.train.steps, config.train.warmup_steps = steps, int(0.06 * steps)
  config.train.metric, config.train.final_split = 'average_metrics', 'test'
  config.generation.early_stopping = False
  if values['start_id'] >= 0:
    config.generation.start_id = values['start_id']
  return config


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """Straight-through Gumbel routes of a network for each layer."""
  values = parse_argument(argument, **ARGUMENTS, mode='gumbel_softmax_st', routes='router',
                          random_experts=1, tune_vectors=1)
  config = routed(values, 30_000)
  method = config.method
  method.mode, method.routes = values['mode'], values['routes']
  method.random_experts = values['random_experts']
  method.tune_vectors = bool(values['tune_vectors'])
  one = {'router': method.mode == 'gumbel_softmax_st', 'average': False, 'instance_random': True,
         'task_random': method.random_experts == 1}
  method.hard_prediction = one.get(method.routes, False)
  if method.routes == 'router':
    config.train.group_multipliers = {'router': 1e2, 'task_vectors': 1e3}
    if not method.tune_vectors:
      config.train.group_multipliers = {'router': 1e2}
  config.train.eval_every = 750
  return config.lock()
