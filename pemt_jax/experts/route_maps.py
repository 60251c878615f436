"""Routes of all tasks of a run: what the analysis of routes reads (Ye et al. 2022, section 6)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Values
from pemt_jax.experts.layer_experts import LayerExperts
from pemt_jax.experts.routes import select

LEARNT = ('router', 'table')  # sources with logits
FIXED = ('average', 'task_random', 'fixed')


@functools.partial(jax.jit, static_argnums=(0, 2))
def task_routes(delta: LayerExperts, model: Values, tasks: int) -> tuple[jax.Array, jax.Array]:
  """Routes of tasks without noise: softmax of the logits, whatever the mode of training.

  Args:
    delta: its source is one of `LEARNT` or `FIXED`; other routes are no property of a task.
    model: values of `delta.model_weights`.
    tasks: number of tasks.

  Returns:
    ([task, layer, expert] at the present temperature, the same at temperature 1); both float32.
  """
  ids = jnp.arange(tasks)
  if delta.source in FIXED:
    routes = delta.routes(model, ids, None).swapaxes(0, 1)
    return routes, routes
  logits = delta.logits(model, ids).swapaxes(0, 1)
  return select(logits, 'softmax', model['temperature']), select(logits, 'softmax', 1.0)


def layer_names(delta: LayerExperts) -> tuple[str, ...]:
  """Names of all layers in the order of routes: `encoder/0`, ..., `decoder/0`, ..."""
  return tuple(f'{stack}/{layer}' for stack, depth in delta.depths for layer in range(depth))


def closing(delta: LayerExperts, pairs: tuple[tuple[int, int], ...]) -> jax.Array:
  """The constant `closed` [layer, expert] that disables the experts (layer, expert) of `pairs`."""
  table = jnp.zeros((delta.layers, delta.copies))
  for layer, expert in pairs:
    table = table.at[layer, expert].set(1.0)
  return table
