"""Attention that starts by matching tokens and by looking at neighbours."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pemt_jax.models.attention_start import matching_attention
from pemt_jax.models.t5 import T5
from pemt_jax.trees import flatten
from tests import tiny

TOKENS = 40


def params_of(config):
  return tiny.variables_of(T5(config))['params']


@pytest.mark.parametrize('kv', [8, 16, 32], ids=['narrow', 'square', 'wide'])
def test_a_token_looks_for_itself(kv):
  config = dataclasses.replace(tiny.CONFIG, embed=64, heads=4, kv=kv)
  before = flatten(params_of(config))
  after = flatten(matching_attention(params_of(config), config, 0))
  query, key = (after[f'decoder/layers/cross_attention/{name}/kernel'] for name in 'qk')
  assert query.shape == before['decoder/layers/cross_attention/q/kernel'].shape
  tokens = np.random.default_rng(0).normal(size=(TOKENS, config.embed))
  for layer_query, layer_key in zip(query, key, strict=True):
    logits = (tokens @ layer_query) @ (tokens @ layer_key).T / config.heads
    own = np.diag(logits)
    np.testing.assert_allclose(own.mean(), 8.0, rtol=0.1)
    assert (np.argmax(logits, axis=1) == np.arange(TOKENS)).mean() > 0.9


def test_heads_look_at_neighbours_and_the_rest_stays():
  config = dataclasses.replace(tiny.CONFIG, heads=4, kv=4, relative_buckets=32,
                               relative_max_distance=128)
  before = flatten(params_of(config))
  after = flatten(matching_attention(params_of(config), config, 0))
  changed = {path for path, leaf in after.items() if not np.array_equal(leaf, before[path])}
  assert changed == {'decoder/layers/cross_attention/q/kernel',
                     'decoder/layers/cross_attention/k/kernel',
                     'encoder/relative_bias/embedding', 'decoder/relative_bias/embedding'}
  # Buckets of earlier keys are their distance; those of later ones, in the encoder, stand half a
  # table behind.
  half = config.relative_buckets // 2
  for stack, favoured in (('encoder', {(1, 0), (half + 1, 1), (2, 2), (3, 2), (half + 2, 3),
                                       (half + 3, 3)}), ('decoder', {(1, 0), (2, 1)})):
    path = f'{stack}/relative_bias/embedding'
    grown = np.argwhere(np.abs(np.array(after[path]) - before[path]) > 1e-6)
    assert {tuple(map(int, place)) for place in grown} == favoured
    np.testing.assert_allclose([(after[path] - before[path])[place] for place in favoured], 4.0,
                               rtol=1e-6)
