"""Laws of the shared layers: dropout by coordinates, relative positions, attention, norms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jax.extend import random as jax_random

from pemt_jax.models import layers
from pemt_jax.models.sites import AttentionInputs

KEY = jax.random.key(11)
drop = jax.jit(layers.dropout, static_argnums=(1,))


@pytest.mark.parametrize('rate', [0.1, 0.5])
@pytest.mark.parametrize('shape', [(8, 64, 97), (4, 6, 40, 40), (2, 1, 150, 151)])
def test_dropout_has_its_rate_and_keeps_the_mean(rate, shape):
  y = np.asarray(drop(jnp.ones(shape), rate, KEY))
  spread = (rate * (1 - rate) / y.size) ** 0.5
  assert abs((y == 0).mean() - rate) < 4 * spread
  np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
  slices = y.reshape(-1, *shape[-2:])
  assert len(np.unique(slices, axis=0)) == len(slices)
  # No axis repeats itself: neighbours agree as often as independent draws do.
  for axis in range(y.ndim):
    if shape[axis] > 1:
      zero = np.moveaxis(y == 0, axis, 0)
      both = (zero[1:] & zero[:-1]).mean()
      assert abs(both - rate**2) < 6 * (rate**2 / y.size) ** 0.5, axis
  if shape[-1] % 2 == 0 or len(shape) == 3:
    half = (shape[-1] + 1) // 2
    zero = y == 0
    both = (zero[..., :shape[-1] - half] & zero[..., half:]).mean()
    assert abs(both - rate**2) < 6 * (rate**2 / y.size) ** 0.5


@pytest.mark.parametrize('shape, more, offset_axes', [
    ((3, 5, 7), (1, 4, 0), (1,)), ((2, 3, 5, 6), (1, 0, 4, 3), (2, 3))])
def test_dropout_of_an_element_depends_on_its_coordinates_only(shape, more, offset_axes):
  long = tuple(a + b for a, b in zip(shape, more))
  inside = tuple(slice(0, size) for size in shape)
  expected = drop(jnp.ones(shape), 0.5, KEY)
  np.testing.assert_array_equal(drop(jnp.ones(long), 0.5, KEY)[inside], expected)
  shifted = tuple(slice(more[axis], None) if axis in offset_axes else slice(0, size)
                  for axis, size in enumerate(shape))
  offsets = {axis: jnp.int32(more[axis]) for axis in offset_axes}
  np.testing.assert_array_equal(drop(jnp.ones(long), 0.5, KEY, offsets)[shifted], expected)


@pytest.mark.parametrize('shape, offsets', [
    ((3, 5, 7), {1: 2, 2: 1}), ((2, 3, 5, 6), {2: 1}), ((3, 6), None)])
def test_noise_on_a_split_axis_is_the_same_and_needs_no_neighbour(monkeypatch, shape, offsets):
  make = lambda: jax.make_jaxpr(lambda: layers.uniform(KEY, shape, offsets))()
  whole = make()
  monkeypatch.setattr(layers, 'is_split', lambda axis: axis == 'tensor')
  split = make()
  assert 'concatenate' in str(whole) and 'concatenate' not in str(split)
  for one, other in zip(*(jax.core.eval_jaxpr(own.jaxpr, own.consts) for own in (whole, split))):
    np.testing.assert_array_equal(one, other)


def test_keys_and_names_give_other_noise_and_none_gives_none():
  x = jnp.ones((4, 8, 16))
  noises = [drop(x, 0.5, key) for key in (KEY, jax.random.key(12), layers.fold_name(KEY, 'a'),
                                          layers.fold_name(KEY, 'b'), jax.random.fold_in(KEY, 1))]
  for i, first in enumerate(noises):
    for second in noises[:i]:
      assert 0.4 < np.mean(np.asarray(first) != np.asarray(second)) < 0.6
  np.testing.assert_array_equal(layers.dropout(x, 0.5, None), x)
  np.testing.assert_array_equal(layers.dropout(x, 0.0, KEY), x)
  np.testing.assert_array_equal(jax.random.key_data(layers.fold_name(KEY, 'a')),
                                jax.random.key_data(layers.fold_name(KEY, 'a')))


def test_threefry_has_the_bits_of_jax():
  words = jax.random.bits(KEY, (2, 3, 5), jnp.uint32)
  expected = jax_random.threefry2x32_p.bind(*jax.random.key_data(KEY), *words)
  for mine, theirs in zip(layers.threefry(jax.random.key_data(KEY), *words), expected, strict=True):
    np.testing.assert_array_equal(mine, theirs)


def test_dropout_over_replicas_equals_separate_dropout():
  keys = jax.random.split(KEY, 3)
  x = jnp.ones((3, 2, 5, 6))
  offsets = jnp.array([0, 1, 2])
  mapped = jax.vmap(lambda x, key, o: layers.dropout(x, 0.5, key, {1: o}))(x, keys, offsets)
  for i in range(3):
    np.testing.assert_array_equal(mapped[i], drop(x[i], 0.5, keys[i], {1: offsets[i]}))


def one_bucket(distance, bidirectional, buckets, max_distance):
  """The bucket of one distance (key - query), by Raffel et al. 2020 in plain Python floats."""
  bucket = 0
  if bidirectional:
    buckets //= 2
    bucket, distance = (buckets if distance > 0 else 0), abs(distance)
  else:
    distance = max(-distance, 0)
  exact = buckets // 2
  if distance < exact:
    return bucket + distance
  grown = np.log(np.float32(distance / exact)) / np.float32(np.log(max_distance / exact))
  return bucket + min(exact + int(np.float32(grown * (buckets - exact))), buckets - 1)


@pytest.mark.parametrize('bidirectional', [True, False])
@pytest.mark.parametrize('buckets, max_distance', [(32, 128), (8, 20)])
def test_relative_buckets_follow_the_definition(bidirectional, buckets, max_distance):
  relative = np.arange(-200, 201)
  found = layers.relative_buckets(jnp.asarray(relative), bidirectional, buckets, max_distance)
  expected = [one_bucket(int(d), bidirectional, buckets, max_distance) for d in relative]
  # The logarithm may round to the other side exactly at a boundary of two buckets.
  assert np.abs(np.asarray(found) - expected).max() <= 1
  assert np.mean(np.asarray(found) != expected) < 0.01


@functools.partial(jax.jit, static_argnums=4)
def attend(query, key, value, bias, rate):
  return layers.attend(AttentionInputs(query, key, value), bias, None, rate, (None, {}))


@given(st.integers(0, 100))
def test_masked_keys_do_not_count_and_a_row_without_keys_is_finite(seed):
  rng = np.random.default_rng(seed)
  query, key, value = (rng.normal(size=(2, 1, 3, 4)).astype(np.float32) for _ in range(3))
  mask = np.array([[1, 1, 0], [0, 0, 0]], np.float32)
  bias = (1 - mask[:, None, None, :]) * layers.MASKED
  mixed = attend(query, key, value, bias, 0.0)
  assert np.isfinite(mixed).all()
  logits = query[0, 0] @ key[0, 0, :2].T
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  expected = weights / weights.sum(-1, keepdims=True) @ value[0, 0, :2]
  np.testing.assert_allclose(mixed[0], expected, rtol=1e-4, atol=1e-5)
