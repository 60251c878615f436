"""Sums of task vectors tau_j = theta_j - theta_0: task arithmetic, TIES and DARE.

theta_0 is what the experts share: their common first values, or zeros where a delta of zeros leaves
the backbone as it is.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from pemt_jax.errors import number


def task_vectors(stacked: Any, base: Any) -> Any:
  """theta_j - theta_0 in float32: leaves [source, ...] minus leaves [...]."""
  return jax.tree.map(lambda leaf, own: leaf.astype(jnp.float32) - own, stacked, base)


def add_to_base(base: Any, update: Any, scale: float) -> Any:
  """theta_0 + scale * update in float32."""
  return jax.tree.map(lambda own, change: jnp.asarray(own, jnp.float32) + scale * change, base,
                      update)


@jax.jit
def task_arithmetic(stacked: Any, base: Any, scale: float = 1.0) -> Any:
  """theta_0 + scale * sum_j tau_j (Ilharco et al. 2023, arXiv 2212.04089).

  Args:
    stacked: pytree with leaves [source, ...].
    base: theta_0, the same tree with leaves [...].
    scale: the paper's lambda.
  """
  total = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), task_vectors(stacked, base))
  return add_to_base(base, total, scale)


@functools.partial(jax.jit, static_argnames='whole')
def trim(vectors: Any, keep: float, whole: bool = True) -> Any:
  """Keeps the entries of each task vector with the largest magnitudes, zeros the others.

  Args:
    vectors: pytree with leaves [source, ...].
    keep: share of the entries that stay, above 0 and at most 1; entries of equal magnitude at the
      threshold all stay.
    whole: rank the entries of the whole vector together; False ranks each leaf by itself.
  """
  flat = jax.tree.map(lambda leaf: jnp.abs(leaf).reshape(leaf.shape[0], -1), vectors)
  if whole:
    threshold = _threshold(jnp.concatenate(jax.tree.leaves(flat), axis=1), keep)
    thresholds = jax.tree.map(lambda _: threshold, flat)
  else:
    thresholds = jax.tree.map(lambda leaf: _threshold(leaf, keep), flat)

  def cut(leaf, least):
    least = least.reshape((-1,) + (1,) * (leaf.ndim - 1))
    return jnp.where(jnp.abs(leaf) >= least, leaf, 0.0)

  return jax.tree.map(cut, vectors, thresholds)


def _threshold(magnitudes: jax.Array, keep: float) -> jax.Array:
  """Smallest magnitude that stays, for each row of [source, entry]."""
  size = magnitudes.shape[1]
  count = jnp.clip(jnp.round(keep * size).astype(jnp.int32), 1, size)
  return jnp.sort(magnitudes, axis=1)[:, size - count]


def elect_signs(vectors: Any) -> Any:
  """Sign of the summed task vectors of every entry: 1, -1, or 0 where they cancel."""
  return jax.tree.map(lambda leaf: jnp.sign(jnp.sum(leaf, axis=0)), vectors)


def disjoint_mean(vectors: Any, signs: Any) -> Any:
  """Mean of every entry over the task vectors that have the elected sign; 0 where none has it."""
  def mean(leaf, sign):
    agrees = (jnp.sign(leaf) == sign) & (leaf != 0)
    return jnp.sum(leaf * agrees, axis=0) / jnp.maximum(jnp.sum(agrees, axis=0), 1)

  return jax.tree.map(mean, vectors, signs)


def ties(stacked: Any, base: Any, keep: float = 0.2, scale: float = 1.0,
         whole: bool = True) -> Any:
  """Trim, elect a sign, average what agrees (Yadav et al. 2023, arXiv 2306.01708, algorithm 1).

  Args:
    stacked: pytree with leaves [source, ...].
    base: theta_0, the same tree with leaves [...].
    keep: share of the entries of a task vector that stay, see `trim`.
    scale: factor of the merged task vector, the paper's lambda.
    whole: see `trim`.

  Raises:
    UserError: a share outside of (0, 1].
  """
  number('the share of entries that TIES keeps', keep, 0 < keep <= 1, 'above 0 and at most 1')
  return _ties(task_vectors(stacked, base), base, keep, scale, whole)


@functools.partial(jax.jit, static_argnames='whole')
def _ties(vectors: Any, base: Any, keep: float, scale: float, whole: bool) -> Any:
  trimmed = trim(vectors, keep, whole)
  return add_to_base(base, disjoint_mean(trimmed, elect_signs(trimmed)), scale)


@jax.jit
def drop_and_rescale(vectors: Any, rate: float, key: jax.Array) -> Any:
  """m * tau / (1 - rate) with independent m ~ Bernoulli(1 - rate) (arXiv 2311.03099, eq. 3).

  The choice for an entry depends on the key, the path of its leaf and the place of its source.
  """
  def drop(path, leaf):
    own = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
    keys = jax.vmap(lambda source: jax.random.fold_in(own, source))(jnp.arange(leaf.shape[0]))
    kept = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - rate, leaf.shape[1:]))(keys)
    return jnp.where(kept, leaf / (1.0 - rate), 0.0)

  return jax.tree_util.tree_map_with_path(drop, vectors)


def dare(stacked: Any, base: Any, key: jax.Array, rate: float = 0.5, scale: float = 1.0,
         keep: float | None = None) -> Any:
  """Drops entries of the task vectors at random, rescales the rest, adds (Yu et al. 2024).

  Args:
    stacked: pytree with leaves [source, ...].
    base: theta_0, the same tree with leaves [...].
    key: decides what is dropped.
    rate: share of dropped entries, at least 0 and below 1; 0 is task arithmetic.
    scale: factor of the merged task vector.
    keep: None adds the vectors; a share merges them by TIES instead.

  Raises:
    UserError: a rate outside of [0, 1) or a share outside of (0, 1].
  """
  number('the rate at which DARE drops entries', rate, 0 <= rate < 1, 'at least 0 and below 1')
  vectors = drop_and_rescale(task_vectors(stacked, base), rate, key)
  if keep is None:
    total = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), vectors)
    return add_to_base(base, total, scale)
  number('the share of entries that TIES keeps', keep, 0 < keep <= 1, 'above 0 and at most 1')
  return _ties(vectors, base, keep, scale, True)
