"""What a stage needs on chips that are not there: compiled ahead of time, counted, predicted."""

from __future__ import annotations

import copy
import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections as mlc

from pemt_jax.errors import one_of
from pemt_jax.sharding import checks
from pemt_jax.sharding.chips import Chip, Topology
from pemt_jax.sharding.costs import Costs, costs_of
from pemt_jax.sharding.hlo import Module
from pemt_jax.stages.build import Stage
from pemt_jax.stages.programs import Program, predict_program, train_program
from pemt_jax.stages.shapes import Assumed, shaped_stage
from pemt_jax.training.flops import count_flops
from pemt_jax.trees import Tree, flatten

PROGRAMS = {'train': train_program, 'predict': predict_program}
_NEEDED = re.compile(r'(?:Used |temporaries \()([\d.]+)([KMG])')
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30}
_MOST_LINES, _MOST_LETTERS = 5, 400


def plan(config: mlc.ConfigDict, topology: Topology, mesh: Mapping[str, int], program: str,
         assumed: Assumed = Assumed()) -> dict[str, Any]:
  """Compiles a program of a stage for a slice and counts it.

  Args:
    config: see `stages.config.base_config`.
    topology: the slice.
    mesh: {config path: devices} in place of the config's, such as {'mesh.fsdp': 4}.
    program: 'train' or 'predict'.
    assumed: stands for what is in files.

  Returns:
    JSON-able: what was compiled, and of one device memory, work, predicted seconds and findings;
    see docs/scaling.md.

  Raises:
    UserError: whatever in the config, the mesh or the slice does not fit.
  """
  one_of('--program', program, PROGRAMS)
  config = copy.deepcopy(config)
  config.update_from_flattened_dict(mesh)
  stage = shaped_stage(config, topology.devices(), assumed)
  made = PROGRAMS[program](stage)
  found = {'stage': config.stage, 'model': config.model.name, 'program': program,
           'topology': topology.name, 'chips': topology.size,
           'mesh': {axis: size for axis, size in made.placement.mesh.shape.items() if size > 1},
           'rows': made.rows, 'tokens': made.tokens, 'remat': config.model.remat,
           'jax': jax.__version__}
  began = time.monotonic()
  try:
    compiled = made.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return found | {'fits': False, **_refused(str(error))}
  found['compile_seconds'] = round(time.monotonic() - began, 1)
  found['memory'] = memory_of(compiled)
  found['fits'] = topology.chip is None or found['memory']['peak'] <= topology.chip.memory
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError as error:  # Some programs for v5p cannot be printed.
    return found | {'unread': _shortened(str(error))}
  module = Module(text, made.turns)
  costs = costs_of(module, topology.size)
  found |= _work(costs) | {'findings': findings(stage, module, costs),
                           'model_flops': model_flops(config, topology, program, assumed)}
  if topology.chip is not None:
    found |= predicted(costs, topology.chip, found['model_flops'] / topology.size)
  return found


def memory_of(compiled: Any) -> dict[str, int]:
  """Bytes that a program takes on one device: by kind, and all together at its peak."""
  stats = compiled.memory_analysis()
  parts = {'arguments': stats.argument_size_in_bytes, 'output': stats.output_size_in_bytes,
           'temporary': stats.temp_size_in_bytes, 'code': stats.generated_code_size_in_bytes}
  return parts | {'peak': sum(parts.values()) - stats.alias_size_in_bytes}


def predicted(costs: Costs, chip: Chip, model_flops: float) -> dict[str, Any]:
  """Seconds of a step if the slowest of compute, memory and links hid the others.

  Args:
    costs: of one device.
    chip: its rates.
    model_flops: that the step asks of the device, without recomputation and copies of work.
  """
  seconds = {'compute': costs.flops / chip.flops, 'memory': costs.bytes / chip.memory_rate,
             'links': costs.link_bytes / chip.link_rate}
  bound = max(seconds, key=seconds.get)
  return {'seconds': seconds, 'bound': bound, 'step_seconds': seconds[bound],
          'utilisation': model_flops / chip.flops / seconds[bound]}


def model_flops(config: mlc.ConfigDict, topology: Topology, program: str,
                assumed: Assumed) -> float:
  """Multiplications and additions that a program asks for on all devices.

  Frozen matrices have no gradient; activations count once, recomputed or not.
  """
  config = copy.deepcopy(config)
  config.model.remat = 'none'
  made = PROGRAMS[program](shaped_stage(config, topology.devices(), assumed))
  return count_flops(made.function, *made.arguments, unknown_turns=made.turns)


def findings(stage: Stage, module: Module, costs: Costs) -> dict[str, Any]:
  """What a program does with frozen parameters and should not; see `sharding.checks`."""
  start, moves = stage.start, checks.frozen_moves(module)
  return {
      'frozen_gradients': checks.frozen_gradients(costs.collectives, _shapes(start.frozen),
                                                  _shapes(start.tuned)),
      'whole_gathers': checks.whole_gathers(module),
      'moved_bytes': sum(move.bytes for move in moves),
      'moves': [dataclasses.asdict(move) for move in moves[:_MOST_LINES]]}


def _shapes(tree: Tree) -> list[tuple[str, tuple[int, ...]]]:
  """(path, shape) of whole parameters and of what one device holds of them."""
  return [(path, shape) for path, leaf in flatten(tree).items()
          for shape in (leaf.shape, leaf.sharding.shard_shape(leaf.shape))]


def _work(costs: Costs) -> dict[str, Any]:
  largest = sorted(costs.collectives, key=lambda each: -each.bytes * each.times)[:_MOST_LINES]
  return {
      'flops': costs.flops, 'bytes': costs.bytes, 'collectives': costs.by_kind(),
      'exposed_bytes': costs.exposed_bytes,
      'largest': [{'kind': each.kind, 'runs': each.times, 'bytes': each.bytes * each.times,
                   'group': each.group, 'source': each.source} for each in largest]}


def _refused(message: str) -> dict[str, Any]:
  """What the compiler tells of a program that does not fit: its reason, and what it needs at least.
  """
  needed = _NEEDED.search(message)
  peak = {'peak': int(float(needed[1]) * _UNITS[needed[2]])} if needed else {}
  return {'memory': peak, 'refused': _shortened(message)}


def _shortened(message: str) -> str:
  return ' '.join(message.split())[:_MOST_LETTERS]
