"""Two maps, one behind the other, over rows that are grouped by the expert whose weights they read.

On a CPU one product of many rows takes much less time than several of few rows, and what does not
leave the caches takes less than what does. So each group goes through both maps in one piece where
it can; the lengths that a piece may have are static, the shortest that holds the group is taken.
Other platforms have a product of all groups, `jax.lax.ragged_dot`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pemt_jax.models.layers import add_vector

# Lengths of pieces in units of an eighth of a mean group. Reading a matrix of 512 x 2048 takes as
# long as its product with 75 rows, so that very short pieces are not worth their compilation.
_UNITS, _SMALLEST_UNIT = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12), 16


@dataclasses.dataclass(frozen=True)
class OneGroup:
  """All rows are of one expert; its weights have no `expert` axis."""

  def project(self, rows: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """[row, in], [in, out] and [out] -> [row, out]."""
    y = rows @ kernel
    return y if bias is None else add_vector(y, bias)


@dataclasses.dataclass(frozen=True)
class AllGroups:
  """Groups stand one behind the other.

  Attributes:
    sizes: [expert] rows of each group; what stands behind the last one is of no expert.
  """

  sizes: jax.Array

  def project(self, rows: jax.Array, kernels: jax.Array, biases: jax.Array | None) -> jax.Array:
    """[row, in], [expert, in, out] and [expert, out] -> [row, out]."""
    y = jax.lax.ragged_dot(rows, kernels, self.sizes)
    if biases is None:
      return y
    biases = biases.astype(jnp.float32)  # So are the sums over rows in their gradient.
    return add_vector(
        y, jnp.repeat(biases, self.sizes, axis=0, total_repeat_length=rows.shape[0]))


@dataclasses.dataclass(frozen=True)
class Maps:
  """What rows go through; `place` is a `OneGroup`, an `AllGroups` or a `grouped.Groups`.

  Attributes:
    first: (place, weights, rows) -> a tree of rows; affine in rows and in weights, so that it is
      not computed again for gradients.
    second: (place, weights, that tree, constants of the rows) -> rows.
  """

  first: Callable[[Any, Any, jax.Array], Any]
  second: Callable[[Any, Any, Any, Any], jax.Array]

  def both(self, place: Any, weights: Any, rows: jax.Array, extra: Any) -> tuple[jax.Array, Any]:
    """Rows behind the second map, and the tree between."""
    middle = self.first(place, weights, rows)
    return self.second(place, weights, middle, extra), middle

  def pull(self, place: Any, given: tuple[Any, ...], y: jax.Array) -> tuple[Any, jax.Array]:
    """Gradients of weights and rows; `given` has weights, rows, constants, the tree between."""
    weights, rows, extra, middle = given
    _, second = jax.vjp(lambda w, m: self.second(place, w, m, extra), weights, middle)
    of_second, middle = second(y)
    _, first = jax.vjp(functools.partial(self.first, place), weights, rows)
    of_first, rows = first(middle)
    return jax.tree.map(jnp.add, of_first, of_second), rows


def lengths_of(rows: int, experts: int) -> tuple[int, ...]:
  """Lengths of pieces, ascending."""
  unit = max(8 * math.ceil(rows / (64 * experts)), _SMALLEST_UNIT)
  return tuple(sorted({min(unit * units, rows) for units in _UNITS}))


def spare_of(rows: int, experts: int) -> int:
  """Free rows behind the last group: its last piece may reach into them."""
  gaps = (b - a for a, b in itertools.pairwise((0, *lengths_of(rows, experts))))
  return max(gaps) if experts > 1 else 0


def counts(sizes: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
  """Numbers of pieces [expert, length]: of the longest, and one that holds the rest.

  Args:
    sizes: [expert] rows of each group.
    lengths: ascending.
  """
  ladder = jnp.asarray(lengths, sizes.dtype)
  whole, rest = sizes // ladder[-1], sizes % ladder[-1]
  last = (jnp.arange(ladder.size) == jnp.searchsorted(ladder, rest)[:, None]) & (rest > 0)[:, None]
  return last.astype(sizes.dtype).at[:, -1].add(whole)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def through(maps: Maps, lengths: tuple[int, ...], weights: Any, rows: jax.Array, extra: Any,
            sizes: jax.Array) -> jax.Array:
  """Sends rows through both maps.

  Args:
    maps: see `Maps`.
    lengths: of pieces, see `lengths_of`.
    weights: a tree of [expert, ...].
    rows: [row, features]; groups stand one behind the other, in order, `spare_of` rows behind.
    extra: a tree of [row, ...] without gradients.
    sizes: [expert] rows of each group.

  Returns:
    [row, features]; what stands at rows of no expert is undefined, and has no gradient.
  """
  return _sent(lambda *given: maps.both(*given)[0], lengths, weights, rows, extra, sizes)


def _forward(maps, lengths, weights, rows, extra, sizes):
  y, middle = _sent(maps.both, lengths, weights, rows, extra, sizes)
  return y, (weights, rows, extra, sizes, middle)


def _sent(work, lengths, *given):
  elsewhere = lambda weights, rows, extra, sizes: work(AllGroups(sizes), weights, rows, extra)
  return jax.lax.platform_dependent(
      *given, cpu=functools.partial(_in_pieces, work, lengths), default=elsewhere)


def _backward(maps, lengths, saved, y):
  def elsewhere(weights, rows, extra, sizes, middle, y):
    return maps.pull(AllGroups(sizes), (weights, rows, extra, middle), y)

  weights, rows = jax.lax.platform_dependent(
      *saved, y, cpu=functools.partial(_pulled_in_pieces, maps, lengths), default=elsewhere)
  return weights, rows, None, None


through.defvjp(_forward, _backward)


def _in_pieces(work, lengths, weights, rows, extra, sizes):
  """Rows through `work`; groups overwrite the rows in which the piece before them has reached."""
  @jax.custom_batching.sequential_vmap
  def run(weights, rows, extra, sizes):
    def piece(length, expert, first, _, found):
      own, cut = _of_expert(weights, expert), functools.partial(_cut, first, length)
      made = work(OneGroup(), own, cut(rows), cut(extra))
      return jax.tree.map(functools.partial(_put, first), found, made)

    made = jax.eval_shape(lambda *given: work(OneGroup(), *given), _of_expert(weights, 0), rows,
                          extra)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), made)
    return _over_pieces(sizes, lengths, piece, zeros)

  return run(weights, rows, extra, sizes)


def _pulled_in_pieces(maps, lengths, weights, rows, extra, sizes, middle, y):
  """`maps.pull`."""
  @jax.custom_batching.sequential_vmap
  def run(weights, rows, extra, sizes, middle, y):
    def piece(length, expert, first, stop, found):
      own, cut = _of_expert(weights, expert), functools.partial(_cut, first, length)
      inside = (first + jnp.arange(length) < stop)[:, None]
      given = own, cut(rows), cut(extra), cut(middle)
      part, x = maps.pull(OneGroup(), given, jnp.where(inside, cut(y), 0))
      total = jax.tree.map(lambda a, b: a.at[expert].add(b.astype(a.dtype)), found[0], part)
      return total, _put(first, found[1], x)

    total = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), weights)
    total, x = _over_pieces(sizes, lengths, piece, (total, jnp.zeros_like(rows)))
    return jax.tree.map(lambda a, b: a.astype(b.dtype), total, weights), x

  return run(weights, rows, extra, sizes, middle, y)


def _of_expert(weights, expert):
  return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, expert, 0, False), weights)


def _cut(first, length, rows):
  return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, length), rows)


def _put(first, rows, part):
  return jax.lax.dynamic_update_slice_in_dim(rows, part, first, 0)


def _over_pieces(sizes, lengths, piece, found):
  """Runs over the pieces of all groups, the groups in order.

  Args:
    sizes: [expert] rows of each group.
    lengths: rows that a piece may have.
    piece: (length, expert, first row, stop of the group, found) -> found.
    found: what is carried from piece to piece.
  """
  numbers, stops = counts(sizes, lengths), jnp.cumsum(sizes)

  def group(expert, found):
    carry = (stops[expert] - sizes[expert], found)
    for kind, length in reversed(list(enumerate(lengths))):
      step = lambda _, carry, length=length: (
          carry[0] + length, piece(length, expert, carry[0], stops[expert], carry[1]))
      carry = jax.lax.fori_loop(0, numbers[expert, kind], step, carry)
    return carry[1]

  return jax.lax.fori_loop(0, sizes.size, group, found)
