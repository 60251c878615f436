"""What one device does in a compiled program: products, bytes, and exchanges with others."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from pemt_jax.sharding.hlo import Array, Instruction, Module, Run

Computation = Mapping[str, Instruction]

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all',
               'collective-permute')
# Instructions that move nothing, or whose movement is that of what they run.
_FREE = {'parameter', 'tuple', 'get-tuple-element', 'bitcast', 'constant', 'while', 'conditional',
         'call', 'after-all', 'partition-id', 'replica-id', 'iota', 'copy-done', 'slice-done',
         'async-start', 'async-update', 'async-done', 'opt-barrier'}
_SLICES = ('dynamic-slice', 'slice', 'slice-start', 'gather')
_UPDATE = 'dynamic-update-slice'
_WORK = ('fusion', 'dot', 'convolution', 'while', 'conditional', 'call')
# Inside of a fusion: buffers of an exchange that goes on; it counts by itself.
_PASSED = (*COLLECTIVES, 'parameter', 'custom-call', 'tuple', 'get-tuple-element')
_KERNEL = re.compile(r'"cost_estimate":\{"flops":"?(\d+)')
_PART = re.compile(r'(\w+)=([\d_x\-]+)')


@dataclasses.dataclass(frozen=True)
class Collective:
  """An exchange between devices.

  Attributes:
    kind: one of `COLLECTIVES`.
    result: arrays that a device has behind it.
    group: devices that take part.
    times: how often it runs.
    source: where it comes from.
    is_hidden: whether the device computes something between its start and its end.
  """

  kind: str
  result: tuple[Array, ...]
  group: int
  times: int
  source: str
  is_hidden: bool = False

  @property
  def bytes(self) -> float:
    """Bytes that a device gets from others in one run, if none is sent twice."""
    size, others = sum(array.bytes for array in self.result), self.group - 1
    if self.kind == 'collective-permute':
      return float(size)
    if self.kind == 'reduce-scatter':
      return float(size * others)
    return size * others / self.group * (2 if self.kind == 'all-reduce' else 1)


@dataclasses.dataclass(frozen=True)
class Costs:
  """Work of one device in one run of a program.

  Attributes:
    flops: multiplications and additions of products and convolutions.
    bytes: read from and written to the memory, without what stands on the chip.
    collectives: exchanges.
  """

  flops: float
  bytes: float
  collectives: tuple[Collective, ...]

  @property
  def link_bytes(self) -> float:
    """Bytes that all exchanges bring in."""
    return float(sum(each.bytes * each.times for each in self.collectives))

  @property
  def exposed_bytes(self) -> float:
    """Those of exchanges that nothing is computed behind."""
    return float(sum(each.bytes * each.times for each in self.collectives if not each.is_hidden))

  def by_kind(self) -> dict[str, dict[str, float]]:
    """{kind: number of runs and bytes brought in}."""
    found: dict[str, dict[str, float]] = {}
    for each in self.collectives:
      entry = found.setdefault(each.kind, {'runs': 0, 'bytes': 0.0})
      entry['runs'] += each.times
      entry['bytes'] += each.bytes * each.times
    return found


def costs_of(module: Module, devices: int) -> Costs:
  """Counts a program, the body of a loop once for each of its turns.

  Args:
    module: program of one device.
    devices: that run it together.
  """
  runs, tables = list(module.runs()), module.computations
  flops = sum(run.times * flops_of(run.instruction, tables[run.computation]) for run in runs)
  moved = sum(run.times * _Traffic(module, tables[run.computation]).of(run.instruction)
              for run in runs if not run.is_fused)
  alone, spread = _exchanges(runs)
  moved += sum(run.times * _size(run.instruction.result) for run in spread)
  found = [_collective(run, devices, _is_hidden(run.instruction, tables[run.computation]))
           for run in alone]
  found += [_collective(run, devices, True) for run in spread]
  return Costs(float(flops), float(moved), tuple(found))


# Products.


def flops_of(instruction: Instruction, computation: Computation) -> int:
  """Multiplications and additions of a product, a convolution or, as it tells, a kernel; or 0."""
  if instruction.kind == 'dot':
    left = _operand(instruction, 0, computation).dims
    contracted = math.prod(left[axis] for axis in instruction.numbers('lhs_contracting_dims'))
    return 2 * math.prod(instruction.result[0].dims) * contracted
  if instruction.kind == 'convolution':
    return _of_convolution(instruction, computation)
  told = _KERNEL.search(instruction.text) if instruction.kind == 'custom-call' else None
  return int(told[1]) if told else 0


def _operand(instruction: Instruction, number: int, computation: Computation) -> Array:
  return computation[instruction.operands[number]].result[0]


def _of_convolution(instruction: Instruction, computation: Computation) -> int:
  """Products whose factors are both real: none with padding or with gaps of a dilation."""
  left, right, out = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.text).groups()
  sizes = [dict(zip(labels, array.dims)) for labels, array in (
      (left, _operand(instruction, 0, computation)),
      (right, _operand(instruction, 1, computation)), (out, instruction.result[0]))]
  window = re.search(r'window=\{([^}]*)\}', instruction.text)
  parts = {name: value.split('x') for name, value in _PART.findall(window[1])} if window else {}
  count = sizes[2]['b'] * sizes[2]['f'] * sizes[1]['i']
  for place, label in enumerate(sorted(label for label in out if label.isdigit())):
    part = lambda name, plain: parts[name][place] if name in parts else plain
    count *= _meetings(*(size[label] for size in sizes), int(part('stride', '1')),
                       int(part('pad', '0_0').split('_')[0]), int(part('lhs_dilate', '1')),
                       int(part('rhs_dilate', '1')))
  return 2 * count


@functools.cache
def _meetings(left: int, right: int, out: int, stride: int, pad: int, left_gap: int,
              right_gap: int) -> int:
  """Pairs of an output and a kernel place that meet a real input, along one axis."""
  places = np.arange(out)[:, None] * stride - pad + np.arange(right) * right_gap
  real = (places >= 0) & (places <= (left - 1) * left_gap) & (places % left_gap == 0)
  return int(real.sum())


# Memory.


class _Traffic:
  """Bytes between memory and chip for instructions of one computation."""

  def __init__(self, module: Module, computation: Computation):
    self._module, self._computation = module, computation

  def of(self, instruction: Instruction) -> int:
    """Bytes that an instruction outside of a fusion reads and writes."""
    if instruction.kind in _FREE or instruction.kind.endswith('-done'):
      return 0
    read = sum(self._read(instruction, place) for place in range(len(instruction.operands)))
    return read + self._written(instruction)

  def _read(self, instruction: Instruction, place: int) -> int:
    source = self._computation.get(instruction.operands[place])
    if source is None or len(source.result) != 1 or source.result[0].on_chip:
      return 0
    size = source.result[0].bytes
    if instruction.kind in _SLICES:
      return min(size, _size(instruction.result)) if place == 0 else size
    if instruction.kind == _UPDATE and place == 0:
      return 0
    inner = self._inner(instruction)
    return size if inner is None else min(size, inner.of_parameter(place))

  def of_parameter(self, number: int) -> int:
    """Bytes that a fusion reads of one of its arguments."""
    name = next((own.name for own in self._computation.values()
                 if own.kind == 'parameter' and own.text.startswith(f'({number})')), None)
    return self._used(name) if name else 0

  def _used(self, name: str) -> int:
    """Bytes that the users of an array read of it; the most that one of them reads."""
    most = 0
    for user in self._computation.values():
      if name in user.operands:
        place = user.operands.index(name)
        most = max(most, self._used(user.name) if user.kind == 'bitcast'
                   else 0 if user.kind in _PASSED else self._read(user, place))
    return most

  def _written(self, instruction: Instruction) -> int:
    if instruction.kind == _UPDATE:
      return _size(self._computation[instruction.operands[1]].result)
    inner = self._inner(instruction)
    if inner is not None:
      return inner.of_result()
    if instruction.kind.endswith('-start'):  # The result repeats the operands.
      return _size(instruction.result[:1]) if instruction.kind == 'copy-start' else 0
    return _size(instruction.result)

  def of_result(self) -> int:
    """Bytes that a fusion writes."""
    root = next(own for own in self._computation.values() if own.is_root)
    parts = ([self._computation[name] for name in root.operands] if root.kind == 'tuple'
             else [root])
    return sum(self._written(part) if part.kind in (_UPDATE, 'fusion') else _size(part.result)
               for part in parts if part.kind not in _PASSED)

  def _inner(self, instruction: Instruction) -> _Traffic | None:
    if instruction.kind != 'fusion':
      return None
    return _Traffic(self._module, self._module.computations[instruction.called[0][1]])


def _size(arrays: Iterable[Array]) -> int:
  return sum(array.bytes for array in arrays if not array.on_chip)


# Exchanges.


def _exchanges(runs: Iterable[Run]) -> tuple[list[Run], list[Run]]:
  """Exchanges that run by themselves, and those that go on while fusions compute.

  Of the fusions that one of the latter is spread over, that one counts which runs least often: some
  may stand in a loop that the exchange outlasts.
  """
  alone: list[Run] = []
  spread: dict[int | None, Run] = {}
  for run in runs:
    if run.instruction.kind.removesuffix('-start') not in COLLECTIVES:
      continue
    channel = run.instruction.number('channel_id')
    if not run.is_fused:
      alone.append(run)
    elif channel not in spread or run.times < spread[channel].times:
      spread[channel] = run
  return alone, list(spread.values())


def _is_hidden(start: Instruction, computation: Computation) -> bool:
  """Whether anything is computed between the halves of an exchange, in the order of the text."""
  if not start.kind.endswith('-start'):
    return False
  behind = itertools.dropwhile(lambda own: own is not start, computation.values())
  between = itertools.takewhile(lambda own: own is start or start.name not in own.operands, behind)
  return any(own.kind in _WORK for own in between)


def _collective(run: Run, devices: int, is_hidden: bool) -> Collective:
  own, result = run.instruction, run.instruction.result
  if own.kind in ('all-gather-start', 'collective-permute-start'):  # The operands come first.
    result = result[len(own.operands):2 * len(own.operands)]
  return Collective(own.kind.removesuffix('-start'), result, _group(own, devices), run.times,
                    own.source, is_hidden)


def _group(instruction: Instruction, devices: int) -> int:
  """Devices that exchange with each other."""
  text = instruction.text
  if by_mesh := re.search(r'replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}', text):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", by_mesh[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", by_mesh[2]))
  if by_count := re.search(r'replica_groups=\[\d+,(\d+)\]', text):
    return int(by_count[1])
  if listed := re.search(r'replica_groups=\{\{([\d,]+)\}', text):
    return len(listed[1].split(','))
  return devices
