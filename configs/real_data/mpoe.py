"""Feed-forwards with routed experts on GLUE, on the T5 of the real-data stages.

python launch/train.py --config=configs/real_data/mpoe.py:form=mpoe --workdir=runs/real_data/mpoe \\
  --config.model.name=runs/real_data/pretrain/backbone --config.data.root=DATA

`form` is a key of `FORMS` of configs/mpoe/common.py: dense, switch, mpoe and so on. All parameters
are tuned. Without `task` four tasks share a model; `task=sst2`, or `task=sst2+mrpc`, trains a model
for each. Figures: results/mpoe.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.mpoe.common import whole_model
from configs.real_data.common import set_data
from pemt_jax.data.tasks_hyperformer import HYPERFORMER_PREFIX
from pemt_jax.stages.config import parse_argument

TASKS = 'sst2+mrpc+qqp+qnli'


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """Arguments `form`; `task`, '' for the mixture; `experts` of a feed-forward; `steps` of each."""
  values = parse_argument(argument, form='mpoe', task='', experts=4, steps=300)
  steps = values['steps']
  tasks = tuple(HYPERFORMER_PREFIX + name for name in (values['task'] or TASKS).split('+'))
  config = set_data(whole_model(values['form'], values['experts'], tasks, rate=1e-3, batch=16,
                                warmup=steps // 10, every=steps // 2))
  config.train.steps = steps
  if values['task']:
    config.mixture.sampling, config.together = '', 'task'
  config.data.max_source_length = 64
  config.data.buckets, config.data.target_buckets = (64,), (8,)
  config.generation.by_task = False
  config.generation.max_length = 8
  config.generation.num_beams = 1
  return config
