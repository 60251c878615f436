"""Matrix products of a program: which ones it has, their cost, and their time when run alone."""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class Product:
  """One `dot_general`.

  Attributes:
    lhs: shape.
    rhs: shape.
    dims: ((lhs contracting, rhs contracting), (lhs batch, rhs batch)).
    dtype: of the first operand.
    result: dtype of the product where the program states it.
  """

  lhs: tuple[int, ...]
  rhs: tuple[int, ...]
  dims: tuple[tuple[tuple[int, ...], ...], ...]
  dtype: str
  result: str = ''

  @property
  def sizes(self) -> tuple[int, int, int, int]:
    """(batch, rows, contracted, columns)."""
    (contract, right), (batch, right_batch) = self.dims
    rest = set(range(len(self.lhs))) - {*contract, *batch}
    right_rest = set(range(len(self.rhs))) - {*right, *right_batch}
    size = lambda shape, axes: math.prod(shape[axis] for axis in axes)
    return (size(self.lhs, batch), size(self.lhs, rest), size(self.lhs, contract),
            size(self.rhs, right_rest))

  @property
  def flops(self) -> int:
    """Multiplications and additions."""
    return 2 * math.prod(self.sizes)


def _inner(equation: Any) -> Iterator[tuple[Any, int]]:
  """Programs inside of an equation and how often each runs."""
  if equation.primitive.name == 'while':
    raise ValueError('the number of turns of a while loop is unknown')
  times = equation.params['length'] if equation.primitive.name == 'scan' else 1
  if platforms := equation.params.get('branches_platforms'):
    own = next(index for index, names in enumerate(platforms)
               if names is None or jax.default_backend() in names)
    yield equation.params['branches'][own].jaxpr, times
    return
  for value in equation.params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        yield item.jaxpr, times
      elif isinstance(item, core.Jaxpr):
        yield item, times


def matrix_products(program: Any, times: int = 1) -> collections.Counter[Product]:
  """Counts the products of a program; the body of a scan counts once for each of its turns.

  Every branch of a conditional counts; of one by platform, that of this one.

  Args:
    program: Jaxpr or ClosedJaxpr.
    times: how often it runs.

  Raises:
    ValueError: a while loop.
  """
  found: collections.Counter[Product] = collections.Counter()
  for equation in getattr(program, 'jaxpr', program).eqns:
    if equation.primitive.name == 'dot_general':
      lhs, rhs = (variable.aval for variable in equation.invars)
      dims = jax.tree.map(int, equation.params['dimension_numbers'])
      dims = tuple(tuple(map(tuple, pair)) for pair in dims)
      result = equation.params['preferred_element_type']
      result = '' if result in (None, lhs.dtype) else str(result)
      found[Product(lhs.shape, rhs.shape, dims, str(lhs.dtype), result)] += times
      continue
    for inner, turns in _inner(equation):
      found.update(matrix_products(inner, times * turns))
  return found


def total_flops(products: Mapping[Product, int]) -> int:
  """Operations of all products."""
  return sum(product.flops * count for product, count in products.items())


def _seconds(function: Any, operands: tuple[jax.Array, ...], rounds: int) -> tuple[float, float]:
  """Median (wall, CPU) seconds of a compiled call; a sample of a short one is several calls."""
  compiled = jax.jit(function).lower(*operands).compile()
  call = lambda: jax.block_until_ready(compiled(*operands))
  call()
  start = time.perf_counter()
  call()
  calls = max(1, min(50, int(0.01 / (time.perf_counter() - start))))
  wall, used = [], []
  for _ in range(rounds):
    start, start_used = time.perf_counter(), time.process_time()
    for _ in range(calls):
      call()
    wall.append((time.perf_counter() - start) / calls)
    used.append((time.process_time() - start_used) / calls)
  return statistics.median(wall), statistics.median(used)


def product_seconds(product: Product, rounds: int) -> tuple[float, float]:
  """(Wall, CPU) seconds of one product: the faster of its own layout and plain matrices.

  Plain is [batch, row, inner] times [batch, inner, column].
  """
  rng = np.random.default_rng(0)
  array = lambda shape: jnp.asarray(rng.normal(size=shape), product.dtype)
  batch, rows, inner, columns = product.sizes
  result = product.result or None
  own = lambda a, b: jax.lax.dot_general(a, b, product.dims, preferred_element_type=result)
  plain = (array((batch, rows, inner)), array((batch, inner, columns)))
  if batch == 1:
    plain = tuple(operand[0] for operand in plain)
  return min(_seconds(own, (array(product.lhs), array(product.rhs)), rounds),
             _seconds(lambda a, b: jnp.matmul(a, b, preferred_element_type=result), plain, rounds))


def measure(products: Mapping[Product, int], rounds: int) -> dict[str, Any]:
  """Times every product alone.

  Args:
    products: how often each occurs.
    rounds: samples of each; the median counts.

  Returns:
    `seconds` and `cpu_seconds` of all, `gflop`, and `products`: a row for each, the longest first.
  """
  rows = []
  for product, count in products.items():
    seconds, used = product_seconds(product, rounds)
    rows.append({'count': count, 'seconds_all': count * seconds, 'cpu_seconds_all': count * used,
                 'gflop_per_second': product.flops / seconds / 1e9,
                 'sizes': product.sizes, **dataclasses.asdict(product)})
  rows.sort(key=lambda row: -row['seconds_all'])
  total = lambda name: sum(row[name] for row in rows)
  return {'seconds': total('seconds_all'), 'cpu_seconds': total('cpu_seconds_all'),
          'gflop': total_flops(products) / 1e9, 'products': rows}
