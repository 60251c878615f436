"""Fisher-weighted averages (Matena and Raffel 2022, arXiv 2111.09832)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Added to every Fisher entry, so that entries that no source cares for take their plain mean.
FLOOR = 1e-6


def squared_gradients(loss_fn: Callable[[Any, Any], jax.Array], tuned: Any, examples: Any) -> Any:
  """Sum over examples of the squared gradient of -log p(y | x), entry by entry.

  Divided by the number of examples this is the diagonal Fisher of eq. 6 where y is drawn from the
  model, and the empirical one where y is the label. One gradient is kept at a time.

  Args:
    loss_fn: (tuned, one example) -> [] -log p.
    tuned: tree of one source.
    examples: pytree with leaves [example, ...].
  """
  def add(total, example):
    grads = jax.grad(loss_fn)(tuned, example)
    return jax.tree.map(lambda t, g: t + jnp.square(g.astype(jnp.float32)), total, grads), None

  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), tuned)
  return jax.lax.scan(add, zeros, examples)[0]


@jax.jit
def unit_scale(fishers: Any) -> Any:
  """Divides the Fisher of each source by its mean entry, so that no source wins by its scale."""
  leaves = jax.tree.leaves(fishers)
  entries = sum(leaf[0].size for leaf in leaves)
  mean = sum(jnp.sum(leaf.reshape(leaf.shape[0], -1), axis=1) for leaf in leaves) / entries
  mean = jnp.where(mean > 0, mean, 1.0)
  return jax.tree.map(lambda leaf: leaf / mean.reshape((-1,) + (1,) * (leaf.ndim - 1)), fishers)


@jax.jit
def fisher_mean(stacked: Any, fishers: Any, weights: jax.Array, floor: float = FLOOR) -> Any:
  """sum_j w_j F_j theta_j / sum_j w_j F_j, entry by entry (eq. 4).

  Args:
    stacked: pytree with leaves [source, ...].
    fishers: the same tree of diagonal Fishers, at least 0.
    weights: [source] weights of the sources, the paper's lambda.
    floor: added to every Fisher entry.

  Returns:
    The tree without its source axis, float32.
  """
  def mix(leaf, fisher):
    own = jnp.asarray(weights, jnp.float32).reshape((-1,) + (1,) * (leaf.ndim - 1))
    share = own * (fisher.astype(jnp.float32) + floor)
    share = share / jnp.sum(share, axis=0)
    return jnp.sum(share * leaf.astype(jnp.float32), axis=0)

  return jax.tree.map(mix, stacked, fishers)
