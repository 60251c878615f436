"""Products of tokens with the matrix of their expert: all forms against one row at a time."""

from __future__ import annotations

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from pemt_jax.experts import grouped

FORMS = ('sorted', 'ragged', 'gathered', 'batched')
GROUPS, TOKENS, CHOICES, EXPERTS, WIDTH, HIDDEN = 2, 37, 2, 5, 3, 4


def draw(seed):
  """(chosen, tokens, kernels, biases, weights of the loss); some choices are of no expert."""
  rng = np.random.default_rng(seed)
  order = rng.permuted(np.tile(np.arange(EXPERTS + 1), (GROUPS, TOKENS, 1)), axis=-1)
  chosen = order[..., :CHOICES]
  chosen[0, :20, 0], chosen[0, :20, 1] = 3, 1  # uneven, expert 2 of the first group is rare
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return (chosen.astype(np.int32), normal(GROUPS, TOKENS, WIDTH), normal(EXPERTS, WIDTH, HIDDEN),
          normal(EXPERTS, HIDDEN), normal(GROUPS, TOKENS, CHOICES, HIDDEN))


@functools.partial(jax.jit, static_argnums=0)
def outcome(form, chosen, x, kernels, biases, weights):
  """Value and gradients of a layer without activation."""
  def loss(x, kernels, biases):
    groups = grouped.group(chosen, EXPERTS, form)
    rows = groups.rows(x)
    y = groups.back(jnp.sin(groups.product(rows, kernels) + groups.spread(biases)))
    return jnp.sum(y * weights), y

  return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, kernels, biases)


@jax.jit
def expected(chosen, x, kernels, biases, weights):
  def loss(x, kernels, biases):
    own = jnp.minimum(chosen, EXPERTS - 1)
    y = jnp.sin(jnp.einsum('gtd,gtkdf->gtkf', x, kernels[own]) + biases[own])
    y = jnp.where((chosen < EXPERTS)[..., None], y, 0.0)
    return jnp.sum(y * weights), y

  return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, kernels, biases)


@pytest.mark.parametrize('form', FORMS)
def test_every_form_is_one_row_at_a_time(form):
  given = draw(0)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
               outcome(form, *given), expected(*given))


@pytest.mark.parametrize('form', [form if form == 'sorted' else pytest.param(
    form, marks=pytest.mark.slow) for form in FORMS])
def test_replicas_are_separate(form):
  both = [draw(1), draw(2)]
  stacked = [np.stack(leaves) for leaves in zip(*both, strict=True)]
  found = jax.jit(jax.vmap(functools.partial(outcome, form)))(*stacked)
  for number, given in enumerate(both):
    jax.tree.map(lambda a, b, number=number: np.testing.assert_allclose(
        a[number], b, rtol=1e-4, atol=1e-5), found, expected(*given))


@hypothesis.given(st.lists(st.integers(0, EXPERTS), min_size=9, max_size=9))
def test_ranks_count_the_earlier_choices_of_the_same_expert(chosen):
  found = grouped.ranks(jnp.asarray([chosen], jnp.int32), EXPERTS)[0]
  assert found.tolist() == [chosen[:i].count(expert) for i, expert in enumerate(chosen)]


def test_ranks_go_by_priority():
  chosen, priority = jnp.array([[1, 1, 0, 1]]), jnp.array([[3.0, 1.0, 0.0, 2.0]])
  assert grouped.ranks(chosen, 2, priority).tolist() == [[2, 0, 0, 1]]


def test_few_choices_gather_matrices_and_many_are_sorted():
  form = lambda tokens: grouped.group(jnp.zeros((1, tokens, 1), jnp.int32), 4).form
  assert (form(4), form(5)) == ('gathered', 'sorted')


def test_cost_follows_tokens():
  """Rows that the products of a CPU read at random loads, over those of the tokens."""
  rng, tokens = np.random.default_rng(0), 2048
  for experts, most in ((1, 1.0), (4, 1.25), (8, 1.3), (32, 1.35)):
    chunk = grouped._chunk_of(tokens, experts)
    sizes = np.bincount(rng.integers(experts, size=tokens), minlength=experts)
    assert np.sum(-(-sizes // chunk)) * chunk <= most * tokens
