"""Binary masks that keep the largest scores of a tensor, with a straight-through gradient.

The operator of Zeng et al. (2023, sec. 3): of n scores the int((1 - density) n) smallest by
absolute value give 0, the others 1. Backwards the mask counts as the absolute value.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from pemt_jax.errors import UserError


def zeros_of(size: int, density: float) -> int:
  """Number of zeros in a mask of `size` entries: int((1 - density) size) in double precision.

  Args:
    size: entries, >= 1.
    density: share of entries that are kept, in [0, 1].

  Raises:
    UserError: a density out of its range.
  """
  if not 0.0 <= density <= 1.0:
    raise UserError(f'the density of a mask is {density}; give a number from 0 to 1.')
  return int((1.0 - density) * size)


def _threshold(bits: jax.Array, zeros: int) -> jax.Array:
  """The value at position `zeros` of each sorted row: [rows, entries] -> [rows, 1], int32.

  Bisection over the 31 bits of the value; on a CPU an order of magnitude faster than sorting.
  """
  def body(step, found):
    trial = found | jnp.left_shift(jnp.int32(1), 30 - step)
    below = jnp.sum((bits < trial).astype(jnp.int32), axis=1, keepdims=True)
    return jnp.where(below <= zeros, trial, found)

  # Starts from the data, so that its device and its mapped axes are those of the data.
  return jax.lax.fori_loop(0, 31, body, bits[:, :1] * 0)


def top_mask(scores: jax.Array, density: float, leading: int = 0) -> jax.Array:
  """Keeps the entries of largest absolute value: exactly n - int((1 - density) n) ones each.

  Among equal values the first ones in memory order become zeros, so that every mask has its exact
  number of ones and a mask given as scores gives back itself.

  Args:
    scores: [..., entries...] float.
    density: share of entries that are kept, in [0, 1].
    leading: the first axes of `scores` that index separate tensors, such as layers and tasks.

  Returns:
    Zeros and ones of the shape and type of `scores`. Its gradient by `scores` is that of their
    absolute values: sign(scores) times the gradient by the mask, 0 at a score of 0.

  Raises:
    UserError: a density out of its range.
  """
  return _top_mask(scores, density, leading)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _straight_through(scores, density, leading):
  shape = scores.shape
  entries = math.prod(shape[leading:])
  zeros = zeros_of(entries, density)
  if zeros in (0, entries):
    return jnp.full_like(scores, 0.0 if zeros else 1.0)
  values = jnp.abs(scores.astype(jnp.float32)).reshape(-1, entries)
  # The order of non-negative floats is that of their bits.
  bits = jax.lax.bitcast_convert_type(values, jnp.int32)
  threshold = _threshold(bits, zeros)
  left = zeros - jnp.sum((bits < threshold).astype(jnp.int32), axis=1, keepdims=True)
  equal = bits == threshold
  kept_equal = equal & (jnp.cumsum(equal.astype(jnp.int32), axis=1) > left)
  return ((bits > threshold) | kept_equal).astype(scores.dtype).reshape(shape)


def _forward(scores, density, leading):
  return _straight_through(scores, density, leading), jnp.sign(scores)


def _backward(density, leading, sign, gradient):
  del density, leading
  return (gradient * sign,)


_straight_through.defvjp(_forward, _backward)
_top_mask = jax.jit(_straight_through, static_argnums=(1, 2))


COMBINATIONS = ('or', 'and', 'add')


def combine(masks: list[jax.Array], how: str) -> jax.Array:
  """Joins masks entry by entry; gradients follow the arithmetic.

  Args:
    masks: at least one; zeros and ones, broadcastable to each other.
    how: 'or' 1 - (1 - a)(1 - b), 'and' a b, 'add' a + b, whose entries may be above 1.

  Raises:
    UserError: an unknown word.
  """
  if how not in COMBINATIONS:
    raise UserError(f"masks are combined by '{how}'; choose one of {', '.join(COMBINATIONS)}.")
  joins = {'or': lambda a, b: 1.0 - (1.0 - a) * (1.0 - b), 'and': lambda a, b: a * b,
           'add': lambda a, b: a + b}
  return functools.reduce(joins[how], masks)
