"""Weight ensembling on the playground: similarities, merges and few-shot tuning, ten seeds.

python launch/train.py --config=configs/playground/ensembling.py --workdir=runs/ensembling

Findings: docs/ensembling.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.playground.common import play
from pemt_jax.data.playground_world import RELATIONS, SOURCES
from pemt_jax.stages.ensembling_config import ensembling_config

# Two targets that need one source each, two that need two.
TARGETS = ('charm', 'oath', 'quest', 'voyage')


def _deltas(tasks: tuple[str, ...]) -> mlc.ConfigDict:
  """LoRA on the feed-forward's output, as the sources of PEMT have it."""
  config = play('lora', tasks)
  config.method.rank = 16
  config.method.alpha = 16.0
  config.method.up_init = 'zero'
  config.method.sites = ('*/mlp/wo',)
  return config


def get_config() -> mlc.ConfigDict:
  """Six sources, four targets with 64 rows per label to train on and 64 rows to select on."""
  source = _deltas(SOURCES)
  source.data.eval_batch_size = 256
  source.train.steps = 1200
  source.train.learning_rate = 1e-2
  source.train.warmup_steps = 20
  source.train.eval_every = 400
  target = _deltas(TARGETS)
  target.data.few_shot = 64
  target.data.max_validation_rows = 64
  target.data.eval_batch_size = 200
  target.train.learning_rate = 3e-3
  target.train.schedule = 'constant'
  target.train.steps = 120
  target.train.eval_every = 40
  config = ensembling_config(source, target)
  config.seeds = tuple(range(10))
  config.scale = 0.3
  config.intermediate_steps = 80
  config.intermediate_every = 40
  config.metrics = ('loss', 'kl', 'el2n', 'logit_cosine', 'grand', 'cosine', 'euclidean',
                    'performance')
  config.merges = ('average', *config.metrics, 'task_arithmetic', 'ties', 'dare', 'fisher',
                   'search')
  config.relations = mlc.ConfigDict({
      f'playground/{name}': {f'playground/{source}': share for source, share in shares.items()}
      for name, shares in RELATIONS.items()})
  return config.lock()
