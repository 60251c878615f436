"""Vectors of tasks: a name and a row of numbers each; what routers read."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.errors import UserError, number, one_of

POOLINGS = ('masked', 'legacy')


@dataclasses.dataclass(frozen=True)
class TaskVectors:
  """One vector for each task.

  Attributes:
    names: of the tasks, each once.
    vectors: [task, width] float32, in their order.
  """

  names: tuple[str, ...]
  vectors: np.ndarray

  @classmethod
  def of(cls, rows: Mapping[str, np.ndarray]) -> TaskVectors:
    """Vectors of equal width by name, in the order of the names."""
    return cls(tuple(sorted(rows)), np.stack([rows[name] for name in sorted(rows)]).astype('f4'))

  @property
  def width(self) -> int:
    """Numbers of a vector."""
    return self.vectors.shape[1]

  def unit(self) -> TaskVectors:
    """All vectors divided by the root mean square of their numbers; zeros stay zeros."""
    size = np.sqrt(np.mean(np.square(self.vectors, dtype=np.float64)))
    return dataclasses.replace(self, vectors=(self.vectors / (size or 1.0)).astype(np.float32))

  def chosen(self, names: Sequence[str]) -> TaskVectors:
    """The vectors of some tasks, in their order.

    Raises:
      UserError: a task has no vector.
    """
    missing = [name for name in names if name not in self.names]
    if missing:
      raise UserError(f"there is no task vector for '{missing[0]}', only for"
                      f" {', '.join(self.names[:8])}{', ...' if len(self.names) > 8 else ''};"
                      ' make one for every task.')
    return TaskVectors(tuple(names), self.vectors[[self.names.index(name) for name in names]])


def random_vectors(names: Sequence[str], width: int, stddev: float, seed: int) -> TaskVectors:
  """Independent draws from N(0, stddev^2).

  A task's vector depends on its name, the width and the seed only, not on the other tasks.

  Args:
    names: of the tasks.
    width: numbers of a vector.
    stddev: of each number; the scale of published random vectors is not known.
    seed: of the draws.

  Raises:
    UserError: a number out of its range.
  """
  number('the width of task vectors', width, width >= 1, 'of at least 1')
  number('the standard deviation of task vectors', stddev, stddev > 0, 'above 0')
  draw = lambda name: np.random.default_rng((seed, zlib.crc32(name.encode()))).normal(size=width)
  return TaskVectors.of({name: stddev * draw(name) for name in names})


def pooled(states: jax.Array, mask: jax.Array, pooling: str) -> jax.Array:
  """Mean of states over positions.

  Args:
    states: [batch, length, embed].
    mask: [batch, length] 1 for real positions.
    pooling: 'masked', over real positions; 'legacy', over all positions of the longest row, so that
      the mean depends on the rows that happen to share a batch (published).

  Returns:
    [batch, embed] float32.

  Raises:
    UserError: the pooling is not known.
  """
  one_of('pooling', pooling, POOLINGS)
  mask = mask.astype(jnp.float32)
  if pooling == 'legacy':
    mask = jnp.broadcast_to(jnp.max(mask, axis=0), mask.shape)
  total = jnp.einsum('ble,bl->be', states.astype(jnp.float32), mask)
  return total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1.0)
