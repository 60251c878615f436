"""A run of seconds that does what runs do: two replicas, dropout, evaluations, checkpoints."""

from __future__ import annotations

import ml_collections as mlc

from configs.playground.common import play


def get_config() -> mlc.ConfigDict:
  """PEMT stage 1 on two tasks of the playground and a tiny random backbone with dropout."""
  config = play('pemt/stage1', ('omen', 'tide'))
  config.model.weights = 'random'
  with config.model.shape.unlocked():
    config.model.shape.update(embed=16, kv=4, heads=2, mlp=32, dropout=0.1)
  config.data.batch_size = 8
  config.data.eval_batch_size = 16
  config.data.max_train_rows = 40
  config.data.max_validation_rows = 16
  config.data.max_test_rows = 16
  config.method.rank = 2
  config.method.alpha = 4.0
  config.method.reduction = 8
  config.train.steps = 18
  config.train.eval_every = 6
  config.train.log_every = 2
  config.train.checkpoint_every = 3
  config.train.metric, config.train.greater_is_better = 'loss', False
  config.train.learning_rate = 1e-2
  config.train.tensorboard = False
  config.train.progress = 'never'
  return config
