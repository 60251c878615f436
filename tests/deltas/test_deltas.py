"""Laws of LoRA and adapters: formulas, initial values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pemt_jax.deltas.adapter import ACTIVATIONS, Adapter, Bottleneck, ParallelAdapter
from pemt_jax.deltas.lora import LoRA
from pemt_jax.models.sites import Site, SiteContext
from tests import tiny

MLP, EMBED = 50, 20
SITE = Site('encoder/mlp/wo', MLP, EMBED, 'mlp', 'embed', jnp.float32)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, MLP)).astype(np.float32)
NORMED = RNG.normal(size=(2, 3, EMBED)).astype(np.float32)
W = RNG.normal(size=(MLP, EMBED)).astype(np.float32)
CONTEXT = SiteContext(jnp.ones((2, 3)), jnp.ones(2), sublayer_input=NORMED)


def init(delta):
  variables = delta.module(SITE, 'delta').init(jax.random.key(0), lambda x: x @ W, X, CONTEXT)
  return nn.meta.unbox(variables)['params']


def act(delta, params):
  y, aux = delta.module(SITE, 'delta').apply({'params': params}, lambda x: x @ W, X, CONTEXT)
  assert not aux
  return y


def random_params(delta):
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: tiny.random_leaf(jax.tree_util.keystr(path, simple=True, separator='/'),
                                          leaf.shape, 0), init(delta))


@pytest.mark.parametrize('up_init', ['uniform', 'zero'])
def test_lora_starts_within_the_published_bounds(up_init):
  params = init(LoRA(rank=16, up_init=up_init))
  for leaf, bound in ((params['down'], MLP**-0.5), (params['up'], 16**-0.5)):
    assert np.abs(leaf).max() <= bound
    if up_init == 'uniform' or leaf is params['down']:
      assert np.abs(leaf).max() > 0.95 * bound
      assert abs(leaf.mean()) < 0.1 * bound
  assert (np.abs(params['up']).max() == 0) == (up_init == 'zero')


def test_lora_adds_a_scaled_low_rank_product():
  delta = LoRA(rank=4, scaling=0.25)
  params = random_params(delta)
  expected = X @ (W + 0.25 * params['down'] @ params['up'])
  np.testing.assert_allclose(act(delta, params), expected, rtol=1e-4, atol=1e-4)


def layer_norm(x, params):
  mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + 1e-5) * params['scale'] + params['bias']


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('pre, post', [(False, False), (True, False), (False, True)])
def test_adapter_stands_behind_the_projection_with_a_residual(activation, pre, post):
  delta = Adapter(Bottleneck(6, activation, pre, post))
  params = random_params(delta)
  y = X @ W
  hidden = layer_norm(y, params['pre_norm']) if pre else y
  hidden = ACTIVATIONS[activation](hidden @ params['down']['kernel'] + params['down']['bias'])
  out = hidden @ params['up']['kernel'] + params['up']['bias']
  out = layer_norm(out, params['post_norm']) if post else out
  np.testing.assert_allclose(act(delta, params), y + out, rtol=1e-3, atol=1e-3)


def test_activations_are_the_named_functions():
  x = np.linspace(-3, 3, 13).astype(np.float32)
  tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  erf = 0.5 * x * (1 + np.asarray(jax.scipy.special.erf(x / np.sqrt(2))))
  expected = {'gelu_new': tanh, 'gelu': erf, 'relu': np.maximum(x, 0),
              'swish': x / (1 + np.exp(-x))}
  assert expected.keys() == ACTIVATIONS.keys()
  for name, values in expected.items():
    np.testing.assert_allclose(ACTIVATIONS[name](x), values, rtol=1e-4, atol=1e-6, err_msg=name)


def test_parallel_adapter_stands_beside_the_projection_and_carries_its_input():
  delta = ParallelAdapter(Bottleneck(5, 'relu'))
  params = random_params(delta)
  hidden = np.maximum(X @ params['down']['kernel'] + params['down']['bias'], 0)
  expected = X @ W + hidden @ params['up']['kernel'] + params['up']['bias'] + NORMED
  np.testing.assert_allclose(act(delta, params), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('delta', [Adapter(Bottleneck(15)), ParallelAdapter(Bottleneck(15))])
def test_adapters_start_small_with_zero_biases(delta):
  params = init(delta)
  for part in ('down', 'up'):
    assert abs(params[part]['kernel'].std() - 0.01) < 0.002
    assert not params[part]['bias'].any()
