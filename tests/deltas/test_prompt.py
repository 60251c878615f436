"""Laws of prompts and of the correlation with source prompts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pemt_jax.deltas.prompt import Prompt, correlate
from pemt_jax.models.sites import Site, SiteContext
from tests import tiny

EMBED, LENGTHS = 8, (4, 6, 5)
SITE = Site('encoder/embed', 1, EMBED, 'vocab', 'embed', jnp.float32)
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(5, EMBED)).astype(np.float32)
SOURCES = [RNG.normal(size=(length, EMBED)).astype(np.float32) for length in LENGTHS]
STACKED = np.stack([np.concatenate([np.full((6 - len(p), EMBED), 7.0, np.float32), p])
                    for p in SOURCES])
SOURCES_MASK = np.stack([np.arange(6) >= 6 - n for n in LENGTHS]).astype(np.float32)
EMBEDDED = RNG.normal(size=(2, 3, EMBED)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def run(config, table, mask, key):
  """(embeddings with the prompt in front, auxiliaries)."""
  variables = {'params': {'table': table}, 'constants': {'mask': mask}}
  if config.source_lengths:
    variables['params']['sources'] = STACKED
    variables['constants']['sources_mask'] = SOURCES_MASK
  context = SiteContext(jnp.ones((2, 3)), jnp.ones(2), key=key)
  tokens = jnp.zeros((2, 3), jnp.int32)
  return config.module(SITE, 'prompt').apply(variables, lambda t: EMBEDDED, tokens, context)


def softmax(z):
  weights = np.exp(z - z.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def test_a_plain_prompt_stands_in_front_of_every_row():
  out, aux = run(Prompt(5), TABLE, jnp.ones(5), None)
  np.testing.assert_array_equal(out[:, 5:], EMBEDDED)
  np.testing.assert_array_equal(out[:, :5], np.stack([TABLE, TABLE]))
  assert aux['prompt_mask'].tolist() == [1] * 5


def test_rows_are_the_target_plus_its_attention_to_every_source():
  out, aux = run(Prompt(5, LENGTHS), TABLE, jnp.ones(5), None)
  expected = TABLE.astype(np.float64)
  for source in SOURCES:
    expected = expected + softmax(TABLE.astype(np.float64) @ source.T) @ source
  np.testing.assert_allclose(out[0, :5], expected, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(aux['correlation'].sum(-1), 1.0, rtol=1e-6)
  assert not aux['correlation'][SOURCES_MASK[:, None] * np.ones((1, 5, 1)) == 0].any()


def test_correlation_is_float32_for_large_embeddings():
  table = 30 * TABLE
  weights = correlate(table.astype(jnp.bfloat16).astype(np.float32), STACKED, SOURCES_MASK)
  assert weights.dtype == jnp.float32 and np.isfinite(weights).all()


def test_gradients_reach_the_target_by_both_terms_and_no_other_way():
  config = Prompt(5, LENGTHS)
  probe = RNG.normal(size=(5, EMBED)).astype(np.float32)

  def by_hand(table):
    rows = table
    for source in SOURCES:
      rows = rows + jax.nn.softmax(table @ source.T) @ source
    return jnp.sum(rows * probe)

  found = jax.grad(lambda t: jnp.sum(run(config, t, jnp.ones(5), None)[0][0, :5] * probe))(TABLE)
  np.testing.assert_allclose(found, jax.jit(jax.grad(by_hand))(TABLE), rtol=1e-4, atol=1e-5)


def test_padding_rows_change_no_real_row():
  key = jax.random.key(2)
  padded = np.concatenate([np.full((2, EMBED), 9.0, np.float32), TABLE])
  mask = jnp.array([0, 0, 1, 1, 1, 1, 1], jnp.float32)
  for chosen in (None, key):
    short, _ = run(Prompt(5, LENGTHS), TABLE, jnp.ones(5), chosen)
    long, aux = run(Prompt(7, LENGTHS), padded, mask, chosen)
    np.testing.assert_allclose(long[:, 2:], short, rtol=1e-6, atol=1e-6)
    assert aux['prompt_mask'].tolist() == mask.tolist()


def test_correlation_dropout_has_rate_one_tenth_in_training_only():
  config = Prompt(5, LENGTHS)
  exact, aux = run(config, TABLE, jnp.ones(5), None)
  keys = jax.random.split(jax.random.key(0), 3000)
  rows = np.asarray(jax.vmap(lambda key: run(config, TABLE, jnp.ones(5), key)[0][0, :5])(keys))
  # Each weight a is a / 0.9 with probability 0.9: mean a, variance a^2 / 9, independent draws.
  variance = np.einsum('nps,nse->pe', np.asarray(aux['correlation'])**2, STACKED**2) / 9
  error = (rows.mean(0) - exact[0, :5]) / np.sqrt(variance / len(keys))
  assert np.abs(error).max() < 4.5
  np.testing.assert_allclose(rows.var(0), variance, rtol=0.25, atol=1e-4)
  off, _ = run(Prompt(5, LENGTHS, correlation_dropout=0.0), TABLE, jnp.ones(5), keys[0])
  np.testing.assert_array_equal(off, exact)


def test_correlation_has_a_key_of_its_own():
  # The prompt's rows in training do not change when the rate of all other dropout does.
  method = tiny.stage2()
  rows = []
  for rate in (0.1, 0.4):
    config = tiny.replace(tiny.CONFIG, dropout=rate)
    model = tiny.model_of(method, config)
    variables, batch = tiny.variables_of(model), tiny.make_batch()
    bound = model.bind(variables)
    context = SiteContext(batch['inputs_mask'], np.ones(3), key=jax.random.key(1))
    rows.append(bound.encoder.embed(bound.shared, batch['inputs'], context)[0])
  np.testing.assert_array_equal(rows[0], rows[1])
  assert not np.array_equal(rows[0][:, :tiny.PROMPT], bound.encoder.embed(
      bound.shared, batch['inputs'], context.replace(key=None))[0][:, :tiny.PROMPT])


def test_the_initial_table_is_uniform_on_half():
  module = Prompt(64).module(SITE, 'prompt')
  context = SiteContext(jnp.ones((2, 3)), jnp.ones(2))
  variables = module.init(jax.random.key(0), lambda t: EMBEDDED, jnp.zeros((2, 3), int), context)
  table = nn.meta.unbox(variables)['params']['table']
  assert table.shape == (64, EMBED) and 0.48 < np.abs(table).max() <= 0.5
  assert np.asarray(variables['constants']['mask']).tolist() == [1] * 64
