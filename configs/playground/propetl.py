"""ProPETL on the playground: six sources, one prototype, masks of tasks and layers.

python launch/train.py --config=configs/playground/propetl.py --workdir=runs/propetl/sources
python launch/convert.py --from=expert --to=packed --input=runs/propetl/sources/experts/mixture \\
  --output=runs/propetl/packed
python launch/train.py --config=configs/playground/stage2.py --workdir=runs/propetl/bank \\
  --config.sources="('runs/propetl/packed',)"

The last command trains targets on the six experts. `configs/playground/propetl.py:form=lora` puts a
LoRA prototype where the experts of PEMT stand. Findings: results/propetl.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.playground.common import play
from pemt_jax.data.playground_world import SOURCES
from pemt_jax.errors import one_of
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """Arguments `form`: adapter or lora; `steps` over all sources."""
  values = parse_argument(argument, form='adapter', steps=2400)
  one_of('config argument form', values['form'], ('adapter', 'lora'))
  config = play('propetl', SOURCES)
  config.mixture.sampling = 'equal'
  config.data.batch_size = 96
  config.data.eval_batch_size = 256
  method, train = config.method, config.train
  method.form = values['form']
  method.reduction = 1  # As many units as the stream is wide: masks divide them.
  method.rank, method.alpha, method.projections = 64, 64.0, ('wo',)
  train.steps = values['steps']
  train.learning_rate = 1e-2
  train.warmup_steps = 100
  train.group_multipliers = {'scores': 10.0}
  train.eval_every = train.steps // 4
  return config
