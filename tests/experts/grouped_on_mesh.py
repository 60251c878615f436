"""Forms of grouped products on meshes of 8 devices against one row at a time; run as a program.

Prints 'equal', or fails at the first difference.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pemt_jax.errors import UserError
from pemt_jax.experts import grouped
from pemt_jax.sharding.mesh import MeshShape, make_mesh, use_mesh
from pemt_jax.sharding.rules import BATCH_AXES
from tests.experts import test_grouped

# What 'auto' takes: (mesh, tokens of a group) -> form. 2 x 37 tokens are not for 8 devices.
TOKENS = 40
FORMS = {(MeshShape(fsdp=8), TOKENS): 'local', (MeshShape(data=2, expert=4), TOKENS): 'local',
         (MeshShape(fsdp=2, tensor=4), TOKENS): 'local', (MeshShape(tensor=8), TOKENS): 'ragged',
         (MeshShape(fsdp=8), test_grouped.TOKENS): 'batched'}


def main() -> None:
  """Compares values and gradients."""
  for (shape, tokens), form in FORMS.items():
    test_grouped.TOKENS = tokens
    chosen, x, *rest = test_grouped.draw(0)
    mesh = make_mesh(shape)
    expected = jax.device_get(test_grouped.expected(chosen, x, *rest))
    with use_mesh(mesh):
      # The axis of groups is too short for all meshes; rows are cut along both in the layers.
      flat = lambda a: a.reshape(1, -1, *a.shape[2:])
      assert grouped.group(flat(chosen), test_grouped.EXPERTS).form == form, (shape, form)
      rows = NamedSharding(mesh, PartitionSpec(None, None if tokens % 2 else BATCH_AXES))
      given = jax.device_put((flat(chosen), flat(x)), rows)
      rest = (rest[0], flat(rest[1]), flat(rest[2]))
      found = jax.device_get(jax.jit(functools.partial(
          test_grouped.outcome, 'auto'))(*given, *rest))
    (loss, y), (of_x, of_weights) = found
    found = (loss, y.reshape(expected[0][1].shape)), (of_x.reshape(x.shape), of_weights)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5), found,
                 expected)
  for tokens, capacity, form in ((TOKENS, 9, 'batched'), (TOKENS, None, 'local')):
    test_grouped.TOKENS = tokens
    with use_mesh(make_mesh(MeshShape(fsdp=8))):
      assert grouped.group(test_grouped.draw(0)[0], 5, capacity=capacity).form == form
  with use_mesh(make_mesh(MeshShape(fsdp=8))), pytest.raises(UserError, match='37 tokens over 8'):
    grouped.group(np.zeros((1, 37, 1), np.int32), 5, 'local')
  print('equal')


if __name__ == '__main__':
  main()
