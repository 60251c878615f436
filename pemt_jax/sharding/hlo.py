"""A compiled program as XLA prints it: its instructions, and how often each one runs."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\](\{[^{}]*\})?')
_CALLED = re.compile(r'\b(calls|to_apply|body|condition|true_computation|false_computation)='
                     r'%?([\w.\-]+)')
_BRANCHES = re.compile(r'\bbranch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BITS = re.compile(r'[a-z]+(\d+)')
_FUSION = 'fusion'


@dataclasses.dataclass(frozen=True)
class Array:
  """Type of an array.

  Attributes:
    kind: element type, such as 'bf16'.
    dims: its shape.
    on_chip: whether it stands in the fast memory of the chip.
  """

  kind: str
  dims: tuple[int, ...]
  on_chip: bool = False

  @property
  def bytes(self) -> int:
    """Size without padding."""
    bits = _BITS.match(self.kind)
    return math.prod(self.dims) * (int(bits[1]) if bits else 8) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program.

  Attributes:
    name: unique in its computation.
    kind: such as 'dot', 'all-gather-start' or 'fusion'.
    result: arrays that it makes; several for a tuple.
    operands: names of what it reads.
    text: the rest of the line.
    is_root: whether it is the result of its computation.
  """

  name: str
  kind: str
  result: tuple[Array, ...]
  operands: tuple[str, ...]
  text: str
  is_root: bool

  @property
  def source(self) -> str:
    """Where it comes from, such as `jit(step)/.../mlp/wo/dot_general`; may be empty."""
    name = re.search(r'op_name="([^"]*)"', self.text)
    return name[1] if name else ''

  @functools.cached_property
  def called(self) -> tuple[tuple[str, str], ...]:
    """(role, name) of the computations that it runs."""
    found = _CALLED.findall(self.text)
    for branches in _BRANCHES.findall(self.text):
      found += [('branch', branch.strip(' %')) for branch in branches.split(',')]
    return tuple(found)

  def number(self, name: str) -> int | None:
    """An attribute such as `channel_id=3`."""
    match = re.search(rf'\b{name}=(\d+)', self.text)
    return int(match[1]) if match else None

  def numbers(self, name: str) -> tuple[int, ...]:
    """An attribute such as `dimensions={0,1}`."""
    match = re.search(rf'\b{name}=\{{([\d,]*)\}}', self.text)
    return tuple(map(int, filter(None, match[1].split(',')))) if match else ()


@dataclasses.dataclass(frozen=True)
class Run:
  """An instruction and how often one device runs it.

  Attributes:
    instruction: what runs.
    times: number of runs; every branch of a conditional counts.
    computation: the one that it stands in.
    block: the same, or outside of a fusion the one that runs the fusion.
  """

  instruction: Instruction
  times: int
  computation: str
  block: str

  @property
  def is_fused(self) -> bool:
    """Whether it is a part of a fusion."""
    return self.computation != self.block


class Module:
  """A compiled program of one device.

  Attributes:
    computations: {name: {instruction name: instruction}}.
    entry: name of the first one.
  """

  def __init__(self, text: str, turns: int = 1):
    """Reads a program.

    Args:
      text: `compiled.as_text()`.
      turns: of a loop where the text does not say how many it makes.
    """
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry, self._turns = '', turns
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
      head = _HEAD.match(line)
      if head:
        current = self.computations.setdefault(head[2], {})
        self.entry = head[2] if head[1] else self.entry
      elif match := _INSTRUCTION.match(line):
        found = _instruction(match[2], match[3], bool(match[1]))
        current[found.name] = found

  def runs(self) -> Iterator[Run]:
    """All instructions with how often they run, callers before what they call."""
    times = collections.Counter({(self.entry, self.entry): 1})
    for place in self._order():
      computation, block = place
      for instruction in self.computations[computation].values():
        yield Run(instruction, times[place], computation, block)
        for inner, turns in self._inner(instruction, place):
          times[inner] += turns * times[place]

  def _order(self) -> list[tuple[str, str]]:
    """(computation, block) pairs in an order where callers come first."""
    seen: dict[tuple[str, str], None] = {}

    def visit(place):
      if place in seen:
        return
      for instruction in self.computations[place[0]].values():
        for inner, _ in self._inner(instruction, place):
          visit(inner)
      seen[place] = None

    visit((self.entry, self.entry))
    return list(reversed(seen))

  def _inner(self, instruction: Instruction,
             place: tuple[str, str]) -> Iterator[tuple[tuple[str, str], int]]:
    """((computation, block), turns) of what an instruction runs; reducers are left out."""
    for role, name in instruction.called:
      if role == 'to_apply' and instruction.kind not in ('call', 'async-start'):
        continue
      block = place[1] if instruction.kind == _FUSION else name
      turns = self.turns_of(instruction) if role in ('body', 'condition') else 1
      yield (name, block), turns

  def turns_of(self, loop: Instruction) -> int:
    """Turns of a loop: stated, or those of its counter, or the module's `turns`."""
    stated = self._stated(loop)
    return self._turns if stated is None else stated

  @property
  def open_loops(self) -> int:
    """Loops whose number of turns the text does not say."""
    return sum(run.instruction.kind == 'while' and self._stated(run.instruction) is None
               for run in self.runs())

  def _stated(self, loop: Instruction) -> int | None:
    known = _TRIPS.search(loop.text)
    if known:
      return int(known[1])
    called = dict(loop.called)
    return min(self._bounds(called['condition'], called['body']), default=None)

  def _bounds(self, condition: str, body: str) -> list[int]:
    """Turns of counters from 0 that a condition compares with constants."""
    found, computation = [], self.computations[condition]
    for instruction in computation.values():
      if instruction.kind == 'compare' and 'direction=LT' in instruction.text:
        counter, limit = (computation.get(name) for name in instruction.operands)
        if (value := _constant(limit)) is not None:
          found.append(-(-value // self._step(body, counter)))
      found += [bound for role, inner in instruction.called if role == 'calls'
                for bound in self._bounds(inner, body)]
    return found

  def _step(self, body: str, counter: Instruction | None) -> int:
    """What a turn adds to a counter: more than 1 where turns stand unrolled in the body."""
    computation = self.computations[body]
    root = next(own for own in computation.values() if own.is_root)
    index = counter.number('index') if counter else None
    if root.kind != 'tuple' or index is None:
      return 1
    added = computation[root.operands[index]]
    steps = [_constant(computation.get(name)) for name in added.operands if added.kind == 'add']
    return next(filter(None, steps), 1)


def _constant(own: Instruction | None) -> int | None:
  """Value of a whole number, or None for all else."""
  if own is None or own.kind != 'constant' or own.result[0].kind not in ('s32', 's64', 'u32'):
    return None
  value = re.match(r'\((\d+)\)', own.text)
  return int(value[1]) if value else None


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
  size = _closing(text, 0) if text.startswith('(') else text.index(' ')
  result, rest = text[:size], text[size:].lstrip()
  opened = rest.index('(')
  closed = _closing(rest, opened)
  kind = rest[:opened]
  # A constant has its value in the place of operands.
  kept = rest[opened:] if kind in ('constant', 'parameter') else rest[closed:]
  return Instruction(name, kind, arrays(result),
                     tuple(re.findall(r'%([\w.\-]+)', rest[opened:closed])), kept, is_root)


def _closing(text: str, opened: int) -> int:
  """Place behind the bracket that closes the one at `opened`."""
  depth = 0
  for place in range(opened, len(text)):
    depth += {'(': 1, ')': -1}.get(text[place], 0)
    if not depth:
      return place + 1
  raise ValueError(f'no closing bracket in {text[:200]}')


def arrays(text: str) -> tuple[Array, ...]:
  """Arrays of a type, such as `(f32[2,3]{1,0}, s32[])`."""
  return tuple(Array(kind, tuple(map(int, filter(None, dims.split(',')))), 'S(' in layout)
               for kind, dims, layout in _ARRAY.findall(text))
