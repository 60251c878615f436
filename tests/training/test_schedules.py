"""Schedules whose first steps move one group only."""

from __future__ import annotations

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.training import schedules
from pemt_jax.training.config import default_train_config

RULES = (('.*scores', 'scores'), ('.*norm', 'norm'), ('.*', 'frozen'))


def rates_of(multiplier, steps=1):
  config = default_train_config()
  config.first_group, config.first_steps = 'scores', steps
  with config.group_multipliers.unlocked():
    config.group_multipliers.scores = multiplier
  schedule = schedules.make_schedule(config, RULES)
  found = [schedule(step, 0.5, 2, 6) for step in range(7)]
  return {name: np.array([rates[name] for rates in found]) for name in found[0]}


@pytest.mark.parametrize('multiplier, stale', [(10.0, 0.0), (1.0, 1.5)])
def test_one_group_moves_first_and_the_schedule_starts_behind_it(multiplier, stale):
  rates = rates_of(multiplier)
  expected = np.array([0.0, 0.0, 0.25, 0.5, 0.375, 0.25, 0.125])
  np.testing.assert_allclose(rates['norm'], expected, rtol=1e-6)
  np.testing.assert_allclose(rates['scores'], [1.5, stale, *multiplier * expected[2:]], rtol=1e-6)


def test_there_may_be_several_first_steps():
  rates = rates_of(2.0, steps=3)
  np.testing.assert_allclose(rates['norm'], [0, 0, 0, 0, 0.25, 0.5, 0.375], rtol=1e-6)
  np.testing.assert_allclose(rates['scores'], [1.5, 1.5, 1.5, 0, 0.5, 1.0, 0.75], rtol=1e-6)


def test_without_a_first_group_the_schedule_is_one_rate():
  config = default_train_config()
  assert schedules.make_schedule(config, RULES) is schedules.linear_schedule


def test_an_unknown_first_group_is_refused():
  config = default_train_config()
  config.first_group = 'masks'
  with pytest.raises(UserError) as error:
    schedules.make_schedule(config, RULES)
  assert str(error.value) == ("config.train.first_group is 'masks'; the trainable rules have norm,"
                              ' scores.')
