"""Laws of replicas made from a config, and of the figures read from batches."""

from __future__ import annotations

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.training import config as config_lib, experiment
from pemt_jax.training.progress import Progress


def test_total_steps_come_from_steps_or_epochs():
  config = config_lib.default_train_config()
  config.epochs = 2.5
  replica = experiment.make_replica('rte', config, 10, learning_rate=0.1)
  assert (replica.total_steps, replica.learning_rate, replica.seed) == (25, 0.1, 42)
  config.steps = 7
  assert experiment.make_replica('rte', config, 10, seed=3).total_steps == 7


def test_a_replica_without_steps_or_with_a_bad_name_is_an_error():
  config = config_lib.default_train_config()
  config.epochs = 0.01
  with pytest.raises(UserError, match="Replica 'rte' has 0 training steps"):
    experiment.make_replica('rte', config, 10)
  with pytest.raises(UserError, match="'a/b' cannot name a replica"):
    experiment.make_replica('a/b', config, 10)


def test_ids_and_tokens_leave_padding_out():
  batch = {'inputs_mask': np.array([[1, 1, 0], [0, 0, 0]]), 'targets_mask': np.array([[1], [0]]),
           'example_ids': np.array([7, -1])}
  assert experiment.batch_ids(batch) == [7]
  assert experiment.count_tokens(batch) == 3


def test_a_value_that_is_not_a_number_never_beats_a_number():
  config = config_lib.default_train_config()
  config.metric = 'score'
  progress, best = Progress(), []
  for step, value in enumerate([float('nan'), -5.0, float('nan'), -4.0], start=1):
    progress.step = step
    best.append(progress.record({'score': value}, config, 'a'))
  assert best == [True, True, False, True] and progress.best_step == 4
