"""Laws of Adafactor: the rule itself, separate tensors in a stack, replicas, the config."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.training import config as config_lib, optimisers
from pemt_jax.training.adafactor import AdafactorOptions, adafactor

SHAPES = {'matrix': (6, 4), 'column': (5, 1), 'row': (1, 7), 'vector': (3,)}


def by_hand(grads: list[np.ndarray], rate: float) -> np.ndarray:
  """Sum of the updates of one tensor in float64: factored moments, then the RMS clip."""
  total, row, column, whole = np.zeros(grads[0].shape), 0.0, 0.0, 0.0
  for step, grad in enumerate(grads, start=1):
    keep, square = 1 - step**-0.8, np.square(grad, dtype=np.float64) + 1e-30
    if grad.ndim == 2:
      row = keep * row + (1 - keep) * square.mean(1, keepdims=True)
      column = keep * column + (1 - keep) * square.mean(0, keepdims=True)
      update = grad / np.sqrt(row / row.mean() * column)
    else:
      whole = keep * whole + (1 - keep) * square
      update = grad / np.sqrt(whole)
    total -= rate * update / max(1.0, np.sqrt(np.mean(update**2)))
  return total


def gradients(shapes, steps=4, seed=0):
  """One tree of gradients per step, of sizes from 1e-6 to 10."""
  draw = np.random.default_rng(seed)
  return [{name: (10.0**draw.uniform(-6, 1) * draw.normal(size=shape)).astype(np.float32)
           for name, shape in shapes.items()} for _ in range(steps)]


def run(tx, params, grads, rate):
  state, step = tx.init(params), jax.jit(lambda g, s, p: tx.update(g, s, p, learning_rate=rate))
  for grad in grads:
    updates, state = step(grad, state, params)
    params = jax.tree.map(jnp.add, params, updates)
  return params


def test_updates_are_those_of_the_rule():
  grads = gradients(SHAPES)
  params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
  found = run(adafactor(), params, grads, 5e-4)
  for name in SHAPES:
    alone = by_hand([g[name] for g in grads], 5e-4)
    np.testing.assert_allclose(found[name], alone, rtol=2e-5, atol=1e-8)


def test_updates_are_those_of_the_torch_program():
  torch = pytest.importorskip('torch')
  optimization = pytest.importorskip('transformers.optimization')
  draw = np.random.default_rng(1)
  start = {name: draw.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
  grads = gradients(SHAPES, steps=8)
  leaves = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
  other = optimization.Adafactor(leaves.values(), lr=1e-2, scale_parameter=False,
                                 relative_step=False, warmup_init=False)
  for grad in grads:
    for name, leaf in leaves.items():
      leaf.grad = torch.tensor(grad[name])
    other.step()
  found = run(adafactor(), jax.tree.map(jnp.asarray, start), grads, 1e-2)
  for name, leaf in leaves.items():
    np.testing.assert_allclose(found[name], leaf.detach().numpy(), atol=3e-6)


def test_scanned_layers_and_stated_rows_are_separate_tensors():
  grads = [{'encoder': {'layers': {'down': g['a']}}, 'bank': g['b']}
           for g in gradients({'a': (2, 6, 4), 'b': (2, 3, 5)})]
  params = jax.tree.map(jnp.zeros_like, grads[0])
  found = run(adafactor(AdafactorOptions(row_axes=(('bank', 1),))), params, grads, 1e-3)
  for index in range(2):
    for pick in (lambda t: t['encoder']['layers']['down'], lambda t: t['bank']):
      alone = by_hand([pick(g)[index] for g in grads], 1e-3)
      np.testing.assert_allclose(pick(found)[index], alone, rtol=2e-5, atol=1e-8)


def test_replicas_in_one_program_equal_single_runs():
  grads = [jax.tree.map(lambda *g: np.stack(g), *pair) for pair in zip(
      gradients(SHAPES, seed=2), gradients(SHAPES, seed=3))]
  tx, rates = adafactor(), jnp.array([1e-3, 5e-4])
  params = {name: jnp.zeros((2, *shape)) for name, shape in SHAPES.items()}
  state = jax.vmap(tx.init)(params)
  step = jax.jit(jax.vmap(lambda g, s, p, r: tx.update(g, s, p, learning_rate=r)))
  for grad in grads:
    updates, state = step(grad, state, params, rates)
    params = jax.tree.map(jnp.add, params, updates)
  for index, rate in enumerate(rates):
    for name in SHAPES:
      alone = by_hand([g[name][index] for g in grads], float(rate))
      np.testing.assert_allclose(params[name][index], alone, rtol=2e-5, atol=1e-8)


def test_the_config_chooses_it_with_groups_and_decay():
  config = config_lib.default_train_config()
  config.optimizer, config.weight_decay, config.no_decay = 'adafactor', 0.5, ('free/.*',)
  config.group_multipliers.fast = 10.0
  rules = (('free/.*', 'fast'), ('.*', 'base'))
  params = {'free': {'w': jnp.ones(2)}, 'held': {'w': jnp.ones(2)}}
  tx = optimisers.make_optimiser(config, rules)
  updates, _ = tx.update(params, tx.init(params), params, learning_rate=0.01)
  np.testing.assert_allclose(updates['free']['w'], -0.1, rtol=1e-6)
  np.testing.assert_allclose(updates['held']['w'], -0.015, rtol=1e-6)
