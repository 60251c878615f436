"""Shapes of matrix product operators: factors of both dimensions, ranks, sizes, known tables.

A matrix [rows, cols] with rows = i_0 ... i_(n-1) and cols = j_0 ... j_(n-1) is a chain of n cores
[r_k, i_k, j_k, r_(k+1)], r_0 = r_n = 1 (Gao et al. 2022, section 3; Oseledets 2011). Where the
products exceed the matrix, it is padded with zeros behind its rows and columns.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from pemt_jax.errors import UserError

CORES = 5


@dataclasses.dataclass(frozen=True)
class Factors:
  """How the two dimensions of a matrix are factorised.

  Attributes:
    rows: i_0 ... i_(n-1), of the first dimension.
    cols: j_0 ... j_(n-1), of the second one.
  """

  rows: tuple[int, ...]
  cols: tuple[int, ...]

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: no factors, other numbers of factors, or a factor below 1.
    """
    if not self.rows or len(self.rows) != len(self.cols) or min(*self.rows, *self.cols) < 1:
      raise UserError(f'factors {self.rows} of rows and {self.cols} of columns make no cores; give'
                      ' as many of the one as of the other, each at least 1.')

  @property
  def shape(self) -> tuple[int, int]:
    """(rows, cols) of the padded matrix."""
    return math.prod(self.rows), math.prod(self.cols)

  @property
  def centre(self) -> int:
    """Index of the central core."""
    return len(self.rows) // 2

  @property
  def swapped(self) -> Factors:
    """Those of the transposed matrix."""
    return Factors(self.cols, self.rows)

  def full_ranks(self) -> tuple[int, ...]:
    """(r_0, ..., r_n) that represent every matrix."""
    sizes = [i * j for i, j in zip(self.rows, self.cols, strict=True)]
    return tuple(min(math.prod(sizes[:bond]), math.prod(sizes[bond:]))
                 for bond in range(len(sizes) + 1))

  def ranks(self, limit: int | None = None) -> tuple[int, ...]:
    """Full ranks, each at most `limit`; None for no limit.

    Raises:
      UserError: a limit below 1.
    """
    full = self.full_ranks()
    if limit is None:
      return full
    if limit < 1:
      raise UserError(f'an MPO rank is limited to {limit}; give a limit of at least 1.')
    return tuple(min(rank, limit) for rank in full)

  def core_shapes(self, ranks: Sequence[int]) -> tuple[tuple[int, int, int, int], ...]:
    """Shapes of the cores for (r_0, ..., r_n)."""
    return tuple(zip(ranks[:-1], self.rows, self.cols, ranks[1:], strict=True))

  def count(self, ranks: Sequence[int]) -> int:
    """Number of entries of all cores."""
    return sum(map(math.prod, self.core_shapes(ranks)))

  def auxiliary_count(self, ranks: Sequence[int]) -> int:
    """Number of entries of all cores but the central one."""
    return self.count(ranks) - math.prod(self.core_shapes(ranks)[self.centre])

  def require(self, shape: Sequence[int]) -> None:
    """Checks that a matrix fits.

    Raises:
      UserError: it is larger than the products of the factors.
    """
    if any(size > room for size, room in zip(shape, self.shape, strict=True)):
      raise UserError(f'MPO factors {self.rows} x {self.cols} make a matrix of {self.shape[0]} x'
                      f' {self.shape[1]}, which is smaller than {shape[0]} x {shape[1]}; give'
                      ' larger factors.')


def factorise(size: int, count: int = CORES) -> tuple[int, ...]:
  """`count` factors of similar size, the largest in the middle, of the first number >= `size`
  that has such factors; the excess is padding.

  Args:
    size: at least 1.
    count: at least 1.
  """
  number = size
  while True:
    factors = _balanced(number, count)
    if count == 1 or max(factors) <= max(2 * math.ceil(number**(1 / count)), 3):
      return _largest_inside(factors)
    number += 1


def _balanced(number: int, count: int) -> list[int]:
  """Primes of the number, the largest first, each put to the smallest factor so far."""
  primes, divisor = [], 2
  while number > 1:
    while number % divisor == 0:
      primes.append(divisor)
      number //= divisor
    divisor = divisor + 1 if divisor * divisor <= number else max(number, divisor + 1)
  factors = [1] * count
  for prime in sorted(primes, reverse=True):
    factors[factors.index(min(factors))] *= prime
  return factors


def _largest_inside(factors: Sequence[int]) -> tuple[int, ...]:
  ordered, result = sorted(factors), [0] * len(factors)
  outside = itertools.chain(*zip(range(len(factors)), reversed(range(len(factors)))))
  for place, factor in zip(outside, ordered):
    result[place] = factor
  return tuple(result)


def factors_of(rows: int, cols: int, count: int = CORES) -> Factors:
  """Factors of a matrix that stands in no table."""
  return Factors(factorise(rows, count), factorise(cols, count))


_BASE, _BASE_END = (3, 4, 4, 4, 4), (4, 4, 4, 4, 3)
_FF, _LARGE, _LARGE_FF = (4, 4, 8, 6, 4), (4,) * 5, (4, 4, 8, 8, 4)

# The published shapes of matrices [in, out] (of tables: [vocab, embed]), by the sizes of a backbone
# (family, embed, mlp) and component.
PUBLISHED: dict[tuple[str, int, int], dict[str, Factors]] = {
    ('t5', 768, 3072): {
        'wi': Factors(_BASE, _FF), 'wo': Factors(_FF, _BASE), 'q': Factors(_BASE_END, _BASE),
        'k': Factors(_BASE_END, _BASE), 'v': Factors(_BASE_END, _BASE),
        'o': Factors(_BASE, _BASE_END), 'word_embed': Factors((8,) * 5, _BASE)},
    ('t5', 1024, 4096): {
        'wi': Factors(_LARGE, _LARGE_FF), 'wo': Factors(_LARGE_FF, _LARGE),
        'q': Factors(_LARGE, _LARGE), 'k': Factors(_LARGE, _LARGE), 'v': Factors(_LARGE, _LARGE),
        'o': Factors(_LARGE, _LARGE), 'word_embed': Factors((8,) * 5, _LARGE)},
    ('bert', 768, 3072): {
        'wi': Factors(_BASE, (8, 4, 4, 4, 6)), 'wo': Factors(_FF, _BASE),
        'q': Factors(_BASE_END, _BASE), 'k': Factors(_BASE_END, _BASE),
        'v': Factors(_BASE_END, _BASE), 'o': Factors(_BASE_END, _BASE),
        'pooler': Factors(_BASE_END, _BASE), 'word_embed': Factors((6, 8, 10, 8, 8), _BASE_END)},
    ('gpt2', 768, 3072): {'wi': Factors(_BASE, _FF), 'wo': Factors(_FF, _BASE)},
    ('gpt2', 1024, 4096): {'wi': Factors(_LARGE, _LARGE_FF), 'wo': Factors(_LARGE_FF, _LARGE)},
}


def known_factors(model: tuple[str, int, int], component: str, shape: tuple[int, int],
                  count: int = CORES) -> Factors:
  """The published factors where a table has them for such a matrix, else automatic ones.

  Args:
    model: family and its sizes, (family, embed, mlp).
    component: a name in the tables, such as 'wi'.
    shape: (rows, cols) of the matrix.
    count: number of cores.
  """
  found = PUBLISHED.get(model, {}).get(component)
  fits = found is not None and len(found.rows) == count and found.shape[1] == shape[1] and (
      found.shape[0] == shape[0] or component == 'word_embed' and found.shape[0] >= shape[0])
  return found if fits else factors_of(*shape, count)
