"""Merging as algebra: laws of every method on random trees, and small cases worked by hand."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from pemt_jax.errors import UserError
from pemt_jax.experts.merging import arithmetic, fisher, search, weights

SOURCES = 3
SEEDS = st.integers(0, 2**20)
KEY = jax.random.key(7)


def random_sources(seed, sources=SOURCES):
  """A tree of leaves [source, ...] of several ranks and its theta_0."""
  rng = np.random.default_rng(seed)
  shapes = {'a': {'down': (2, 4, 3), 'scale': (5,)}, 'b': (1,)}
  leaf = lambda *lead: lambda shape: rng.normal(size=(*lead, *shape)).astype(np.float32)
  is_shape = lambda value: isinstance(value, tuple)
  return (jax.tree.map(leaf(sources), shapes, is_leaf=is_shape),
          jax.tree.map(leaf(), shapes, is_leaf=is_shape))


def select(tree, places):
  return jax.tree.map(lambda leaf: leaf[np.array(places)], tree)


def assert_close(first, second, rtol=1e-5, atol=1e-5):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), first, second)


def fishers_of(stacked):
  return jax.tree.map(lambda leaf: np.square(np.asarray(leaf)) + 0.1, stacked)


METHODS = {
    'average': lambda stacked, base: weights.average(stacked),
    'task_arithmetic': arithmetic.task_arithmetic,
    'ties': functools.partial(arithmetic.ties, keep=0.5),
    'ties_by_leaf': functools.partial(arithmetic.ties, keep=0.5, whole=False),
    'fisher': lambda stacked, base: fisher.fisher_mean(stacked, fishers_of(stacked), np.ones(
        jax.tree.leaves(stacked)[0].shape[0])),
}


@pytest.mark.parametrize('name', ['average', 'task_arithmetic', 'fisher', 'ties'])
@given(seed=SEEDS)
def test_one_source_merges_to_itself(name, seed):
  stacked, base = random_sources(seed, 1)
  method = functools.partial(arithmetic.ties, keep=1.0) if name == 'ties' else METHODS[name]
  assert_close(method(stacked, base), select(stacked, 0))


@pytest.mark.parametrize('name', ['average', 'fisher', 'ties'])
@given(seed=SEEDS)
def test_equal_sources_merge_to_themselves(name, seed):
  stacked, base = random_sources(seed, 1)
  equal = select(stacked, [0, 0, 0])
  method = functools.partial(arithmetic.ties, keep=1.0) if name == 'ties' else METHODS[name]
  assert_close(method(equal, base), select(stacked, 0))


@pytest.mark.parametrize('name', METHODS)
@given(seed=SEEDS, order=st.permutations(range(SOURCES)))
def test_the_order_of_sources_changes_nothing(name, seed, order):
  stacked, base = random_sources(seed)
  assert_close(METHODS[name](stacked, base), METHODS[name](select(stacked, order), base))


@given(seed=SEEDS, order=st.permutations(range(SOURCES)))
def test_weights_follow_their_sources(seed, order):
  stacked, _ = random_sources(seed)
  own = np.random.default_rng(seed).dirichlet(np.ones(SOURCES), 2)
  assert_close(weights.weighted_sum(stacked, own),
               weights.weighted_sum(select(stacked, order), own[:, np.array(order)]))
  assert_close(weights.weighted_sum(stacked, own[1]),
               select(weights.weighted_sum(stacked, own), 1))


@given(seed=SEEDS)
def test_a_one_hot_weight_selects(seed):
  stacked, _ = random_sources(seed)
  assert_close(weights.weighted_sum(stacked, np.eye(SOURCES)), stacked)


@given(seed=SEEDS, sign=st.sampled_from([1, -1]), temperature=st.floats(1e-3, 10))
def test_weights_sum_to_one_and_leave_the_target_out(seed, sign, temperature):
  scores = np.random.default_rng(seed).normal(size=(4, 4))
  names = ['a', 'b', 'c', 'd']
  found = weights.similarity_weights(scores, weights.leave_one_out(names, names), sign, temperature)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-5)
  assert not np.diag(found).any() and (found >= 0).all()
  for i in range(4):
    others = np.delete(np.arange(4), i)
    np.testing.assert_allclose(found[i, others], softmax(sign * scores[i, others] / temperature),
                               rtol=1e-3, atol=1e-6)


def test_a_target_outside_of_the_sources_uses_all():
  allowed = weights.leave_one_out(['x', 'b'], ['a', 'b', 'c'])
  np.testing.assert_array_equal(allowed, [[1, 1, 1], [1, 0, 1]])
  np.testing.assert_allclose(weights.mean_weights(allowed), [[1 / 3] * 3, [0.5, 0, 0.5]])


def test_families_divide_by_hand():
  families = {'one': ['a', 'b', 'c'], 'two': ['d', 'e']}
  names = ['a', 'b', 'c', 'd', 'e']
  found = weights.mean_weights(weights.within_families(['b', 'e'], names, families))
  np.testing.assert_allclose(found, [[0.5, 0, 0.5, 0, 0], [0, 0, 0, 1, 0]])


@pytest.mark.parametrize('call, words', [
    (lambda: weights.softmax_weights(np.ones(2), 2, 1.0), 'the sign of a similarity is 2'),
    (lambda: weights.softmax_weights(np.ones(2), 1, 0.0), 'the temperature is 0.0'),
    (lambda: weights.leave_one_out(['a'], ['a']), "target 'a' has no source but itself"),
    (lambda: weights.within_families(['a'], ['a', 'b'], {'x': ['b']}), "'a' is in no family"),
    (lambda: weights.within_families(['a'], ['a', 'b'], {'x': ['a'], 'y': ['a']}),
     "'a' is in 2 families (x, y)"),
    (lambda: arithmetic.ties({'a': jnp.ones((2, 1))}, {'a': jnp.ones(1)}, keep=0.0), 'is 0.0'),
    (lambda: arithmetic.dare({'a': jnp.ones((2, 1))}, {'a': jnp.ones(1)}, KEY, rate=1.0),
     'is 1.0'),
    (lambda: search.first_candidates(3, 3, np.random.default_rng(0)), 'is 3; give a number of at'),
])
def test_mistakes_are_one_sentence(call, words):
  with pytest.raises(UserError, match='^.*$') as error:
    call()
  assert words in str(error.value)


def test_task_arithmetic_by_hand():
  stacked, base = {'w': jnp.array([[3.0, 1.0], [0.0, 5.0]])}, {'w': jnp.array([1.0, 1.0])}
  found = arithmetic.task_arithmetic(stacked, base, 0.5)
  np.testing.assert_allclose(found['w'], [1 + 0.5 * (2 - 1), 1 + 0.5 * (0 + 4)])


def test_ties_by_hand():
  """Keep half: the vectors become [4, -3, 0, 0], [0, 2, 5, 0] and [0, -4, 0, 3]."""
  vectors = jnp.array([[4.0, -3.0, 1.0, 2.0], [1.0, 2.0, 5.0, -1.0], [-1.0, -4.0, 2.0, 3.0]])
  base = {'w': jnp.array([10.0, 10.0, 10.0, 10.0])}
  found = arithmetic.ties({'w': base['w'] + vectors}, base, keep=0.5, scale=2.0)
  np.testing.assert_allclose(found['w'], [10 + 8, 10 - 7, 10 + 10, 10 + 6])


def test_ties_ranks_the_whole_vector_unless_told_otherwise():
  stacked, base = ({'a': jnp.array([[1.0, 2.0]]), 'b': jnp.array([[3.0, 4.0]])},
                   {'a': jnp.zeros(2), 'b': jnp.zeros(2)})
  whole, by_leaf = (arithmetic.ties(stacked, base, keep=0.5, whole=w) for w in (True, False))
  np.testing.assert_allclose([*whole['a'], *whole['b']], [0, 0, 3, 4])
  np.testing.assert_allclose([*by_leaf['a'], *by_leaf['b']], [0, 2, 0, 4])


@given(seed=SEEDS)
def test_ties_of_equal_signs_that_keeps_all_is_the_mean(seed):
  stacked, base = random_sources(seed)
  positive = jax.tree.map(lambda leaf, own: own + np.abs(leaf), stacked, base)
  assert_close(arithmetic.ties(positive, base, keep=1.0), weights.average(positive))


@given(seed=SEEDS)
def test_dare_that_drops_nothing_is_task_arithmetic(seed):
  stacked, base = random_sources(seed)
  assert_close(arithmetic.dare(stacked, base, KEY, 0.0, 0.7),
               arithmetic.task_arithmetic(stacked, base, 0.7))
  assert_close(arithmetic.dare(stacked, base, KEY, 0.0, keep=0.5),
               arithmetic.ties(stacked, base, keep=0.5))


def test_dare_keeps_the_expected_sum_and_depends_on_its_key():
  stacked, base = {'w': jnp.ones((2, 20000))}, {'w': jnp.zeros(20000)}
  found = np.asarray(arithmetic.dare(stacked, base, KEY, 0.9)['w'])
  np.testing.assert_allclose(found.mean(), 2.0, atol=0.1)
  assert set(np.round(np.unique(found))) == {0.0, 10.0, 20.0}  # sources drop independently
  again = arithmetic.dare(stacked, base, KEY, 0.9)['w']
  other = arithmetic.dare(stacked, base, jax.random.key(8), 0.9)['w']
  np.testing.assert_array_equal(found, again)
  assert (found != np.asarray(other)).any()


def test_fisher_mean_by_hand():
  stacked = {'w': jnp.array([[2.0, 2.0, 2.0], [6.0, 6.0, 6.0]])}
  fishers = {'w': jnp.array([[3.0, 0.0, 0.0], [1.0, 5.0, 0.0]])}
  found = fisher.fisher_mean(stacked, fishers, np.ones(2), floor=1e-9)
  np.testing.assert_allclose(found['w'], [3.0, 6.0, 4.0], rtol=1e-6)
  weighted = fisher.fisher_mean(stacked, fishers, np.array([1.0, 3.0]), floor=1e-9)
  np.testing.assert_allclose(weighted['w'][0], 4.0, rtol=1e-6)


def test_squared_gradients_of_a_normal_are_known():
  """-log p = (m - y)^2 / 2 has the gradient m - y."""
  y = jnp.array([1.0, 2.0, 4.0])
  found = fisher.squared_gradients(lambda m, one: jnp.sum((m['w'] - one)**2) / 2,
                                   {'w': jnp.array([1.0])}, y)
  np.testing.assert_allclose(found['w'], [0.0 + 1.0 + 9.0])


def test_unit_scale_gives_each_source_a_mean_of_one():
  found = fisher.unit_scale({'a': jnp.array([[2.0, 4.0], [0.0, 0.0]]),
                             'b': jnp.array([[6.0], [0.0]])})
  np.testing.assert_allclose([*found['a'][0], *found['b'][0]], [0.5, 1.0, 1.5])
  np.testing.assert_allclose(found['a'][1], 0.0)


def quadratic(tree, batch):
  """Distance from a known mixture; two batches of different weight."""
  return batch['weight'] * jnp.sum((tree['w'] - batch['goal'])**2), batch['weight']


def test_search_finds_a_known_mixture_with_one_program():
  stacked, base = {'w': jnp.eye(3)}, {'w': jnp.zeros(3)}
  goal = jnp.array([0.2, 0.7, 0.1])
  losses = search.make_candidate_losses(quadratic)
  batches = [{'goal': goal, 'weight': jnp.float32(w)} for w in (1.0, 4.0)]
  found = search.search(stacked, base, losses, batches, count=64, rounds=5, seed=1)
  np.testing.assert_allclose(found.coefficients, goal, atol=0.1)
  assert losses._cache_size() == 1
  assert found.loss == found.losses.min() < found.losses[0]
  assert found.candidates.shape == (320, 3)
  np.testing.assert_allclose(found.candidates.sum(axis=1), 1.0, rtol=1e-5)
  spread = found.candidates.reshape(5, 64, 3).std(axis=1).max(axis=1)
  assert (spread[1:] < 0.7 * spread[:-1]).all(), spread  # each round stays closer to the best


def test_search_in_chunks_and_beyond_the_simplex():
  stacked, base = {'w': jnp.eye(2)}, {'w': jnp.zeros(2)}
  batch = [{'goal': jnp.array([0.9, 0.8]), 'weight': jnp.float32(1.0)}]
  whole, parts = (search.search(stacked, base, search.make_candidate_losses(quadratic, chunk),
                                batch, count=32, rounds=4, simplex=False) for chunk in (0, 5))
  np.testing.assert_allclose(whole.losses, parts.losses, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(whole.coefficients, [0.9, 0.8], atol=0.2)
