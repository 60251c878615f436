"""Routes: from logits over experts to weights over them, and routes without a router.

Routes and logits are [layer, batch, expert] float32; layers of the encoder come first. Routes are
at least 0 and sum to 1 over the experts. Source: Ye et al. 2022, section 3 and their baselines.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.errors import UserError, number, one_of
from pemt_jax.trees import Tree, flatten

MODES = ('softmax', 'gumbel_softmax', 'gumbel_softmax_st')
FILLS = ('onehot', 'uniform')
_CLOSED = 1e10  # subtracted from the logit of an expert that may not be chosen


def gumbel_noise(key: jax.Array, shape: Sequence[int]) -> jax.Array:
  """Draws of the standard Gumbel distribution, float32."""
  return jax.random.gumbel(key, tuple(shape), jnp.float32)


def selection_noise(mode: str, key: jax.Array | None, shape: Sequence[int]) -> jax.Array | None:
  """The noise that a selection needs, or None.

  Args:
    mode: one of MODES.
    key: random key; None means that the selection is deterministic, as in evaluation.
    shape: [layer, batch, expert].
  """
  return None if key is None or mode == 'softmax' else gumbel_noise(key, shape)


def select(logits: jax.Array, mode: str, temperature: jax.Array | float,
           noise: jax.Array | None = None) -> jax.Array:
  """Turns logits into routes.

  Args:
    logits: [..., expert].
    mode: 'softmax'; 'gumbel_softmax', the softmax of logits with noise; 'gumbel_softmax_st', its
      largest entry as a one-hot vector, with the gradient of the softmax (straight-through).
    temperature: divides the logits, above 0; a traced value may change from step to step.
    noise: like `logits`, of `gumbel_noise`. Without it the Gumbel modes are deterministic: the
      softmax of the logits, and the one-hot vector of the largest.

  Returns:
    Routes [..., expert] float32.

  Raises:
    UserError: the mode is not known.
  """
  one_of('router mode', mode, MODES)
  logits = logits.astype(jnp.float32)
  if noise is not None and mode != 'softmax':
    logits = logits + noise
  soft = jax.nn.softmax(logits / temperature, axis=-1)
  if mode != 'gumbel_softmax_st':
    return soft
  hard = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=jnp.float32)
  return hard + (soft - jax.lax.stop_gradient(soft))  # in this order the sum is exactly one-hot


def override(logits: jax.Array, closed: Any) -> jax.Array:
  """Logits of which some experts cannot be chosen.

  Args:
    logits: [layer, batch, expert].
    closed: 1 for experts that may not be chosen: [layer, expert], or any shape that broadcasts
      against the logits.

  Returns:
    Logits; after a softmax the closed experts have routes of 0.

  Raises:
    UserError: a layer has no expert left.
  """
  closed = closed[:, None] if np.ndim(closed) == 2 else closed
  if not isinstance(closed, jax.core.Tracer):
    everything = np.all(np.asarray(closed) > 0, axis=-1)
    if np.any(everything):
      layer = int(np.argwhere(everything)[0][0])
      raise UserError(f'all experts of layer {layer} are disabled; leave at least one.')
  return logits - _CLOSED * jnp.asarray(closed, jnp.float32)


def draw_exploration(key: jax.Array, shape: Sequence[int], epsilon: float,
                     how: str) -> tuple[jax.Array, jax.Array]:
  """What exploration puts in place of routes, and where.

  Args:
    key: random key.
    shape: [layer, batch, expert].
    epsilon: probability that the route of a layer and row is replaced.
    how: 'onehot', a random expert; 'uniform', all experts alike.

  Returns:
    (mask [layer, batch] 1 where a route is replaced, values [layer, batch, expert]).

  Raises:
    UserError: `how` is not known.
  """
  one_of('exploration', how, FILLS)
  first, second = jax.random.split(key)
  layers, rows, experts = shape
  mask = jax.random.uniform(first, (layers, rows)) < epsilon
  if how == 'uniform':
    return mask, average_routes(shape)
  return mask, instance_random_routes(second, shape)


def replace_routes(routes: jax.Array, mask: jax.Array, values: jax.Array) -> jax.Array:
  """Routes with some rows replaced, through which no gradient flows.

  Args:
    routes: [layer, batch, expert].
    mask: [layer, batch] 1 where they are replaced.
    values: like `routes`.
  """
  return jnp.where(mask[..., None] > 0, values, routes)


def explore(routes: jax.Array, key: jax.Array, epsilon: float, how: str = 'onehot') -> jax.Array:
  """Replaces each layer's and row's route with probability epsilon; see `draw_exploration`."""
  return replace_routes(routes, *draw_exploration(key, routes.shape, epsilon, how))


def annealed(step: Any, initial: float, minimum: float, rate: float) -> Any:
  """Temperature after `step` updates: max(initial * exp(-rate * step), minimum).

  Args:
    step: number or array; a JAX array gives float32, others float64.
    initial: temperature before the first update.
    minimum: temperature that is not undercut.
    rate: of the decay, per update.
  """
  space = jnp if isinstance(step, jax.Array) else np
  return space.maximum(initial * space.exp(-rate * step), minimum)


def average_routes(shape: Sequence[int]) -> jax.Array:
  """Routes [layer, batch, expert] that use all experts alike."""
  return jnp.full(tuple(shape), 1.0 / shape[-1], jnp.float32)


def instance_random_routes(key: jax.Array, shape: Sequence[int]) -> jax.Array:
  """Routes [layer, batch, expert] of one random expert for each layer and row."""
  chosen = jax.random.randint(key, tuple(shape[:-1]), 0, shape[-1])
  return jax.nn.one_hot(chosen, shape[-1], dtype=jnp.float32)


def task_random_table(tasks: int, layers: int, experts: int, chosen: int, seed: int) -> np.ndarray:
  """Routes drawn once per task: `chosen` experts of each layer, with equal weights.

  The draws are those of the original: NumPy's legacy generator, tasks outside, layers inside.

  Args:
    tasks: number of tasks.
    layers: of all stacks.
    experts: of a layer.
    chosen: experts that a task uses in a layer.
    seed: of the generator.

  Returns:
    [task, layer, expert] float32.

  Raises:
    UserError: `chosen` is not from 1 to the number of experts.
  """
  number('the number of experts of a random route', chosen, 1 <= chosen <= experts,
         f'from 1 to {experts}')
  random = np.random.RandomState(seed)
  table = np.zeros((tasks, layers, experts), np.float32)
  for task, layer in itertools.product(range(tasks), range(layers)):
    table[task, layer, random.choice(experts, chosen, replace=False)] = 1.0 / chosen
  return table


def rows_of_table(table: jax.Array, task_ids: jax.Array) -> jax.Array:
  """Routes [layer, batch, expert] of the tasks [batch] of a table [task, layer, expert]."""
  return jnp.take(table, task_ids, axis=0).swapaxes(0, 1)


def split_stacks(routes: jax.Array, encoder_layers: int) -> tuple[jax.Array, jax.Array]:
  """Routes or logits [layer, ...] of the encoder and of the decoder."""
  return routes[:encoder_layers], routes[encoder_layers:]


def safe_norm(squares: jax.Array) -> jax.Array:
  """Square root with a gradient of 0 at 0."""
  positive = squares > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def expert_distance(experts: Tree, before: int = 0) -> jax.Array:
  """Mean over pairs of experts of the summed distances of their parameters.

  sum over layers of 1 / C(E, 2) * sum_{e < f} sum_p ||p_e - p_f||_2: added to the loss with a
  positive factor it pulls experts together.

  Args:
    experts: tree whose leaves are [expert, ...] behind `before` axes.
    before: axes in front of that of experts, over which the result is summed: 1 for layers.

  Returns:
    [] float32; its gradient is 0 where experts are equal.
  """
  total = jnp.zeros((), jnp.float32)
  for leaf in flatten(experts).values():
    leaf = leaf.astype(jnp.float32).reshape(-1, *leaf.shape[before:])
    first, second = np.triu_indices(leaf.shape[1], 1)
    squares = jnp.square(leaf[:, first] - leaf[:, second])
    norms = safe_norm(jnp.sum(squares, axis=tuple(range(2, leaf.ndim))))
    total += jnp.sum(norms) / max(len(first), 1)
  return total
