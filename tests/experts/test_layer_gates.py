"""Layers as experts under gates that read texts, and under routes that are given."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.trees import flatten, merge, unflatten
from tests import tiny
from tests.models import test_layer_experts as layers

GATES = tuple(f'{stack}/layers/routes/kernel' for stack in ('encoder', 'decoder'))


def test_gates_choose_experts_for_each_text_and_are_trained():
  model = layers.model_of(source='gate')
  variables = layers.variables_of(model)
  flat = flatten(variables['params'])
  sharp = {path: 1e4 * jax.random.normal(jax.random.key(len(path)), flat[path].shape)
           for path in GATES}
  logits, aux = layers.logits_of(model, {'params': unflatten(flat | sharp)}, [0] * 4)
  routes = jnp.concatenate([aux[f'{stack}/layer/routes/routes'] for stack in
                            ('encoder', 'decoder')])
  np.testing.assert_allclose(routes.max(-1), 1.0)
  assert len({tuple(row) for row in np.asarray(routes.argmax(-1)).T}) > 1

  fixed = layers.model_of(source='fixed')
  rest = {path: leaf for path, leaf in flat.items() if path not in GATES}
  given = {'deltas': {'routes': {'routes': routes.swapaxes(0, 1)}}}
  same, _ = layers.logits_of(fixed, {'params': unflatten(rest), 'constants': given}, range(4))
  np.testing.assert_allclose(logits, same, rtol=1e-4, atol=1e-4)

  batch = tiny.make_batch(4, 5, 3)

  @jax.jit
  def gradients(gates):
    params = merge(unflatten(flat), gates)
    found, _ = model.apply({'params': params}, batch['inputs'], batch['inputs_mask'],
                           batch['targets'], batch['targets_mask'])
    return jnp.sum(found**2)

  grads = jax.grad(gradients)(unflatten({path: flat[path] for path in GATES}))
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
