"""Rates of accelerators, and the devices of slices that need not be there."""

from __future__ import annotations

import dataclasses
import math
import os
import re

import jax

from pemt_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one chip can do at most.

  Attributes:
    flops: multiplications and additions per second on bfloat16.
    memory: bytes.
    memory_rate: bytes per second.
    link_rate: bytes per second that all links together bring in.
  """

  flops: float
  memory: float
  memory_rate: float
  link_rate: float


# Cloud TPU documentation, the page of each version (docs.cloud.google.com/tpu/docs/v5e and so on):
# peak compute per chip, HBM capacity and bandwidth, half of the bidirectional interconnect.
CHIPS = {
    'v5e': Chip(197e12, 16 * GIB, 819e9, 200e9),
    'v5p': Chip(459e12, 95 * GIB, 2765e9, 600e9),
    'v6e': Chip(918e12, 32 * GIB, 1638e9, 400e9),
}
CPU = 'cpu'  # simulated devices: programs are compiled and counted, but nothing is predicted
_TOPOLOGY = re.compile(r'(\w+):(\d+(?:x\d+)*)')


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of chips.

  Attributes:
    name: such as `v5e:4x4`, or `cpu:8` for simulated devices.
    kind: key of `CHIPS`, or `cpu`.
    sides: chips along each side.
  """

  name: str
  kind: str
  sides: tuple[int, ...]

  @classmethod
  def of(cls, name: str) -> Topology:
    """Reads a name.

    Raises:
      UserError: it is none.
    """
    match = _TOPOLOGY.fullmatch(name)
    if not match or match[1] not in (*CHIPS, CPU):
      raise UserError(f"topology '{name}' is unknown; give KIND:SIDES such as v5e:4x4, with a KIND"
                      f' of {", ".join(CHIPS)}, or cpu:8 for simulated devices.')
    return cls(name, match[1], tuple(map(int, match[2].split('x'))))

  @property
  def size(self) -> int:
    """Number of chips."""
    return math.prod(self.sides)

  @property
  def chip(self) -> Chip | None:
    """Rates of each chip; None for simulated devices."""
    return CHIPS.get(self.kind)

  def devices(self) -> list[jax.Device]:
    """Devices to compile for; those of a TPU cannot run anything.

    Raises:
      UserError: too few simulated devices, no compiler for TPUs, or a slice that does not exist.
    """
    return self._simulated() if self.kind == CPU else self._described()

  def _simulated(self) -> list[jax.Device]:
    found = jax.devices(CPU)
    if len(found) < self.size:
      raise UserError(f"topology '{self.name}' needs {self.size} simulated devices and there are"
                      f' {len(found)}; set JAX_NUM_CPU_DEVICES={self.size}.')
    return found[:self.size]

  def _described(self) -> list[jax.Device]:
    from jax.experimental import topologies
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')  # asks no server for the name
    os.environ.setdefault('TPU_STDERR_LOG_LEVEL', '3')
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # It only compiles.
    try:
      return topologies.get_topology_desc(self.name, 'tpu').devices
    except RuntimeError as error:
      if 'not installed' in str(error):
        raise UserError(f"topology '{self.name}' needs the compiler for TPUs; run"
                        ' `bash launch/setup.sh plan`.') from error
      raise UserError(f"topology '{self.name}' cannot be described: {error}; choose sides that"
                      ' exist, such as v5e:4x4 or v5p:2x2x4.') from error
