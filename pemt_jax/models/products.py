"""Matrix products of bfloat16 that use the matrix units of every platform.

XLA's products for CPUs use AMX where bfloat16 arrays give float32; what gives bfloat16 is computed
in float32, four to six times slower. So products give float32 there and are rounded afterwards,
which is the same number, and gradients get rounded factors.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

_WIDE = jnp.float32
_differentiated_twice = contextvars.ContextVar('differentiated_twice', default=False)


@contextlib.contextmanager
def differentiated_twice() -> Iterator[None]:
  """Products that are traced inside are plain ones, whose gradients may be differentiated again.

  Neither JAX nor XLA for CPUs can do that with the others inside of a loop over layers.
  """
  token = _differentiated_twice.set(True)
  try:
    yield
  finally:
    _differentiated_twice.reset(token)


def matmul(a: jax.Array, b: jax.Array, result: Any = None) -> jax.Array:
  """a @ b as `jnp.matmul`; factors of the gradients are in the dtype of a and b.

  Args:
    a: [..., rows, in] or [..., in] with a `b` of two axes.
    b: [in, out] or [..., in, out].
    result: dtype of the product, that of the factors or float32; None is the former.
  """
  narrow = a.dtype == b.dtype == jnp.bfloat16
  if not narrow or not _plain(a, b) or _differentiated_twice.get():
    return jnp.matmul(a, b, preferred_element_type=result)
  return _wide(a, b) if result == _WIDE else _narrow(a, b)


def _plain(a, b):
  """Whether no axis in front is broadcast."""
  return b.ndim == 2 and a.ndim > 1 or a.ndim == b.ndim and a.shape[:-2] == b.shape[:-2]


def _rounded(a, b):
  wide = lambda a, b: jnp.matmul(a, b, preferred_element_type=_WIDE).astype(a.dtype)
  return jax.lax.platform_dependent(a, b, cpu=wide, default=jnp.matmul)


def _float32(a, b):
  return jnp.matmul(a, b, preferred_element_type=_WIDE)


def _gradients(factors, y):
  a, b = factors
  y = y.astype(a.dtype)
  of_a = _rounded(y, jnp.swapaxes(b, -1, -2))
  if b.ndim == 2:
    a, y = a.reshape(-1, a.shape[-1]), y.reshape(-1, y.shape[-1])
  return of_a, _rounded(jnp.swapaxes(a, -1, -2), y)


def _product(function):
  """A product with these gradients."""
  product = jax.custom_vjp(function)
  product.defvjp(lambda a, b: (function(a, b), (a, b)), _gradients)
  return product


_narrow, _wide = _product(_rounded), _product(_float32)
