"""Forms of the loss: smoothing, and sums over tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.methods.base import LossForm, make_loss
from pemt_jax.methods.zoo import ZOO
from pemt_jax.models.t5 import T5
from pemt_jax.training.step import loss_and_gradients
from tests import tiny

FULL = ZOO['full'].make(ZOO['full'].default_options(), tiny.CONFIG, 0)
MODEL = T5(tiny.CONFIG)
VARIABLES = {'params': tiny.variables_of(MODEL)['params']}
BATCH = tiny.make_batch(rows=4)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_a_smoothed_loss_is_the_cross_entropy_with_smooth_targets(smoothing):
  logits, _ = tiny.forward(MODEL, VARIABLES, BATCH)
  log_p = jax.nn.log_softmax(logits)
  smooth = (1 - smoothing) * jax.nn.one_hot(BATCH['targets'], 32) + smoothing / 32
  total = -jnp.sum(smooth * log_p * BATCH['targets_mask'][..., None])
  tokens = BATCH['targets_mask'].sum()
  for reduction, expected in (('mean', total / tokens), ('sum', total)):
    loss, metrics = jax.jit(make_loss(MODEL, FULL, LossForm(smoothing, reduction)))(
        VARIABLES['params'], {}, {}, BATCH, None)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics['weight'] == (tokens if reduction == 'mean' else 1)


def test_sums_of_microbatches_count_equally():
  loss_fn, key = make_loss(MODEL, FULL, LossForm(0.1, 'sum')), jax.random.key(0)
  whole = lambda batch, parts: jax.jit(lambda params: loss_and_gradients(
      lambda tuned, frozen, constants, rows, _: loss_fn(tuned, frozen, constants, rows, None),
      params, ({}, {}), batch, key, parts))(VARIABLES['params'])
  one, two = whole(BATCH, 1), whole(BATCH, 2)
  np.testing.assert_allclose(two[0], one[0] / 2, rtol=1e-5)
  assert BATCH['targets_mask'][::2].sum() != BATCH['targets_mask'][1::2].sum()
  halves = jax.tree.map(lambda leaf: leaf / 2, one[2])
  tiny.assert_trees_close(two[2], halves, rtol=1e-4, atol=1e-5)
