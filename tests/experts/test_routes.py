"""Routes: selection, exploration, disabled experts, random tables, the distance of experts."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from pemt_jax.errors import UserError
from pemt_jax.experts import routes

SHAPE = (3, 4, 5)
LOGITS = hnp.arrays(np.float32, SHAPE, elements=st.floats(-8, 8, width=32))
key = jax.random.key


@given(LOGITS, st.sampled_from(routes.MODES), st.sampled_from([0.1, 1.0, 300.0]))
def test_routes_sum_to_one_and_follow_the_logits(logits, mode, temperature):
  noise = routes.gumbel_noise(key(0), SHAPE)
  for given_noise in (None, noise):
    chosen = np.asarray(routes.select(logits, mode, temperature, given_noise))
    np.testing.assert_allclose(chosen.sum(-1), 1.0, atol=1e-6)
    assert chosen.min() >= 0.0
    read = logits if given_noise is None or mode == 'softmax' else logits + np.asarray(noise)
    best = np.take_along_axis(chosen, read.argmax(-1)[..., None], -1)[..., 0]
    assert np.all(best >= chosen.max(-1) - 1e-6)
    if mode == 'gumbel_softmax_st':
      assert set(np.unique(chosen)) <= {0.0, 1.0}
      continue
    shifted = (read - read.max(-1, keepdims=True)) / np.float32(temperature)
    expected = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    np.testing.assert_allclose(chosen, expected, atol=2e-6)


def test_straight_through_has_the_gradient_of_the_softmax():
  logits, noise = jax.random.normal(key(1), SHAPE), routes.gumbel_noise(key(2), SHAPE)
  weights = jax.random.normal(key(3), SHAPE)
  grad = lambda mode: jax.grad(
      lambda x: jnp.sum(routes.select(x, mode, 0.7, noise) * weights))(logits)
  np.testing.assert_allclose(grad('gumbel_softmax_st'), grad('gumbel_softmax'), atol=1e-6)
  assert np.abs(grad('gumbel_softmax_st')).max() > 1e-3


def test_noise_is_drawn_where_it_is_needed():
  assert routes.selection_noise('softmax', key(0), SHAPE) is None
  assert routes.selection_noise('gumbel_softmax', None, SHAPE) is None
  noise = routes.selection_noise('gumbel_softmax', key(0), (200, 10, 10))
  # Mean and variance of the standard Gumbel distribution.
  assert np.mean(noise) == pytest.approx(0.5772, abs=0.03)
  assert np.var(noise) == pytest.approx(np.pi ** 2 / 6, abs=0.05)
  with pytest.raises(UserError, match="router mode is 'argmax'; choose one of softmax"):
    routes.select(jnp.zeros(SHAPE), 'argmax', 1.0)


@given(LOGITS, st.integers(0, 2**15 - 1))
def test_disabled_experts_have_no_weight_and_the_others_keep_their_ratios(logits, bits):
  closed = np.array([bits >> i & 1 for i in range(15)], np.float32).reshape(3, 5)
  closed[:, bits % 5] = 0.0
  chosen = np.asarray(routes.select(routes.override(logits, closed), 'softmax', 2.0))
  before = np.asarray(routes.select(logits, 'softmax', 2.0)) * (1 - closed[:, None])
  np.testing.assert_allclose(chosen, before / before.sum(-1, keepdims=True), atol=1e-5)


def test_a_layer_without_experts_is_refused():
  closed = np.zeros((3, 1, 5))
  closed[1] = 1
  with pytest.raises(UserError, match='all experts of layer 1 are disabled; leave at least one'):
    routes.override(jnp.zeros(SHAPE), closed)


def test_exploration_replaces_rows_without_gradient():
  shape = (40, 50, 4)
  logits = jax.random.normal(key(0), shape)
  for how in routes.FILLS:
    mask, values = routes.draw_exploration(key(1), shape, 0.3, how)
    assert np.mean(mask) == pytest.approx(0.3, abs=0.05)
    explored = lambda x, mask=mask, values=values: routes.replace_routes(
        jax.nn.softmax(x), mask, values)
    chosen = np.asarray(explored(logits))
    np.testing.assert_array_equal(chosen[~mask], np.asarray(jax.nn.softmax(logits))[~mask])
    assert set(np.unique(chosen[mask])) == ({0.25} if how == 'uniform' else {0.0, 1.0})
    np.testing.assert_allclose(chosen.sum(-1), 1.0, atol=1e-6)
    grads = np.asarray(jax.grad(lambda x: jnp.sum(explored(x) ** 2))(logits))
    assert not np.any(grads[mask]) and np.all(np.any(grads[~mask], axis=-1))
    np.testing.assert_array_equal(
        routes.explore(jax.nn.softmax(logits), key(1), 0.3, how), chosen)
  with pytest.raises(UserError, match="exploration is 'even'; choose one of onehot, uniform"):
    routes.explore(logits, key(0), 0.1, 'even')


def test_temperatures_decay_to_the_minimum():
  assert routes.annealed(0, 300.0, 1.0, 1e-4) == 300.0
  assert routes.annealed(57_037, 300.0, 1.0, 1e-4) > routes.annealed(57_038, 300.0, 1.0, 1e-4)
  assert routes.annealed(57_039, 300.0, 1.0, 1e-4) == 1.0
  steps = np.arange(0, 9000, 500)
  traced = jax.jit(lambda step: routes.annealed(step, 2.0, 0.1, 3e-4))(jnp.asarray(steps))
  np.testing.assert_allclose(traced, routes.annealed(steps, 2.0, 0.1, 3e-4), rtol=1e-5)


def test_routes_without_a_router():
  np.testing.assert_array_equal(routes.average_routes(SHAPE), np.full(SHAPE, 0.2, np.float32))
  drawn = np.asarray(routes.instance_random_routes(key(0), (20, 50, 4)))
  assert set(np.unique(drawn)) == {0.0, 1.0} and np.all(drawn.sum(-1) == 1.0)
  np.testing.assert_allclose(drawn.mean((0, 1)), 0.25, atol=0.06)
  first, second = routes.split_stacks(drawn, 15)
  assert first.shape == (15, 50, 4) and second.shape == (5, 50, 4)


def test_random_tables_repeat_the_draws_of_the_global_generator():
  table = routes.task_random_table(3, 4, 5, 2, seed=42)
  np.random.seed(42)
  for task, layer in itertools.product(range(3), range(4)):
    expected = np.zeros(5)
    expected[np.random.choice(5, 2, replace=False)] = 0.5
    np.testing.assert_array_equal(table[task, layer], expected)
  rows = routes.rows_of_table(jnp.asarray(table), jnp.array([2, 0, 2]))
  np.testing.assert_array_equal(rows[:, 0], table[2])
  np.testing.assert_array_equal(rows[:, 1], table[0])
  with pytest.raises(UserError, match='of a random route is 6; give a number from 1 to 5'):
    routes.task_random_table(3, 4, 5, 6, seed=0)


def test_distance_of_experts():
  random = np.random.default_rng(0)
  tree = {'a': {'kernel': random.normal(size=(2, 4, 3, 2))}, 'bias': random.normal(size=(2, 4, 3))}
  expected = sum(np.linalg.norm(leaf[layer, e] - leaf[layer, f]) / 6
                 for leaf in (tree['a']['kernel'], tree['bias']) for layer in range(2)
                 for e, f in itertools.combinations(range(4), 2))
  tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
  assert routes.expert_distance(tree, before=1) == pytest.approx(expected, rel=1e-5)
  layer = lambda i: routes.expert_distance(jax.tree.map(lambda leaf: leaf[i], tree))
  assert layer(0) + layer(1) == pytest.approx(expected, rel=1e-5)
  same = jax.tree.map(lambda leaf: leaf.at[:, 1].set(leaf[:, 0]), tree)
  grads = jax.grad(routes.expert_distance)(jax.tree.map(lambda leaf: leaf[0, :2], same))
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))  # neither NaN nor a pull
  assert routes.expert_distance({'one': jnp.ones((1, 3))}) == 0.0
