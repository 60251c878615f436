"""Products of tokens with the matrix of their expert: all forms against one row at a time."""

from __future__ import annotations

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from pemt_jax.experts import group_pieces, grouped
from pemt_jax.experts.group_pieces import Maps

FORMS = ('sorted', 'ragged', 'gathered', 'batched', 'local')
GROUPS, TOKENS, CHOICES, EXPERTS, WIDTH, HIDDEN = 2, 37, 2, 5, 3, 4


def draw(seed):
  """(chosen, tokens, weights, constants, weights of the loss); some choices are of no expert."""
  rng = np.random.default_rng(seed)
  order = rng.permuted(np.tile(np.arange(EXPERTS + 1), (GROUPS, TOKENS, 1)), axis=-1)
  chosen = order[..., :CHOICES]
  chosen[0, :20, 0], chosen[0, :20, 1] = 3, 1  # uneven, expert 2 of the first group is rare
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  weights = {'in': normal(EXPERTS, WIDTH, HIDDEN), 'bias': normal(EXPERTS, HIDDEN),
             'out': normal(EXPERTS, HIDDEN, WIDTH)}
  return (chosen.astype(np.int32), normal(GROUPS, TOKENS, WIDTH), weights,
          normal(GROUPS, TOKENS, CHOICES, HIDDEN), normal(GROUPS, TOKENS, CHOICES, WIDTH))


MAPS = Maps(lambda place, weights, rows: place.project(rows, weights['in'], weights['bias']),
            lambda place, weights, middle, extra: place.project(
                jnp.sin(middle) * extra, weights['out'], None))


@functools.partial(jax.jit, static_argnums=0)
def outcome(form, chosen, x, weights, extra, factors):
  """Value and gradients of two maps."""
  def loss(x, weights):
    y = grouped.group(chosen, EXPERTS, form).sent(MAPS, weights, x, extra)
    return jnp.sum(y * factors), y

  return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, weights)


@jax.jit
def expected(chosen, x, weights, extra, factors):
  def loss(x, weights):
    own = jax.tree.map(lambda a: a[jnp.minimum(chosen, EXPERTS - 1)], weights)
    y = jnp.sin(jnp.einsum('gtd,gtkdf->gtkf', x, own['in']) + own['bias']) * extra
    y = jnp.einsum('gtkf,gtkfd->gtkd', y, own['out'])
    y = jnp.where((chosen < EXPERTS)[..., None], y, 0.0)
    return jnp.sum(y * factors), y

  return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, weights)


@pytest.mark.parametrize('form', FORMS)
def test_every_form_is_one_row_at_a_time(form):
  given = draw(0)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
               outcome(form, *given), expected(*given))


@hypothesis.given(st.lists(st.integers(0, EXPERTS), min_size=2, max_size=GROUPS),
                  st.integers(0, TOKENS))
@hypothesis.example([EXPERTS, EXPERTS], TOKENS)
@hypothesis.example([2, 2], TOKENS)
def test_loads_may_be_anything(favourites, count):
  """The first tokens of each group all go to one expert, or to none."""
  chosen, *rest = draw(3)
  for row, favourite in enumerate(favourites):
    chosen[row, :count] = favourite
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5),
               outcome('sorted', chosen, *rest), expected(chosen, *rest))


@pytest.mark.parametrize('form', [form if form == 'sorted' else pytest.param(
    form, marks=pytest.mark.slow) for form in FORMS])
def test_replicas_are_separate(form):
  both = [draw(1), draw(2)]
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *both)
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
  for experts, most in ((1, 1.0), (8, 1.1), (32, 1.2)):
    lengths = group_pieces.lengths_of(tokens, experts)
    sizes = np.bincount(rng.integers(experts, size=tokens), minlength=experts)
    counts = np.asarray(jax.jit(group_pieces.counts, static_argnums=1)(sizes, lengths))
    assert np.all(counts @ np.array(lengths) >= sizes)
    assert np.sum(counts @ np.array(lengths)) <= most * tokens
    assert np.sum(counts) <= 1.5 * experts


@pytest.mark.slow
def test_a_mesh_gives_the_same_whatever_the_form(run_python):
  """In a process with eight devices, see `grouped_on_mesh`."""
  done = run_python('-m', 'tests.experts.grouped_on_mesh', devices=8)
  assert done.stdout.split() == ['equal'], done.stderr[-4000:]
