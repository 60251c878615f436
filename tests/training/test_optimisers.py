"""Laws of the optimiser, the clip and the schedules, against double-precision formulas."""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pemt_jax.errors import UserError
from pemt_jax.training import config as config_lib
from pemt_jax.training import optimisers
from pemt_jax.training.schedules import SCHEDULES


def reference_adamw(param, grads, rates, decay, epsilon):
  """The published update, tensor by tensor, in double precision."""
  first, second = np.zeros_like(param), np.zeros_like(param)
  for t, (grad, rate) in enumerate(zip(grads, rates), start=1):
    first = 0.9 * first + 0.1 * grad
    second = 0.999 * second + 0.001 * grad ** 2
    size = rate * np.sqrt(1 - 0.999 ** t) / (1 - 0.9 ** t)
    param = param - size * first / (np.sqrt(second) + epsilon)
    param = param - rate * decay * param
  return param


def run(options, params, grads, rates, rules=optimisers.EVERYTHING):
  tx = optimisers.adamw(options, rules)
  state = tx.init(params)
  for grad, rate in zip(grads, rates):
    updates, state = tx.update(grad, state, params, learning_rate=rate)
    params = optax.apply_updates(params, updates)
  return params, state


def test_adamw_equals_the_published_update_and_not_optax():
  rng = np.random.default_rng(0)
  params = {'a': {'kernel': rng.normal(size=(3, 4)), 'bias': rng.normal(size=4)}}
  grads = [jax.tree.map(lambda x: rng.normal(size=x.shape) * 1e-6, params) for _ in range(6)]
  rates = [0.1, 0.2, 0.3, 0.2, 0.1, 0.05]
  options = optimisers.AdamWOptions(epsilon=1e-6, weight_decay=0.05, no_decay=('.*/bias',))
  found, _ = run(options, *jax.tree.map(jnp.float32, (params, grads)), rates)
  for name, decay in (('kernel', 0.05), ('bias', 0.0)):
    expected = reference_adamw(params['a'][name], [g['a'][name] for g in grads], rates, decay, 1e-6)
    np.testing.assert_allclose(found['a'][name], expected, rtol=2e-6, atol=1e-7)
  other = optax.adamw(0.1, eps=1e-6).update
  params = {'x': jnp.ones(1)}
  mine, _ = run(optimisers.AdamWOptions(epsilon=1e-6), params, [{'x': jnp.full(1, 1e-6)}], [0.1])
  theirs, _ = other({'x': jnp.full(1, 1e-6)}, optax.adamw(0.1, eps=1e-6).init(params), params)
  # By hand: sqrt(0.001) / (sqrt(0.001) + 1) = 0.030653 of the rate, against one half of it.
  np.testing.assert_allclose(1 - mine['x'], 0.0030653, rtol=1e-4)
  np.testing.assert_allclose(theirs['x'], -0.05, rtol=1e-2)


def test_decay_acts_on_the_updated_parameter():
  found, _ = run(optimisers.AdamWOptions(weight_decay=1.0), {'x': jnp.array([2.0])},
                 [{'x': jnp.array([1.0])}], [0.5])
  # By hand: 2 - 0.5 = 1.5, then 1.5 - 0.5 * 1.5; the other order gives 0.5.
  np.testing.assert_allclose(found['x'], [0.75], rtol=1e-5)


@pytest.mark.parametrize('counters, steps, moved', [
    ('always', 4, True), ('from_first_gradient', 3, True), ('nonzero_gradient', 2, False)])
def test_counters_decide_when_a_tensor_steps(counters, steps, moved):
  grads = [{'x': jnp.array([g])} for g in (0.0, 1.0, 0.5, 0.0)]
  options = optimisers.AdamWOptions(counters=counters, weight_decay=0.1)
  three, _ = run(options, {'x': jnp.array([1.0])}, grads[:3], [0.1] * 3)
  four, state = run(options, {'x': jnp.array([1.0])}, grads, [0.1] * 4)
  assert int(state.count['x']) == steps
  assert bool(four['x'][0] != three['x'][0]) == moved
  if counters == 'from_first_gradient':
    expected = reference_adamw(np.ones(1), [np.array([g]) for g in (1.0, 0.5, 0.0)], [0.1] * 3,
                               0.1, 1e-8)
    np.testing.assert_allclose(four['x'], expected, rtol=1e-5)


def test_rows_count_apart():
  options = optimisers.AdamWOptions(counters='nonzero_gradient', row_axes=(('scores', 1),))
  grads = [{'scores': jnp.array([[1.0, 1.0], [0.0, 0.0]])}, {'scores': jnp.array([[2.0, 0.0]] * 2)}]
  found, state = run(options, {'scores': jnp.zeros((2, 2))}, grads, [0.1, 0.1])
  np.testing.assert_array_equal(state.count['scores'], [2, 1])
  alone, _ = run(optimisers.AdamWOptions(), {'row': jnp.zeros(2)}, [{'row': jnp.array([2.0, 0.0])}],
                 [0.1])
  np.testing.assert_allclose(found['scores'][1], alone['row'], rtol=1e-6)


def test_groups_multiply_the_rate_or_name_their_own():
  rules = (('a', 'base'), ('b', 'fast'))
  params, grads = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}, [{'a': jnp.ones(1), 'b': jnp.ones(1)}]
  found, _ = run(optimisers.AdamWOptions(multipliers=(('fast', 3.0),)), params, grads, [0.1], rules)
  np.testing.assert_allclose([found['a'][0], found['b'][0]], [-0.1, -0.3], rtol=1e-5)
  found, _ = run(optimisers.AdamWOptions(), params, grads, [{'base': 0.2, 'fast': 0.0}], rules)
  np.testing.assert_allclose([found['a'][0], found['b'][0]], [-0.2, 0.0], rtol=1e-5)


def test_a_multiplier_without_its_group_is_an_error():
  config = config_lib.default_train_config()
  config.group_multipliers.router = 2.0
  with pytest.raises(UserError, match="names the group 'router'; the trainable rules have base"):
    optimisers.make_optimiser(config)


def test_clip_scales_to_the_limit_like_torch():
  torch = pytest.importorskip('torch')
  values = [np.array([3.0, 0.0], np.float32), np.array([[4.0]], np.float32)]
  leaves = [torch.zeros(v.shape, requires_grad=True) for v in values]
  for leaf, value in zip(leaves, values):
    leaf.grad = torch.tensor(value)
  torch.nn.utils.clip_grad_norm_(leaves, 1.0)
  clipped, norm = optimisers.clip_by_global_norm(dict(zip('ab', map(jnp.array, values))), 1.0)
  assert float(norm) == 5.0
  for name, leaf in zip('ab', leaves):
    np.testing.assert_allclose(clipped[name], leaf.grad.numpy(), rtol=1e-6)
  same, _ = optimisers.clip_by_global_norm({'a': jnp.array([0.3])}, 1.0)
  np.testing.assert_array_equal(same['a'], jnp.array([0.3]))


@pytest.mark.parametrize('name, expected', [
    ('linear', [0.0, 0.5, 1.0, 0.75, 0.0, 0.0]), ('constant', [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
    ('cosine', [0.0, 0.5, 1.0, 0.5 * (1 + np.cos(np.pi / 4)), 0.0, 0.0]),
    ('inverse_sqrt', [0.0, 0.5, 1.0, np.sqrt(2 / 4), np.sqrt(2 / 10), np.sqrt(2 / 12)])])
def test_schedules_at_known_steps(name, expected):
  steps = jnp.array([0, 1, 2, 4, 10, 12])
  found = jax.jit(SCHEDULES[name])(steps, 2.0, jnp.full(6, 2), jnp.full(6, 10))
  np.testing.assert_allclose(found, 2.0 * np.array(expected), rtol=1e-6, atol=1e-7)


def test_linear_schedule_without_warm_up_starts_at_the_peak():
  np.testing.assert_allclose(SCHEDULES['linear'](jnp.arange(3), 1.0, 0, 2), [1.0, 0.5, 0.0])


def test_config_values_out_of_range_are_errors():
  config = config_lib.default_train_config()
  config_lib.check_train_config(config)
  for name, value in (('steps', -1), ('schedule', 'step'), ('eval_every', 0), ('keep', 0),
                      ('optimizer', 'adam')):
    wrong = copy.deepcopy(config)
    wrong[name] = value
    with pytest.raises(UserError, match=f'config.train.{name} is .?{value}'):
      config_lib.check_train_config(wrong)
