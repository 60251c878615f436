"""Matrix products of a compiled program, read from XLA's text of it."""

from __future__ import annotations

import collections
import dataclasses
import math
import re

_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
_ARRAY = re.compile(r'^\w+\[([\d,]*)\]')
_DOT = re.compile(r'\bdot\(([^)]*)\)')
_CALLED = re.compile(r'\b(calls|to_apply|body|condition|true_computation|false_computation)='
                     r'%?([\w.\-]+)')
_BRANCHES = re.compile(r'\bbranch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Dot:
  """A product of a compiled program.

  Attributes:
    shape: of the result.
    contracted: number of summed elements.
    name: where it comes from, such as `jit(step)/.../mlp/wo/dot_general`; may be empty.
  """

  shape: tuple[int, ...]
  contracted: int
  name: str

  @property
  def flops(self) -> int:
    """Multiplications and additions."""
    return 2 * math.prod(self.shape) * self.contracted


@dataclasses.dataclass
class _Computation:
  dots: list[Dot] = dataclasses.field(default_factory=list)
  calls: list[tuple[str, int]] = dataclasses.field(default_factory=list)
  shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


def _shape(text: str) -> tuple[int, ...] | None:
  match = _ARRAY.match(text)
  return tuple(map(int, filter(None, match[1].split(',')))) if match else None


def _dot(text: str, shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]]) -> Dot:
  operand = re.findall(r'%?([\w.\-]+)$', _DOT.search(text)[1].split(', ')[0])[0]
  axes = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', text)[1]
  left = shapes[operand]
  name = re.search(r'op_name="([^"]*)"', text)
  return Dot(shape, math.prod(left[int(axis)] for axis in axes.split(',') if axis),
             name[1] if name else '')


def _add(computation: _Computation, name: str, text: str) -> None:
  shape = _shape(text)
  if shape is not None:
    computation.shapes[name] = shape
  if _DOT.search(text):
    computation.dots.append(_dot(text, shape, computation.shapes))
  found = _CALLED.findall(text)
  for branches in _BRANCHES.findall(text):
    found += [('branch', branch.strip(' %')) for branch in branches.split(',')]
  trips = _TRIPS.search(text)
  for kind, called in found:
    # A loop whose number of turns is unknown counts as 0 turns; `products` refuses dots in it.
    times = (int(trips[1]) if trips else 0) if kind in ('body', 'condition') else 1
    computation.calls.append((called, times))


def _computations(text: str) -> tuple[dict[str, _Computation], str]:
  found: dict[str, _Computation] = {}
  entry, current = '', None
  for line in text.splitlines():
    head = _HEAD.match(line)
    if head:
      current = found.setdefault(head[2], _Computation())
      entry = head[2] if head[1] else entry
      continue
    instruction = _INSTRUCTION.match(line)
    if instruction and current is not None:
      _add(current, *instruction.groups())
  return found, entry


def products(text: str) -> collections.Counter[Dot]:
  """Counts the products that a compiled program executes.

  The body of a loop counts once for each of its turns, every branch of a conditional counts.

  Args:
    text: `jax.jit(...).lower(...).compile().as_text()` of a program for the CPU.

  Raises:
    ValueError: a product inside of a loop whose number of turns is unknown.
  """
  computations, entry = _computations(text)

  def count(name: str) -> collections.Counter[Dot]:
    own = collections.Counter(computations[name].dots)
    for called, times in computations[name].calls:
      inner = count(called)
      if inner and not times:
        raise ValueError(f'{called} holds products and runs an unknown number of times')
      for dot, number in inner.items():
        own[dot] += times * number
    return own

  return count(entry)
