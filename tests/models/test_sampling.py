"""Sampled tokens: the distribution, its cuts, and their ends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.models.decoding import GenerationConfig, Sampling
from pemt_jax.models.generation import greedy, sample

LOGITS = np.log(np.array([0.1, 0.2, 0.3, 0.4]))
CONFIG = GenerationConfig(max_length=3, start_id=1, eos_id=0, pad_id=9)


def step(tokens, position, cache):
  del position
  return jnp.broadcast_to(jnp.asarray(LOGITS), (tokens.shape[0], 4)), cache


def test_cuts_keep_the_most_probable_tokens():
  chances = lambda **fields: np.asarray(jax.nn.softmax(Sampling(**fields)(LOGITS[None])))[0]
  np.testing.assert_allclose(chances(), [0.1, 0.2, 0.3, 0.4], rtol=1e-5)
  np.testing.assert_allclose(chances(top_k=2), [0, 0, 3 / 7, 4 / 7], rtol=1e-5)
  np.testing.assert_allclose(chances(top_p=0.69), [0, 0, 3 / 7, 4 / 7], rtol=1e-5)
  np.testing.assert_allclose(chances(top_p=0.71), [0, 2 / 9, 3 / 9, 4 / 9], rtol=1e-5)
  np.testing.assert_allclose(chances(top_p=0.01), [0, 0, 0, 1], rtol=1e-5)
  squares = np.array([1, 4, 9, 16])
  np.testing.assert_allclose(chances(temperature=0.5), squares / squares.sum(), rtol=1e-5)


def test_samples_follow_the_distribution_and_end_with_eos():
  found = np.asarray(sample(step, {}, 4000, CONFIG, jax.random.key(0)))
  assert (found[:, 0] == 1).all()
  shares = np.bincount(found[:, 1], minlength=4) / len(found)
  np.testing.assert_allclose(shares, [0.1, 0.2, 0.3, 0.4], atol=0.03)
  ended = found[:, 1] == 0
  assert (found[ended, 2] == 9).all() and (found[~ended, 2] < 4).all()
  both = found[~ended]
  assert 0.3 < (both[:, 1] == both[:, 2]).mean() < 0.4  # independent: 29 of 90
  np.testing.assert_array_equal(found, sample(step, {}, 4000, CONFIG, jax.random.key(0)))
  assert (found != np.asarray(sample(step, {}, 4000, CONFIG, jax.random.key(1)))).any()


def test_one_token_to_choose_from_is_greedy():
  starts = jnp.array([2, 3])
  found = sample(step, {}, 2, CONFIG, jax.random.key(0), Sampling(top_k=1), starts)
  np.testing.assert_array_equal(found, greedy(step, {}, 2, CONFIG, starts=starts))
  np.testing.assert_array_equal(found, [[2, 3, 3], [3, 3, 3]])


@pytest.mark.parametrize('field, value', [('temperature', 0.0), ('top_k', -1), ('top_p', 0.0)])
def test_numbers_out_of_range_are_told(field, value):
  with pytest.raises(UserError, match=f'sampling.{field}'):
    Sampling(**{field: value})
