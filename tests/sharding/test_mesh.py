"""Laws of mesh shapes."""

from __future__ import annotations

import jax
import pytest

from pemt_jax.errors import UserError
from pemt_jax.sharding.mesh import AXES, MeshShape, make_mesh, mesh_overrides


def test_one_size_may_be_left_to_the_number_of_devices():
  assert MeshShape(tensor=2).sizes(8) == {'data': 4, 'fsdp': 1, 'tensor': 2, 'expert': 1}
  assert MeshShape(2, -1, 2).sizes(8) == {'data': 2, 'fsdp': 2, 'tensor': 2, 'expert': 1}
  assert list(MeshShape(replica=4).sizes(8).items())[:2] == [('replica', 4), ('data', 2)]


@pytest.mark.parametrize('shape, devices, sentence', [
    (MeshShape(tensor=3), 8,
     'config.mesh has data=-1, fsdp=1, tensor=3, expert=1, replica=1, which does not fit 8 devices;'
     ' choose sizes with that product, or -1 for one of them.'),
    (MeshShape(2, 2), 8,
     'config.mesh has data=2, fsdp=2, tensor=1, expert=1, replica=1, which does not fit 8 devices;'
     ' choose sizes with that product, or -1 for one of them.'),
    (MeshShape(-1, -1), 8,
     'config.mesh has data=-1, fsdp=-1, tensor=1, expert=1, replica=1; every size must be at least'
     ' 1, and one of them may be -1 for the devices that are left.'),
    (MeshShape(fsdp=0), 8,
     'config.mesh has data=-1, fsdp=0, tensor=1, expert=1, replica=1; every size must be at least'
     ' 1, and one of them may be -1 for the devices that are left.'),
])
def test_sizes_that_do_not_fit_are_errors(shape, devices, sentence):
  with pytest.raises(UserError) as error:
    shape.sizes(devices)
  assert str(error.value) == sentence


def test_a_mesh_of_one_device_has_all_axes():
  mesh = make_mesh(devices=jax.devices()[:1])
  assert mesh.axis_names == AXES and mesh.size == 1


def test_sizes_of_a_command_line():
  assert mesh_overrides([]) == {}
  assert mesh_overrides(['fsdp=2', 'replica=4']) == {'mesh.fsdp': 2, 'mesh.replica': 4}
  with pytest.raises(UserError, match="^--mesh has 'fsdp'; write axis=devices, such as fsdp=4.$"):
    mesh_overrides(['fsdp'])
  with pytest.raises(UserError, match="^the axis of --mesh is 'rows'; choose one of data, fsdp, "):
    mesh_overrides(['rows=2'])
