"""Meta-learning: the loss behind a step on the support, and the gradient through that step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.methods import zoo
from pemt_jax.methods.base import LossForm, make_loss
from pemt_jax.methods.maml import MamlOptions, after_a_step
from pemt_jax.models.t5 import T5
from tests import tiny

ROWS, FEATURES, EPISODES = 4, 3, 2


def _squares(tuned, frozen, constants, batch, key):
  del frozen, constants, key
  loss = jnp.mean((batch['inputs'] @ tuned['w'] - batch['y']) ** 2)
  return loss, {'weight': jnp.ones(())}


@pytest.mark.parametrize('second_order', [True, False])
@pytest.mark.parametrize('summed', [True, False])
def test_gradients_go_through_the_step(second_order, summed):
  """Linear regression, whose Hessian is known: grad = (1 - rate H) grad of the query behind it."""
  rng, rate = np.random.default_rng(0), 0.1
  x = rng.normal(size=(EPISODES, 2, ROWS, FEATURES))
  y, w = rng.normal(size=(EPISODES, 2, ROWS)), rng.normal(size=FEATURES)
  loss, gradient = 0.0, np.zeros(FEATURES)
  for own, wanted in zip(x, y):
    slope = lambda half, at: 2 / ROWS * own[half].T @ (own[half] @ at - wanted[half])
    moved = w - rate * slope(0, w)
    loss += np.mean((own[1] @ moved - wanted[1]) ** 2)
    hessian = 2 / ROWS * own[0].T @ own[0] * second_order
    gradient += (np.eye(FEATURES) - rate * hessian) @ slope(1, moved)
  share = 1 if summed else EPISODES
  options = MamlOptions(rate, ROWS, second_order)
  batch = {'inputs': jnp.asarray(x.reshape(-1, FEATURES), jnp.float32),
           'y': jnp.asarray(y.reshape(-1), jnp.float32)}
  (found, metrics), grads = jax.value_and_grad(
      after_a_step(_squares, options, summed), has_aux=True)(
          {'w': jnp.asarray(w, jnp.float32)}, {}, {}, batch, None)
  np.testing.assert_allclose(found, loss / share, rtol=1e-5)
  np.testing.assert_allclose(grads['w'], gradient / share, rtol=1e-4, atol=1e-5)
  before = np.mean([np.mean((own[0] @ w - wanted[0]) ** 2) for own, wanted in zip(x, y)])
  np.testing.assert_allclose(metrics['support_loss'], before, rtol=1e-5)


@pytest.mark.slow
def test_a_model_is_differentiated_twice():
  """The slope along the gradient is that of finite differences, on a tiny T5.

  A loss with kinks would jump: the gradient of the support does where an activation has none.
  """
  config = dataclasses.replace(tiny.CONFIG, activation='gelu_tanh')
  model = T5(config)
  method = zoo.make('maml', MamlOptions(0.03, 2), config, 0)
  params = tiny.variables_of(model)['params']
  loss_fn = method.transform_loss(make_loss(model, method, LossForm(0.1, 'mean')), False)
  batch = tiny.make_batch(rows=4)
  value = jax.jit(jax.value_and_grad(lambda params: loss_fn(params, {}, {}, batch, None)[0]))
  _, grads = value(params)
  length = jnp.sqrt(sum(jnp.sum(leaf ** 2) for leaf in jax.tree.leaves(grads)))
  at = lambda t: value(jax.tree.map(lambda leaf, grad: leaf + t / length * grad, params, grads))[0]
  np.testing.assert_allclose((at(2e-4) - at(-2e-4)) / 4e-4, length, rtol=2e-2)


def test_a_batch_that_is_no_number_of_episodes_is_refused():
  loss_fn = after_a_step(_squares, MamlOptions(rows=ROWS), False)
  with pytest.raises(UserError, match='config.data.batch_size is 6; give a number that is'):
    loss_fn({'w': jnp.zeros(1)}, {}, {}, {'inputs': jnp.zeros((6, 1)), 'y': jnp.zeros(6)}, None)
  with pytest.raises(UserError, match='method.inner_rate'):
    MamlOptions(inner_rate=-1.0)
