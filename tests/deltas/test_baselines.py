"""Formulas of the baselines' deltas against NumPy: adapters, biases, AdaMix, MixDA, ATTEMPT."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pemt_jax.deltas.adamix import AdaMix
from pemt_jax.deltas.adapter import Adapter, Bottleneck
from pemt_jax.deltas.attempt import Attempt
from pemt_jax.deltas.bias import Bias
from pemt_jax.deltas.compacter import Compacter
from pemt_jax.deltas.mixda import MixDA
from pemt_jax.errors import UserError
from pemt_jax.models.sites import Site, SiteContext
from tests import tiny

MLP, EMBED, ROWS, LENGTH = 10, 8, 3, 4
WO = Site('encoder/mlp/wo', MLP, EMBED, 'mlp', 'embed', jnp.float32)
DECODER_WO = Site('decoder/mlp/wo', MLP, EMBED, 'mlp', 'embed', jnp.float32)
EMBEDDING = Site('encoder/embed', 30, EMBED, 'vocab', 'embed', jnp.float32)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, LENGTH, MLP)).astype(np.float32)
W = RNG.normal(size=(MLP, EMBED)).astype(np.float32)
STREAM, NORMED = RNG.normal(size=(2, ROWS, LENGTH, EMBED)).astype(np.float32)
MASK = (np.arange(LENGTH) < np.array([[4], [2], [3]])).astype(np.float32)
CONTEXT = SiteContext(MASK, np.ones(ROWS, np.float32), sublayer_input=NORMED, residual=STREAM)


def values_of(delta, site=WO):
  """Random values of the weights at a site, and in front of them what the model shares."""
  shapes = {name: weight.shape for name, weight in delta.weights(site).items()}
  return {name: tiny.random_leaf(name, shape, 0) for name, shape in shapes.items()}


def act(delta, values, x=X, context=CONTEXT, site=WO, base=lambda x: x @ W):
  """Output of a delta at a site."""
  return delta.act(values, base, x, context, site)[0]


def close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('reads', ['output', 'sum', 'input', 'normed'])
def test_an_adapter_reads_what_it_says_and_scales_in_front_of_its_norm(reads):
  delta = Adapter(Bottleneck(3, 'relu', biases=False, scaling=2.5, post_norm=True), reads)
  values = values_of(delta)
  assert set(values) == {'down/kernel', 'up/kernel', 'post_norm/scale', 'post_norm/bias'}
  y = X @ W
  read = {'output': y, 'sum': y + STREAM, 'input': STREAM, 'normed': NORMED}[reads]
  out = 2.5 * np.maximum(read @ values['down/kernel'], 0) @ values['up/kernel']
  out = (out - out.mean(-1, keepdims=True)) / np.sqrt(out.var(-1, keepdims=True) + 1e-5)
  close(act(delta, values), y + out * values['post_norm/scale'] + values['post_norm/bias'])


def test_initial_kernels_follow_their_options():
  for up, spread in (('normal', 0.5), ('zero', 0.0)):
    delta = Adapter(Bottleneck(64, stddev=0.5, up_init=up))
    init = delta.module(WO, 'a').init(jax.random.key(0), lambda x: x @ W, X, CONTEXT)
    params = nn.meta.unbox(init)['params']
    assert abs(np.std(params['down']['kernel']) - 0.5) < 0.1
    assert abs(np.std(params['up']['kernel']) - spread) < 0.1


def test_a_bias_is_added():
  values = values_of(Bias())
  close(act(Bias(), values), X @ W + values['bias'])


@pytest.mark.parametrize('rank', [0, 2])
@pytest.mark.parametrize('shared', [True, False])
def test_compacter_multiplies_by_sums_of_kronecker_products(rank, shared):
  delta = Compacter(size=4, terms=2, rank=rank, shared=shared, activation='relu')
  values, rule = values_of(delta), tiny.random_leaf('rule', (2, 2, 2), 1)
  assert ('rule' in delta.model_weights({})) == shared
  matrices = {}
  for name in ('down', 'up'):
    own = rule if shared else values[f'{name}/rule']
    inner = values[f'{name}/left'] @ values[f'{name}/right'] if rank else values[f'{name}/kernel']
    matrices[name] = sum(np.kron(a, b) for a, b in zip(own, inner, strict=True))
  y = X @ W
  hidden = np.maximum(y @ matrices['down'] + values['down/bias'], 0)
  close(act(delta, values, context=CONTEXT.replace(model={'rule': rule})),
        y + hidden @ matrices['up'] + values['up/bias'])


def test_compacter_refuses_sizes_that_its_terms_do_not_divide():
  with pytest.raises(UserError, match='method.terms is 3, which does not divide the width 8'):
    Compacter(size=3, terms=3).weights(WO)


def mixed(values, down, up):
  """AdaMix with weights [.., expert] of the down and up projections."""
  merge = lambda name, w: (np.einsum('...e,eio->...io', w, values[f'{name}/kernel']),
                           np.einsum('...e,eo->...o', w, values[f'{name}/bias'])[..., None, :])
  y = X @ W
  kernel, bias = merge('down', down)
  hidden = np.asarray(jax.nn.gelu(y @ kernel + bias, approximate=False))
  kernel, bias = merge('up', up)
  return y + hidden @ kernel + bias


def test_adamix_averages_weights_by_their_scores():
  delta = AdaMix(3, 5, share_up=True)
  values = values_of(delta)
  weights = np.exp(values['down/score']) / np.exp(values['down/score']).sum()
  assert values['up/kernel'].shape[0] == 1
  close(act(delta, values), mixed(values, weights, np.ones(1)))


def test_adamix_draws_one_expert_for_a_pass_and_every_one_in_time():
  delta, one_hot = AdaMix(2, 5), np.eye(2)
  values, seen = values_of(delta), set()
  expected = {(i, j): mixed(values, one_hot[i], one_hot[j]) for i in (0, 1) for j in (0, 1)}
  for number in range(24):
    found = act(delta, values, context=CONTEXT.replace(key=jax.random.key(number)))
    seen |= {pair for pair, value in expected.items() if np.allclose(found, value, atol=1e-4)}
  assert seen == set(expected)


def test_adamix_of_sentences_and_tokens_takes_recorded_draws():
  values, one_hot = values_of(AdaMix(3, 5)), np.eye(3)
  draws = {'down/draw': np.array([0, 2, 1]), 'up/draw': np.array([1, 1, 0])}
  expected = mixed(values, one_hot[draws['down/draw']], one_hot[draws['up/draw']])
  close(act(AdaMix(3, 5, recorded=True), values | draws), expected)
  each = {name: np.tile(draw[:, None], (1, LENGTH)) for name, draw in draws.items()}
  close(act(AdaMix(3, 5, recorded=True), values | each), expected)


@pytest.mark.parametrize('site', [WO, DECODER_WO])
def test_tokens_draw_the_same_with_more_positions_behind_padding_and_one_by_one(site):
  delta = AdaMix(3, 5, inference='token')
  values = values_of(delta, site)
  whole = act(delta, values, site=site)
  close(act(delta, values, X[:, :2], site=site), whole[:, :2])
  if site is WO:
    padded = np.concatenate([np.ones((ROWS, 2, MLP), np.float32), X], axis=1)
    close(act(delta, values, padded, CONTEXT.replace(offset=2))[:, 2:], whole)
    return
  beams = np.repeat(X[:, 3:], 2, axis=1)
  step = act(delta, values, beams, CONTEXT.replace(position=jnp.int32(3)), site)
  close(step, np.repeat(whole[:, 3:], 2, axis=1))


def test_rows_of_sentences_have_experts_of_their_own():
  delta, values = AdaMix(3, 5, inference='sentence'), values_of(AdaMix(3, 5))
  found, one_hot = act(delta, values), np.eye(3)
  close(found, act(delta, values))
  for row in range(ROWS):
    options = [mixed(values, one_hot[i], one_hot[j])[row] for i in range(3) for j in range(3)]
    assert sum(np.allclose(found[row], option, atol=1e-4) for option in options) == 1


def mixda(values, delta, gate_input):
  """MixDA with the gate's input [batch, 1 or length, mlp]."""
  hidden = gate_input
  for i in range(4):
    hidden = np.maximum(hidden, 0) if i else hidden
    hidden = hidden @ values[f'gate_{i}/kernel'] + values[f'gate_{i}/bias']
  gate = np.exp(hidden - hidden.max(-1, keepdims=True))
  gate /= gate.sum(-1, keepdims=True)
  total = gate[..., -1:] * (X @ W)
  for k in range(delta.count):
    inner = jax.nn.gelu(X @ values['knowledge_down/kernel'][k] + values['knowledge_down/bias'][k],
                        approximate=False)
    total += gate[..., k:k + 1] * (inner @ values['knowledge_up/kernel'][k]
                                   + values['knowledge_up/bias'][k])
  inner = np.maximum(total @ values['down/kernel'] + values['down/bias'], 0)
  return total + inner @ values['up/kernel'] + values['up/bias']


def test_the_gate_of_mixda_reads_the_last_real_position_or_each_for_itself():
  delta = MixDA(2, 3, Bottleneck(3, 'relu'), hidden=5)
  values = values_of(delta)
  last = np.stack([X[row, n - 1] for row, n in enumerate((4, 2, 3))])[:, None]
  close(act(delta, values), mixda(values, delta, last))
  close(act(delta, values, site=DECODER_WO), mixda(values, delta, X))
  published = MixDA(2, 3, Bottleneck(3, 'relu'), hidden=5, gate_reads='last')
  for site in (WO, DECODER_WO):
    close(act(published, values, site=site), mixda(values, delta, X[:, -1:]))


def attempt_prompts(values, target, query, temperature=3.0):
  """Prompts by the attention of queries [batch, embed]; `target` [batch, prompt, embed]."""
  found = []
  for row, own in zip(query, target, strict=True):
    prompts = np.stack([*values['sources'], own])
    scores = prompts.max(1) @ row / temperature
    weights = np.exp(scores - scores.max())
    found.append(np.einsum('j,jpe->pe', weights / weights.sum(), prompts) + own)
  return np.stack(found)


TABLE = RNG.normal(size=(30, EMBED)).astype(np.float32)
TOKENS = RNG.integers(0, 30, size=(ROWS, LENGTH))


@pytest.mark.parametrize('mask_padding', [True, False])
@pytest.mark.parametrize('attention', ['dot', 'linear'])
def test_attempt_attends_to_prompts_by_the_largest_embeddings(attention, mask_padding):
  delta = Attempt(2, 3, attention, targets=2, temperature=3.0, mask_padding=mask_padding)
  values = values_of(delta, EMBEDDING)
  ids = np.array([1, 0, 1])
  embedded = TABLE[TOKENS]
  real = np.where(MASK[..., None] > 0, embedded, -np.inf) if mask_padding else embedded
  query = real.max(1) @ values['attention/kernel'] if attention == 'linear' else real.max(1)
  found = act(delta, values, TOKENS, CONTEXT.replace(task_ids=ids), EMBEDDING, lambda x: TABLE[x])
  expected = attempt_prompts(values, values['table'][ids], query)
  close(found, np.concatenate([expected, embedded], axis=1))


def test_a_learned_temperature_starts_at_its_value_and_divides_the_scores():
  delta = Attempt(2, 3, 'dot', temperature=5.0, learned_temperature=True)
  start = delta.weights(EMBEDDING)['temperature']
  np.testing.assert_array_equal(start.init(jax.random.key(0), start.shape, jnp.float32), [5.0])
  values = values_of(delta, EMBEDDING) | {'temperature': np.array([2.0], np.float32)}
  fixed = Attempt(2, 3, 'dot', temperature=2.0)
  run = lambda delta: act(delta, values, TOKENS, CONTEXT, EMBEDDING, lambda x: TABLE[x])
  close(run(delta), run(fixed))
  grad = jax.grad(lambda t: jnp.sum(jnp.square(act(
      delta, values | {'temperature': t}, TOKENS, CONTEXT, EMBEDDING, lambda x: TABLE[x]))))
  assert np.abs(grad(values['temperature'])).max() > 1e-4
