"""Device meshes with fixed axis names, and the context in which sharded programs are traced."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax
from flax import linen as nn
from jax.sharding import AxisType, Mesh

from pemt_jax.errors import UserError, one_of
from pemt_jax.sharding.rules import RULES, Rules

AXES = ('data', 'fsdp', 'tensor', 'expert')
REPLICA = 'replica'


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Devices along each axis of a mesh; one of them may be -1: all devices that are left.

  Attributes:
    data: copies of the parameters, each with rows of its own.
    fsdp: parts of the parameters along `embed`; also divides the rows.
    tensor: parts of heads, feed-forward and vocabulary.
    expert: parts of the banks; also divides the rows.
    replica: parts of the replica axis; 1 makes a mesh without that axis.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  expert: int = 1
  replica: int = 1

  def sizes(self, devices: int) -> dict[str, int]:
    """Returns {axis: devices along it} in the order of the mesh.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    sizes = dataclasses.asdict(self)
    named = ', '.join(f'{axis}={size}' for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    wrong = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    if wrong or len(free) > 1:
      raise UserError(f'config.mesh has {named}; every size must be at least 1, and one of them may'
                      ' be -1 for the devices that are left.')
    product = math.prod(size for size in sizes.values() if size != -1)
    if free and devices % product == 0:
      sizes[free[0]] = devices // product
    if math.prod(sizes.values()) != devices:
      raise UserError(f'config.mesh has {named}, which does not fit {devices} devices; choose sizes'
                      ' with that product, or -1 for one of them.')
    order = (*((REPLICA,) if self.replica != 1 else ()), *AXES)
    return {axis: sizes[axis] for axis in order}


def mesh_overrides(sizes: Sequence[str]) -> dict[str, int]:
  """Reads `axis=devices` texts; returns {config path: devices}.

  Raises:
    UserError: an unknown axis, or no number.
  """
  found = {}
  for text in sizes:
    axis, _, count = text.partition('=')
    one_of('the axis of --mesh', axis, (*AXES, REPLICA))
    try:
      found[f'mesh.{axis}'] = int(count)
    except ValueError as error:
      raise UserError(f"--mesh has '{text}'; write axis=devices, such as fsdp=4.") from error
  return found


def make_mesh(shape: MeshShape = MeshShape(), devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns the mesh of a shape.

  Args:
    shape: see `MeshShape`.
    devices: which devices; default is all of all processes.

  Raises:
    UserError: the shape does not fit the devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = shape.sizes(len(devices))
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes),
                       devices=devices)


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: Rules = RULES) -> Iterator[Mesh]:
  """Context in which logical constraints act; trace (call, lower) sharded programs inside.

  A plain `with mesh:` would drop every constraint without a word.
  """
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    yield mesh


def is_split(axis: str) -> bool:
  """Whether the mesh of the program that is traced has several devices along an axis."""
  return jax.sharding.get_abstract_mesh().shape.get(axis, 1) > 1
