"""Which argument of a compiled program an array is a copy or a part of."""

from __future__ import annotations

import dataclasses
import re

from pemt_jax.sharding.hlo import Instruction, Module

# What changes place, order, type or number of elements, and nothing else.
MOVES = {'copy', 'transpose', 'bitcast', 'convert', 'reshape', 'broadcast', 'copy-start',
         'copy-done', 'opt-barrier'}
PARTS = {'slice', 'dynamic-slice', 'slice-start', 'slice-done'}
GATHERS = {'all-gather', 'all-gather-start', 'all-gather-done', 'collective-permute',
           'collective-permute-start', 'collective-permute-done'}
_KEY = re.compile(r"\['(.*?)'\]")


@dataclasses.dataclass(frozen=True)
class Origin:
  """An argument.

  Attributes:
    path: its name, such as `frozen/encoder/layers/mlp/wo/kernel`.
    is_part: whether the array is a part of it, such as one layer.
  """

  path: str
  is_part: bool = False


class Origins:
  """Follows arrays of a program back to its arguments."""

  def __init__(self, module: Module):
    """Reads who calls whom."""
    self._module = module
    self._callers: dict[str, tuple[str, Instruction]] = {}
    for name, computation in module.computations.items():
      for instruction in computation.values():
        for _, called in instruction.called:
          self._callers.setdefault(called, (name, instruction))
    self._known: dict[tuple[str, str], Origin | None] = {}

  def of(self, computation: str, name: str) -> Origin | None:
    """The argument that an array comes from, or None for what is computed."""
    key = computation, name
    if key not in self._known:
      self._known[key] = None
      self._known[key] = self._find(computation, self._module.computations[computation].get(name))
    return self._known[key]

  def _find(self, computation: str, own: Instruction | None) -> Origin | None:
    if own is None:
      return None
    if own.kind == 'parameter':
      return self._of_parameter(computation, own)
    if own.kind == 'get-tuple-element':
      return self._element(computation, own.operands[0], own.number('index'))
    if own.kind == 'fusion':
      inner, root = self._root(own)
      return self._find(inner, root) if root.kind in MOVES | PARTS | GATHERS else None
    if own.kind in MOVES | PARTS | GATHERS and own.operands:
      found = self.of(computation, own.operands[0])
      return dataclasses.replace(found, is_part=True) if found and own.kind in PARTS else found
    return None

  def _of_parameter(self, computation: str, own: Instruction) -> Origin | None:
    number = int(re.match(r'\((\d+)\)', own.text)[1])
    if computation == self._module.entry:
      parts = own.source.replace('\\', '')
      head = re.match(r'\w+', parts)
      return Origin('/'.join([head[0], *_KEY.findall(parts)])) if head else None
    caller = self._callers.get(computation)
    if caller is None or number >= len(caller[1].operands):
      return None
    return self.of(caller[0], caller[1].operands[number])

  def _element(self, computation: str, name: str, index: int) -> Origin | None:
    """An element of a tuple; what a loop carries is taken for what it begins with."""
    own = self._module.computations[computation].get(name)
    if own is None:
      return None
    if own.kind == 'tuple':
      return self.of(computation, own.operands[index])
    if own.kind in ('while', 'opt-barrier', 'all-gather-start', 'copy-start', 'slice-start',
                    'collective-permute-start'):
      return self._element(computation, own.operands[0], index)
    if own.kind == 'parameter' and computation in self._callers:
      caller, call = self._callers[computation]
      return self._element(caller, call.operands[0], index)
    if own.kind == 'fusion':
      inner, root = self._root(own)
      return self.of(inner, root.operands[index]) if root.kind == 'tuple' else None
    return None

  def _root(self, fusion: Instruction) -> tuple[str, Instruction]:
    name = fusion.called[0][1]
    return name, next(own for own in self._module.computations[name].values() if own.is_root)


def is_move(module: Module, instruction: Instruction) -> bool:
  """Whether an instruction, or all parts of a fusion, only move elements or change their type."""
  if instruction.kind != 'fusion':
    return instruction.kind in ('copy', 'transpose', 'convert')
  inner = module.computations[instruction.called[0][1]].values()
  return {each.kind for each in inner} <= MOVES | {'parameter', 'tuple'}
