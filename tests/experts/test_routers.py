"""Routers: sizes, first values, dropout, mistakes. Their logits: tests/parity/test_taskmoe.py."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts.routers import KINDS, RouterSpec, route_logits, router_weights

# Parameters of the published routers: 3 experts, 12 layers, hidden 64; vectors of 768 or 128.
COUNTS = {
    768: {'linear': 51_556, 'rnn': 116_355, 'gru': 329_859, 'lstm': 436_611,
          'transformer': 2_476_099, 'linear_layer_specific': 592_932,
          'rnn_layer_specific': 607_619, 'gru_layer_specific': 640_899,
          'lstm_layer_specific': 657_539, 'transformer_layer_specific': 616_003},
    128: {'linear': 10_596, 'lstm': 101_251, 'transformer': 85_059,
          'linear_layer_specific': 101_412, 'transformer_layer_specific': 124_483}}


@functools.partial(jax.jit, static_argnums=0)
def values_of(spec):
  names = router_weights(spec)
  keys = jax.random.split(jax.random.key(0), len(names))
  return {name: weight.init(key, weight.shape, jnp.float32)
          for key, (name, weight) in zip(keys, names.items(), strict=True)}


def test_sizes_are_those_of_the_published_routers():
  for inputs, counts in COUNTS.items():
    for kind, count in counts.items():
      weights = router_weights(RouterSpec(kind, inputs, 64, 12, 3))
      assert sum(math.prod(weight.shape) for weight in weights.values()) == count, kind
      assert all(len(weight.axes) == len(weight.shape) for weight in weights.values())
  assert COUNTS[768].keys() == set(KINDS)


def test_first_values():
  values = values_of(RouterSpec('lstm', 48, 64, 6, 3))
  assert np.std(values['positions/embedding']) == pytest.approx(0.02, rel=0.2)
  assert np.std(values['out/kernel']) == pytest.approx(0.02, rel=0.2)
  assert not np.any(values['out/bias'])
  for name in ('forward/input_kernel', 'backward/hidden_kernel', 'forward/hidden_bias'):
    assert 0.9 / 8 < np.abs(values[name]).max() <= 1 / 8, name
  values = values_of(RouterSpec('transformer', 48, 64, 6, 3))
  bound = math.sqrt(6 / (4 * 48))
  assert 0.95 * bound < np.abs(values['attention/kernel']).max() <= bound
  assert np.std(values['wi/kernel']) == pytest.approx(0.02, rel=0.2)
  assert np.all(values['mlp_norm/scale'] == 1.0) and not np.any(values['mlp_norm/bias'])


def test_first_routes_are_almost_even():
  spec = RouterSpec('linear_layer_specific', 32, 16, 4, 3)
  logits = route_logits(spec, values_of(spec), jax.random.normal(jax.random.key(1), (5, 32)))
  assert logits.shape == (4, 5, 3) and logits.dtype == jnp.float32
  assert 0 < np.abs(logits).max() < 0.1
  assert not np.allclose(logits[0], logits[1])  # layers have networks of their own


def test_only_transformers_drop_and_only_with_a_key():
  vectors, keys = jax.random.normal(jax.random.key(1), (3, 16)), jax.random.split(jax.random.key(2))
  for kind, drops in (('linear', False), ('transformer', True)):
    spec = RouterSpec(kind, 16, 8, 3, 2)
    values = {name: value + 0.1 for name, value in values_of(spec).items()}
    logits = jax.jit(lambda key, spec=spec, values=values: route_logits(spec, values, vectors, key))
    first, second, plain = logits(keys[0]), logits(keys[1]), logits(None)
    np.testing.assert_array_equal(first, logits(keys[0]))
    assert np.allclose(first, second) != drops and np.allclose(first, plain) != drops


def test_mistakes():
  with pytest.raises(UserError, match="router is 'mlp'; choose one of linear, linear_layer_spec"):
    RouterSpec('mlp', 8, 8, 2, 2)
  with pytest.raises(UserError, match='router experts is 0; give a number at least 1'):
    RouterSpec('linear', 8, 8, 2, 0)
  with pytest.raises(UserError, match="'transformer' reads vectors of 6 numbers with 4 heads"):
    RouterSpec('transformer', 6, 8, 2, 2)
  RouterSpec('transformer_layer_specific', 6, 8, 2, 2)
