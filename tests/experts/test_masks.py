"""Masks of the largest scores: exact counts, their gradient, the recorded operator."""

from __future__ import annotations

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pemt_jax.errors import UserError
from pemt_jax.experts import masks

top = jax.jit(masks.top_mask, static_argnums=(1, 2))
SHAPE = (3, 4, 5)  # one shape, so that examples share compiled programs
# Few different values, so that ties are common; halves are exact.
TIED = hnp.arrays(np.float32, SHAPE, elements=st.integers(-3, 3).map(lambda i: i / 2))
DENSITIES = st.sampled_from([0.0, 0.3, 0.9, 1.0])


@hypothesis.given(TIED, DENSITIES, st.integers(0, 2))
def test_exactly_the_largest_entries_are_kept_whatever_is_equal(scores, density, leading):
  found = np.asarray(top(scores, density, leading)).reshape(*SHAPE[:leading], -1)
  values = np.abs(scores).reshape(found.shape)
  zeros = int((1 - density) * found.shape[-1])
  assert set(np.unique(found)) <= {0.0, 1.0}
  np.testing.assert_array_equal((found == 0).sum(-1), zeros)
  largest_out = np.where(found == 0, values, -1).max(-1)
  smallest_in = np.where(found == 1, values, np.inf).min(-1)
  assert (largest_out <= smallest_in).all()


@hypothesis.given(TIED, DENSITIES)
def test_a_mask_as_scores_gives_itself(scores, density):
  found = top(scores, density, 1)
  np.testing.assert_array_equal(top(found, density, 1), found)


@hypothesis.given(hnp.arrays(np.float32, SHAPE, elements=st.floats(
    -(2.0**99), 2.0**99, width=32, allow_subnormal=False)), DENSITIES)
def test_masks_agree_with_a_stable_sort(scores, density):
  flat = np.abs(scores).reshape(SHAPE[0], -1)
  expected = np.ones_like(flat)
  zeros = masks.zeros_of(flat.shape[1], density)
  np.put_along_axis(expected, np.argsort(flat, axis=1, kind='stable')[:, :zeros], 0.0, axis=1)
  np.testing.assert_array_equal(top(scores, density, 1), expected.reshape(SHAPE))


@hypothesis.given(TIED, st.sampled_from(masks.COMBINATIONS))
def test_gradients_pass_through_masks_and_their_combination(scores, how):
  other = np.roll(scores, 1, axis=2)
  weight = np.linspace(-1, 1, scores.size).reshape(SHAPE).astype(np.float32)

  def loss(a, b):
    return jnp.sum(weight * masks.combine([masks.top_mask(a, 0.3, 1), masks.top_mask(b, 0.5, 1)],
                                          how))

  by_first, by_second = jax.grad(loss, (0, 1))(scores, other)
  a, b = np.asarray(top(scores, 0.3, 1)), np.asarray(top(other, 0.5, 1))
  factors = {'or': (1 - b, 1 - a), 'and': (b, a), 'add': (1.0, 1.0)}[how]
  np.testing.assert_allclose(by_first, weight * factors[0] * np.sign(scores))
  np.testing.assert_allclose(by_second, weight * factors[1] * np.sign(other))


def test_masks_may_be_mapped_over():
  scores = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
  np.testing.assert_array_equal(jax.vmap(lambda s: masks.top_mask(s, 0.3))(scores),
                                top(scores, 0.3, 1))


@pytest.mark.parametrize('size, density, zeros', [(10, 0.9, 0), (20, 0.3, 14), (7, 0.5, 3)])
def test_the_number_of_zeros_is_cut_in_double_precision(size, density, zeros):
  assert masks.zeros_of(size, density) == zeros


@pytest.mark.parametrize('density', [-0.1, 1.5])
def test_densities_out_of_range_are_refused(density):
  with pytest.raises(UserError, match=f'the density of a mask is {density}; give a number'):
    masks.top_mask(jnp.ones(3), density)


def test_unknown_combinations_are_refused():
  with pytest.raises(UserError, match="combined by 'xor'; choose one of or, and, add"):
    masks.combine([jnp.ones(3)], 'xor')


def test_the_recorded_operator(golden_root):
  folder = golden_root / 'propetl' / 'op_topk_mask_ste'
  with np.load(folder / 'inputs.npz') as inputs, np.load(folder / 'outputs.npz') as expected:
    for case in sorted({name.partition('/')[0] for name in inputs}):
      scores, density = jnp.asarray(inputs[f'{case}/scores']), float(inputs[f'{case}/k'])
      found = masks.top_mask(scores, density)
      assert masks.zeros_of(scores.size, density) == expected[f'{case}/n_zero']
      np.testing.assert_array_equal(found, expected[f'{case}/mask'])
      if f'{case}/coef' in inputs:
        loss = lambda s, d=density, c=inputs[f'{case}/coef']: jnp.sum(masks.top_mask(s, d) * c)
        np.testing.assert_allclose(jax.grad(loss)(scores), expected[f'{case}/grad_scores'],
                                   rtol=1e-6)
