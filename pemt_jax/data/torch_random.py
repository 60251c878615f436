"""Draws of PyTorch's CPU generator, computed with NumPy alone.

The generator is a Mersenne Twister whose 32-bit words are consumed one after the other.
"""

from __future__ import annotations

import numpy as np

_WORD = 2**32
_FRACTION = 53  # bits of a double's fraction


class TorchRandom:
  """A generator after `torch.Generator().manual_seed(seed)`."""

  def __init__(self, seed: int):
    """Seeds the stream.

    Args:
      seed: 0 to 2**32 - 1.
    """
    self._state = np.random.RandomState(seed)

  def words(self, count: int) -> np.ndarray:
    """The next words of the stream: [count] uint32."""
    return self._state.randint(0, _WORD, size=count, dtype=np.uint32)

  def permutation(self, count: int) -> np.ndarray:
    """`torch.randperm(count)`: row i is swapped with row i + word_i mod (count - i).

    Returns:
      [count] int64.
    """
    order = list(range(count))
    for i, raw in enumerate(self.words(max(count - 1, 0)).tolist()):
      j = i + raw % (count - i)
      order[i], order[j] = order[j], order[i]
    return np.asarray(order, np.int64)

  def uniforms(self, count: int) -> np.ndarray:
    """Numbers in [0, 1) of 53 bits, two words each: [count] float64."""
    high, low = self.words(2 * count).astype(np.uint64).reshape(count, 2).T
    bits = (high << np.uint64(32) | low) & np.uint64(2**_FRACTION - 1)
    return bits.astype(np.float64) * 2.0**-_FRACTION

  def choices(self, weights: np.ndarray, count: int) -> np.ndarray:
    """`torch.multinomial(weights, count, replacement=True)`.

    Args:
      weights: [class] of sum 1.
      count: draws.

    Returns:
      [count] int64 classes.
    """
    found = np.searchsorted(np.cumsum(weights), self.uniforms(count), side='left')
    return np.minimum(found, len(weights) - 1)

  def below(self, bounds: int | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`torch.randint(bounds, shape)` of bounds up to 2**32: int64 of the shape.

    Args:
      bounds: exclusive upper bound, or an array of bounds that broadcasts against the shape.
      shape: of the result; the words go row by row.
    """
    return self.words(int(np.prod(shape))).astype(np.int64).reshape(shape) % bounds
