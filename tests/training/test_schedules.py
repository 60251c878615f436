"""Schedules whose first steps move one group only."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.training import schedules
from pemt_jax.training.config import check_train_config, default_train_config

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
  schedule = schedules.make_schedule(default_train_config(), RULES)
  rates = [float(schedule(step, 0.5, 2, 6)) for step in range(7)]
  np.testing.assert_allclose(rates, [0.0, 0.25, 0.5, 0.375, 0.25, 0.125, 0.0], rtol=1e-6)


def test_a_linear_rate_stays_at_its_floor():
  config = default_train_config()
  config.learning_rate, config.schedule_floor = 0.5, 0.2
  check_train_config(config)
  schedule = schedules.make_schedule(config, RULES)
  rates = [float(schedule(step, 0.5, 2, 6)) for step in range(9)]
  np.testing.assert_allclose(rates, [0.0, 0.25, 0.5, 0.375, 0.25, 0.2, 0.2, 0.2, 0.2], rtol=1e-6)
  config.schedule_floor = 0.6
  with pytest.raises(UserError, match='config.train.schedule_floor is 0.6'):
    check_train_config(config)


@pytest.mark.parametrize('schedule, options, name, arguments', [
    ('polynomial', {'schedule_power': 2.5, 'schedule_end': 1e-3},
     'get_polynomial_decay_schedule_with_warmup', {'power': 2.5, 'lr_end': 1e-3}),
    ('polynomial', {}, 'get_polynomial_decay_schedule_with_warmup', {}),
    ('cosine_w_restarts', {'schedule_cycles': 3},
     'get_cosine_with_hard_restarts_schedule_with_warmup', {'num_cycles': 3}),
    ('cosine_w_restarts', {}, 'get_cosine_with_hard_restarts_schedule_with_warmup', {})])
def test_rates_are_those_of_transformers(schedule, options, name, arguments):
  torch = pytest.importorskip('torch')
  optimization = pytest.importorskip('transformers.optimization')
  peak, warmup, total = 0.5, 3, 15
  optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
  theirs = getattr(optimization, name)(optimizer, warmup, total, **arguments)
  config = default_train_config()
  config.learning_rate, config.schedule = peak, schedule
  config.update(options)
  check_train_config(config)
  ours = jax.jit(schedules.make_schedule(config, RULES))
  for step in range(total + 3):
    np.testing.assert_allclose(ours(step, peak, warmup, total), theirs.get_last_lr()[0],
                               rtol=2e-6, atol=1e-9, err_msg=str(step))
    optimizer.step()
    theirs.step()


def test_a_last_rate_above_the_peak_is_refused():
  config = default_train_config()
  config.schedule, config.schedule_end = 'polynomial', 1.0
  with pytest.raises(UserError, match='config.train.schedule_end is 1.0, which is out of range'):
    check_train_config(config)


def test_an_unknown_first_group_is_refused():
  config = default_train_config()
  config.first_group = 'masks'
  with pytest.raises(UserError) as error:
    schedules.make_schedule(config, RULES)
  assert str(error.value) == ("config.train.first_group is 'masks'; the trainable rules have norm,"
                              ' scores.')
