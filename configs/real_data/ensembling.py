"""Weight ensembling on real tasks: six GLUE sources, twelve few-shot tasks of the gym.

python launch/train.py --config=configs/real_data/ensembling.py --workdir=runs/real_ensembling \\
  --config.model=runs/real_data/pretrain/backbone --config.source.data.root=DATA \\
  --config.target.data.root=DATA/crossfit_gym

The targets are pre-built draws: 16 rows to train on, 16 to select on. Figures:
results/real_data.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.real_data.common import set_data
from pemt_jax.stages.config import base_config
from pemt_jax.stages.ensembling_config import ensembling_config

SOURCES = ('sst2', 'qnli', 'qqp', 'mnli', 'cola', 'rte')
# Gym tasks whose draw has rows to test on.
TARGETS = ('boolq', 'mc_taco', 'anli', 'climate_fever', 'health_fact', 'liar',
           'tweet_eval-offensive', 'tweet_eval-sentiment', 'tweet_eval-irony', 'glue-mrpc',
           'medical_questions_pairs', 'blimp-sentential_negation_npi_scope')


def _deltas(tasks: tuple[str, ...]) -> mlc.ConfigDict:
  """The published adapters, at most 64 tokens of a text."""
  config = set_data(base_config('houlsby_ensembling'))
  config.tasks = tasks
  config.data.max_source_length = 64
  config.data.buckets = (64,)
  config.data.target_buckets = (8,)
  config.data.max_target_length = 8
  config.data.max_test_rows = 200
  config.data.eval_batch_size = 100
  config.generation.max_length = 8
  config.train.optimizer = 'adafactor'
  config.train.schedule = 'constant'
  config.train.clip_norm = 0.1
  config.train.ties_improve = True
  return config


def get_config() -> mlc.ConfigDict:
  """One seed; few updates, so that two CPU cores need minutes."""
  source = _deltas(SOURCES)
  source.data.batch_size = 16
  source.train.learning_rate = 5e-3
  source.train.steps = 300
  source.train.eval_every = 100
  target = _deltas(tuple(f'crossfit/{name}' for name in TARGETS))
  target.data.source = 'crossfit'
  target.data.batch_size = 8
  target.train.learning_rate = 5e-4
  target.train.steps = 60
  target.train.eval_every = 20
  config = ensembling_config(source, target)
  config.intermediate_steps = 40
  config.intermediate_every = 20
  config.batch_size = 16
  config.metrics = ('loss', 'el2n', 'logit_cosine', 'grand', 'cosine', 'euclidean', 'performance')
  config.merges = ('average', 'loss', 'logit_cosine', 'grand')
  return config.lock()
