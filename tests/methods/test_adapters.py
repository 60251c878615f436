"""Adapters behind the dropout of sub-layers, and such that start from ones."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.methods import adapters
from pemt_jax.methods.base import initialiser
from pemt_jax.models.bart import Bart
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.trees import flatten, merge
from tests import tiny

BART = BartConfig(24, 8, 2, 16, 1, 1, positions=16)
ONES = adapters.FamilyOptions(size=3, activation='gelu', after_cross_attention=True,
                              after_dropout=True, tune_norms=False, up_init='ones')


def test_adapters_of_ones_leave_a_post_norm_backbone_as_it_is_and_their_units_equal():
  method, bare, batch = adapters.houlsby(ONES, BART, 0), Bart(BART), tiny.make_batch(vocab=24)
  model, backbone = Bart(BART, method.plan), tiny.variables_of(Bart(BART))
  own, _ = initialiser(model, backbone['params'])(jax.random.key(0))
  variables = {'params': merge(backbone['params'], own), 'constants': {}}
  loss, _, grads = tiny.loss_and_gradients(model, method, variables, batch)
  logits = tiny.forward(bare, backbone, batch)[0]
  chosen = np.take_along_axis(jax.nn.log_softmax(logits), batch['targets'][..., None], 2)[..., 0]
  mask = batch['targets_mask']
  assert loss == pytest.approx(float(-np.sum(chosen * mask) / mask.sum()), abs=1e-5)
  grads = flatten(grads)
  assert grads.keys() == flatten(own).keys() and len(grads) == 4 * 5
  assert all('_residual/adapter/' in path for path in grads)
  largest = 0.0
  for path, grad in grads.items():
    if path.endswith('up/kernel'):  # [layer, unit, embed]
      np.testing.assert_allclose(grad, np.broadcast_to(grad[:, :1], grad.shape), atol=1e-6)
      largest = max(largest, np.abs(grad).max())
  assert largest > 1e-3


def test_what_stands_behind_the_dropout_cannot_read_the_norm():
  with pytest.raises(UserError, match="method.reads with method.after_dropout is 'normed'"):
    adapters.FamilyOptions(after_dropout=True, reads='normed')
