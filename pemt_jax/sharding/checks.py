"""What a compiled program must not do with frozen parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from pemt_jax.sharding.costs import Collective
from pemt_jax.sharding.hlo import Module
from pemt_jax.sharding.origins import Origins, is_move

FROZEN = 'frozen/'  # how arguments of programs are called, with paths behind
_LAYERS = '/layers'  # part of the path of a parameter that all layers share one array for
Shapes = Iterable[tuple[str, tuple[int, ...]]]


@dataclasses.dataclass(frozen=True)
class Move:
  """Copies, changes of order or of type of a frozen parameter.

  Attributes:
    path: of the parameter.
    bytes: written in all.
    times: how often.
    source: where they come from.
  """

  path: str
  bytes: int
  times: int
  source: str


def frozen_gradients(collectives: Iterable[Collective], frozen: Shapes,
                     tuned: Shapes) -> list[str]:
  """Sums over devices in the backward pass that have the shape of a frozen matrix and no tuned one.

  Args:
    collectives: of a train step.
    frozen: (path, shape) of whole frozen parameters and of what one device holds of them.
    tuned: the same of tuned ones, without a replica axis.

  Returns:
    A line for each; none is right.
  """
  matrices = lambda shapes: {_sizes(shape[1:] if _LAYERS in path else shape): path
                             for path, shape in shapes}
  known, own = matrices(frozen), matrices(tuned)
  return [f'{known[dims]}: {each.kind} of {list(array.dims)} from {each.source}'
          for each in collectives
          if each.kind in ('all-reduce', 'reduce-scatter') and 'transpose(' in each.source
          for array in each.result
          if len(dims := _sizes(array.dims)) > 1 and dims in known and dims not in own]


def whole_gathers(module: Module) -> list[str]:
  """Exchanges that bring a frozen parameter of all layers to a device at once; none is right."""
  origins, found = Origins(module), []
  for run in module.runs():
    own = run.instruction
    if own.kind not in ('all-gather', 'all-gather-start'):
      continue
    origin = origins.of(run.computation, own.operands[0])
    if origin and not origin.is_part and origin.path.startswith(FROZEN) and _LAYERS in origin.path:
      found.append(f'{origin.path}: {list(own.result[-1].dims)} from {own.source}')
  return list(dict.fromkeys(found))


def frozen_moves(module: Module) -> list[Move]:
  """Copies, transposes and changes of type of frozen parameters in memory; the largest first."""
  return sorted(_moves(module), key=lambda move: -move.bytes)


def _moves(module: Module) -> Iterator[Move]:
  origins = Origins(module)
  for run in module.runs():
    own = run.instruction
    if run.is_fused or not is_move(module, own) or any(array.on_chip for array in own.result):
      continue
    origin = origins.of(run.computation, own.name)
    if origin and origin.path.startswith(FROZEN):
      size = sum(array.bytes for array in own.result)
      yield Move(origin.path.removeprefix(FROZEN), size * run.times, run.times, own.source)


def _sizes(dims: Iterable[int]) -> tuple[int, ...]:
  """Sizes above 1 in order: layouts and reshapes with 1 change nothing."""
  return tuple(sorted(size for size in dims if size > 1))
