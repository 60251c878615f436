"""Random numbers that are a function of a key: the same on every machine, in any order.

Shuffles and span corruption draw from here, so that example i of epoch e of a named stream can be
made alone, without the draws before it. The mixing function is splitmix64 (Steele et al., 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np

_WEYL = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

KeyPart = int | str | np.ndarray


def _mix(x: np.ndarray) -> np.ndarray:
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def _as_bits(part: KeyPart) -> np.ndarray:
  if isinstance(part, str):
    part = int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], 'little')
  if isinstance(part, np.ndarray):
    return part.astype(np.uint64)
  return np.asarray(int(part) & _MASK, np.uint64)


def keyed_bits(*key: KeyPart) -> np.ndarray:
  """Uniform 64-bit numbers.

  Args:
    *key: integers, texts and integer arrays; arrays broadcast against each other.

  Returns:
    uint64 array of the broadcast shape, one independent number per combination of key parts.
  """
  state = np.zeros((1,), np.uint64)  # An array, since scalars would warn when they wrap around.
  for part in key:
    state = _mix(_mix(state + np.uint64(_WEYL)) + _as_bits(part))
  scalar = all(not isinstance(part, np.ndarray) or part.ndim == 0 for part in key)
  return state[0] if scalar else state


def keyed_permutation(size: int, *key: KeyPart) -> np.ndarray:
  """A uniform permutation of range(size), int64 [size], decided by the key alone."""
  return np.argsort(keyed_bits(*key, np.arange(size)), kind='stable')
