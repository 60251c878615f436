"""Routers of tokens: capacity, padding, losses, noise."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts.feed_forward import DenseExperts
from pemt_jax.experts.switch import Switch
from pemt_jax.experts.task_bank import TaskBank
from pemt_jax.experts.token_routing import load, router_loss
from pemt_jax.experts.top2 import TopTwo
from pemt_jax.models.sites import Site, SiteContext

BATCH, LENGTH, EMBED, EXPERTS = 3, 8, 6, 4
SITE = Site('encoder/mlp', EMBED, EMBED, 'embed', 'embed', jnp.float32)
EXPERT = DenseExperts(5, hidden_dropout=0.1)
SWITCH, TOP2 = Switch(EXPERT, EXPERTS), TopTwo(EXPERT, EXPERTS)
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(2 * RNG.normal(size=(BATCH, LENGTH, EXPERTS)), jnp.float32)
X = jnp.asarray(RNG.normal(size=(BATCH, LENGTH, EMBED)), jnp.float32)
MASK = jnp.asarray(np.arange(LENGTH) < np.array([[8], [5], [2]]), jnp.float32)
ONES = jnp.ones_like(MASK)


def values_of(delta):
  """First values of the delta's weights."""
  keys = iter(jax.random.split(jax.random.key(0), 9))
  return {name: weight.init(next(keys), weight.shape, jnp.float32)
          for name, weight in delta.weights(SITE).items()}


@functools.partial(jax.jit, static_argnums=0)
def act(delta, x=X, mask=MASK, key=None):
  """(y, auxiliaries) of the delta at its site."""
  context = SiteContext(mask, jnp.ones(x.shape[0]), key=key)
  return delta.act(values_of(delta), None, x, context, SITE)


@functools.partial(jax.jit, static_argnums=0)
def ffn(delta, x, chosen):
  """What each token gives at a chosen expert."""
  values = values_of(delta)
  own = jnp.minimum(chosen, EXPERTS - 1)
  hidden = jax.nn.relu(jnp.einsum('bld,bldf->blf', x, values['wi/kernel'][own]))
  return jnp.einsum('blf,blfd->bld', hidden, values['wo/kernel'][own])


@functools.partial(jax.jit, static_argnums=(0, 3))
def route(delta, logits, routed, training, draws=None):
  """`delta.route`, compiled."""
  return delta.route(logits, routed, training, draws)


def test_every_token_of_switch_gets_its_best_expert():
  y, aux = act(SWITCH)
  probability = jax.nn.softmax(SWITCH.logits(values_of(SWITCH), X), axis=-1)
  chosen = np.argmax(probability, axis=-1)
  np.testing.assert_allclose(y, ffn(SWITCH, X, chosen), rtol=1e-5, atol=1e-6)
  share = np.bincount(chosen[np.asarray(MASK) > 0], minlength=EXPERTS) / MASK.sum()
  np.testing.assert_allclose(aux['load'], share, rtol=1e-6)
  outside, _ = act(dataclasses.replace(SWITCH, scaling='probability', scaled='output'))
  np.testing.assert_allclose(outside, y * jnp.max(probability, axis=-1)[..., None], rtol=1e-5,
                             atol=1e-6)


def test_padding_without_experts_gives_zeros_and_changes_nothing_else():
  y, _ = act(SWITCH)
  bare, aux = act(dataclasses.replace(SWITCH, route_padding=False))
  np.testing.assert_allclose(bare, y * MASK[..., None], rtol=1e-5, atol=1e-6)
  full, _ = act(dataclasses.replace(SWITCH, route_padding=False), X[1:2, :5], MASK[1:2, :5])
  np.testing.assert_allclose(full, bare[1:2, :5], rtol=1e-5, atol=1e-6)
  assert aux['dropped'] == 0


@pytest.mark.parametrize('dropped', ['zero', 'input'])
def test_switch_keeps_as_many_tokens_as_its_capacity(dropped):
  delta = dataclasses.replace(SWITCH, eval_capacity_factor=0.75, dropped=dropped)
  routes = route(delta, LOGITS, ONES, False)
  counts = jnp.bincount(routes.chosen.reshape(-1), length=EXPERTS + 1)
  assert routes.capacity == 4 and counts[:EXPERTS].max() == 4 and counts[EXPERTS] > 0
  np.testing.assert_allclose(routes.aux['dropped'], counts[EXPERTS] / LOGITS[..., 0].size)
  y, aux = act(delta)
  left = np.asarray(aux['chosen'])[..., 0] == EXPERTS
  assert left.any()
  np.testing.assert_allclose(y[left], X[left] if dropped == 'input' else 0 * X[left])


def test_a_full_expert_keeps_the_tokens_with_low_draws():
  delta = dataclasses.replace(SWITCH, capacity_factor=0.5)
  draws = jnp.asarray(RNG.uniform(size=(BATCH, LENGTH)), jnp.float32)
  first = np.asarray(jnp.argmax(LOGITS, axis=-1))
  kept = np.asarray(route(delta, LOGITS, ONES, True, draws).chosen)[..., 0]
  for expert in range(EXPERTS):
    own = np.sort(np.asarray(draws)[first == expert])[:3]
    assert set(np.asarray(draws)[kept == expert].tolist()) == set(own.tolist())


def test_noise_is_that_of_the_key():
  noisy = dataclasses.replace(SWITCH, jitter=0.3, capacity_factor=0.75)
  one, again, other = (act(noisy, key=jax.random.key(seed))[0] for seed in (1, 1, 2))
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - other).max() > 1e-3
  quiet, _ = act(noisy)
  np.testing.assert_allclose(quiet, act(SWITCH)[0], rtol=1e-6)


def test_the_balance_loss_is_one_for_an_even_load():
  even = jnp.broadcast_to(10.0 * jnp.eye(EXPERTS)[jnp.arange(LENGTH) % EXPERTS],
                          (BATCH, LENGTH, EXPERTS))
  one_sided = jnp.broadcast_to(10.0 * jnp.eye(EXPERTS)[0], LOGITS.shape)
  for delta in (SWITCH, TOP2):
    balance = lambda logits: float(route(delta, logits, ONES, False).aux['balance'])
    np.testing.assert_allclose(balance(even), 1.0, rtol=1e-3)
    np.testing.assert_allclose(balance(one_sided), EXPERTS, rtol=1e-2)
  np.testing.assert_allclose(router_loss(jnp.zeros((1, 2, 3)), jnp.ones((1, 2))), np.log(3)**2,
                             rtol=1e-6)


def test_top2_policies():
  shares = route(TOP2, LOGITS, ONES, False).weight[..., 1]
  second = lambda policy, draws=None: route(
      dataclasses.replace(TOP2, eval_policy=policy), LOGITS, ONES, False,
      draws).chosen[..., 1] < EXPERTS
  assert second('all').all() and not second('none').any()
  np.testing.assert_array_equal(second('threshold'), shares > 0.2)
  draws = jnp.asarray(RNG.uniform(size=(BATCH, LENGTH)), jnp.float32)
  np.testing.assert_array_equal(second('random', draws), draws < shares / 0.2)
  assert second('random', jnp.zeros_like(draws)).all()


def test_top2_mixes_its_two_experts_and_first_choices_come_first():
  y, aux = act(TOP2)
  parts = [aux['weight'][..., k, None] * ffn(TOP2, X, aux['chosen'][..., k]) for k in range(2)]
  np.testing.assert_allclose(y, sum(parts), rtol=1e-4, atol=1e-5)
  tight = dataclasses.replace(TOP2, eval_capacity_factor=0.1)  # 4 choices at least
  routes = route(tight, LOGITS.at[..., 0].add(9.0), ONES, False)
  assert routes.capacity == 4
  np.testing.assert_array_equal(routes.chosen[..., 0] == 0, np.arange(LENGTH)[None] < [[4]] * BATCH)
  for row in np.asarray(routes.chosen).reshape(BATCH, -1):
    assert np.bincount(row, minlength=EXPERTS + 1)[:EXPERTS].max() <= 4


def test_load_is_that_of_real_tokens():
  routes = route(TOP2, LOGITS, ONES, False)
  np.testing.assert_allclose(jnp.sum(load(routes, MASK, EXPERTS)), 1.0, rtol=1e-6)


def test_routed_feed_forwards_form_no_bank():
  bank = TaskBank(SWITCH, 2)
  keys = iter(jax.random.split(jax.random.key(0), 9))
  values = {name: weight.init(next(keys), weight.shape, jnp.float32)
            for name, weight in bank.weights(SITE).items()}
  context = SiteContext(MASK, jnp.ones(BATCH), task_ids=jnp.zeros(BATCH, jnp.int32))
  with pytest.raises(UserError, match='cannot stand in a bank'):
    bank.act(values, None, X, context, SITE)
