"""Rows that hold several examples: to which of them each position belongs.

The examples of a row stand one behind the other. Attention stays within an example, positions
start anew with it, and what a method computes for an example is pooled from its positions and
spread over them.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST


@flax.struct.dataclass
class Packing:
  """The examples of the rows of a batch, seen from the positions of one stack.

  Attributes:
    ids: [batch, length] example of each position, counted from 1 within its row; 0 is padding.
    rows: [batch, example] 1 for real examples, 0 for places that a row leaves free.
    places: [batch, length] int32 place of each position in its example; positions of a prompt
      count.
    positions: [batch, length] int32 the same without the padding of a prompt: 0 is the first real
      position.
  """

  ids: jax.Array
  rows: jax.Array
  places: jax.Array
  positions: jax.Array

  @classmethod
  def of(cls, ids: jax.Array, rows: jax.Array) -> Packing:
    """The packing of a stack without a prompt; see the attributes."""
    index = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    before = jnp.pad(ids, ((0, 0), (1, 0)))[:, :-1]
    starts = jax.lax.cummax(jnp.where(ids != before, index, 0), axis=1)
    return cls(ids, rows.astype(jnp.float32), index - starts, index - starts)

  def joins(self, keys: Packing) -> jax.Array:
    """[batch, 1, positions, positions of keys] 1 within an example, 0 between two."""
    return (self.ids[:, None, :, None] == keys.ids[:, None, None, :]).astype(jnp.float32)

  def front(self, values: jax.Array, rest: jax.Array) -> jax.Array:
    """Puts a value in the place of each of the first positions of every example.

    Args:
      values: the values of a prompt's positions: [front] or [front, features], or [batch, front,
        features] where rows have their own.
      rest: values of the other positions, [batch, length] or [batch, length, features].
    """
    size = values.shape[-rest.ndim + 1]
    # A product, since the gradient of a look-up would be a scatter.
    chosen = jnp.matmul(jax.nn.one_hot(self.places, size, dtype=values.dtype), values,
                        precision=HIGHEST)
    here = (self.ids > 0) & (self.places < size)
    return jnp.where(here.reshape(here.shape + (1,) * (rest.ndim - 2)), chosen, rest)

  def pool(self, x: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean over the positions of each example, float32; zeros where there is none.

    Args:
      x: [batch, length, features].
      weights: [batch, length].

    Returns:
      [batch, example, features].
    """
    members = self._members() * weights[..., None]
    total = jnp.einsum('bls,blf->bsf', members, x.astype(jnp.float32), precision=HIGHEST)
    return total / jnp.maximum(jnp.sum(members, axis=1), 1.0)[..., None]

  def spread(self, x: jax.Array) -> jax.Array:
    """Values of examples [batch, example, features] at their positions [batch, length, features].
    """
    return jnp.einsum('bls,bsf->blf', self._members(), x, precision=HIGHEST)

  def _members(self) -> jax.Array:
    """[batch, length, example] 1 where a position belongs to an example."""
    return jax.nn.one_hot(self.ids - 1, self.rows.shape[1], dtype=jnp.float32)


def packing_of(batch: Mapping[str, jax.Array]) -> tuple[Packing, Packing] | None:
  """The packing of inputs and of targets; None where every row is one example."""
  if 'input_segments' not in batch:
    return None
  rows = batch['example_ids'] >= 0
  return Packing.of(batch['input_segments'], rows), Packing.of(batch['target_segments'], rows)
