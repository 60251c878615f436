"""One table: logical axis name -> mesh axes; and the placement of whole trees that follows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pemt_jax.errors import UserError

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]
Tree = dict[str, Any]

BATCH_AXES = ('data', 'fsdp', 'expert')

# Parameters and activations have separate names: a mesh axis serves one dimension of an array.
RULES: Rules = (
    # Parameters.
    ('embed', 'fsdp'),
    ('joined_kv', 'tensor'),
    ('heads', 'tensor'),
    ('mlp', 'tensor'),
    ('vocab', 'tensor'),
    # Rows of the token table are gathered for sharded batches; cutting its columns over `fsdp`
    # too would make every device rebuild the gathered rows in full.
    ('embed_table', None),
    ('expert', 'expert'),
    ('layer', None),
    ('rank', None),
    # The two ranks of a central core, and its two dimensions of the matrix.
    ('mpo_left', 'fsdp'),
    ('mpo_right', 'tensor'),
    ('mpo_in', None),
    ('mpo_out', None),
    ('task', None),  # vectors and routes of tasks
    ('member', None),  # experts or terms inside of one delta
    ('kronecker_in', None),
    ('kronecker_out', None),
    ('gate', None),
    ('prompt', None),
    ('adapter', None),
    ('kv', None),
    ('intrinsic', None),
    ('generated', None),
    ('norm', None),
    ('bits', None),  # bytes of packed masks
    ('relative_bucket', None),
    ('position', None),
    ('token_type', None),
    ('label', None),
    # Activations.
    ('act_batch', BATCH_AXES),
    ('act_length', None),
    ('act_embed', None),
    ('act_mlp', 'tensor'),
    # Tokens of a routed layer that have been sent to the devices of their experts.
    ('act_group', ('data', 'fsdp')),
    ('act_expert', 'expert'),
)


def _axes_of(entry: str | tuple[str, ...] | None, mesh: Mesh) -> tuple[str, ...]:
  """Mesh axes of a rule that are larger than 1."""
  axes = (entry,) if isinstance(entry, str) else entry or ()
  return tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)


def partition_spec(path: str, names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh,
                   rules: Rules = RULES) -> PartitionSpec:
  """Resolves the logical names of one array.

  A dimension that its mesh axes do not divide stays whole, with one warning for the array. A mesh
  axis that an earlier dimension has taken is not used again.

  Args:
    path: name of the array, for messages.
    names: logical name of each dimension.
    shape: of the array.
    mesh: device mesh.
    rules: (logical name, mesh axes) table.

  Raises:
    UserError: a dimension has no name, or a name is not in the table.
  """
  table, taken, entries, uneven = dict(rules), set(), [], []
  if len(names) != len(shape) or None in names:
    raise UserError(f"array '{path}' of shape {shape} has the logical axes {names}; name every"
                    ' dimension where the parameter is made.')
  for name, size in zip(names, shape, strict=True):
    if name not in table:
      raise UserError(f"array '{path}' has the logical axis '{name}', which is not among"
                      f' {", ".join(table)}; add it to the sharding rules.')
    axes = tuple(axis for axis in _axes_of(table[name], mesh) if axis not in taken)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if size % parts:
      uneven.append(f'{name} ({size}, mesh {parts})')
      axes = ()
    taken.update(axes)
    entries.append(axes[0] if len(axes) == 1 else axes or None)
  if uneven:
    warnings.warn(f"'{path}' is not sharded along {', '.join(uneven)}: the mesh does not divide it",
                  stacklevel=2)
  return PartitionSpec(*entries)


def param_shardings(boxed: Mapping[str, Any], mesh: Mesh, rules: Rules = RULES,
                    prefix: str = '') -> Tree:
  """Returns the sharding of every parameter.

  Args:
    boxed: tree of shapes with logical axes (`methods.base.boxed_shapes(model)['params']`).
    mesh: device mesh.
    rules: (logical name, mesh axes) table.
    prefix: path of `boxed` inside the whole tree, for messages.

  Returns:
    Nested dicts of NamedSharding.

  Raises:
    UserError: an array without logical axes, or with an unknown name.
  """
  shardings = {}
  for key, value in boxed.items():
    path = f'{prefix}/{key}' if prefix else key
    if isinstance(value, Mapping):
      shardings[key] = param_shardings(value, mesh, rules, path)
      continue
    if not isinstance(value, nn.LogicallyPartitioned):
      raise UserError(f"array '{path}' has no logical axes; make it with"
                      ' nn.with_logical_partitioning.')
    spec = partition_spec(path, value.names, value.value.shape, mesh, rules)
    shardings[key] = NamedSharding(mesh, spec)
  return shardings


def over_replicas(shardings: Any, axis: str | None) -> Any:
  """Puts the replica axis in front of every spec.

  Args:
    shardings: tree of NamedSharding of one replica.
    axis: mesh axis of the replicas; None keeps all replicas on every device.
  """
  return jax.tree.map(lambda s: NamedSharding(s.mesh, PartitionSpec(axis, *s.spec)), shardings)


def batch_sharding(mesh: Mesh, replica: str | None = None) -> NamedSharding:
  """Sharding of [replica, batch, ...] leaves: rows over `BATCH_AXES`.

  Args:
    mesh: device mesh.
    replica: mesh axis of the replicas, or None.
  """
  return NamedSharding(mesh, PartitionSpec(replica, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def matching(tree: Any, shardings: Any, default: NamedSharding) -> Any:
  """Places a tree that contains copies of another one, such as the moments of an optimiser.

  Args:
    tree: leaves whose path ends with a path of `shardings`, and whose rank is that of its spec, get
      that sharding (a counter per parameter has no rank to shard).
    shardings: tree of shardings.
    default: of all other leaves.
  """
  keys = lambda path: tuple(str(getattr(k, 'key', getattr(k, 'name', k))) for k in path)
  known = {keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shardings)}

  def place(path, leaf):
    names = keys(path)
    tails = (names[start:] for start in range(len(names)))
    found = next((known[tail] for tail in tails if tail in known), default)
    return found if len(found.spec) == leaf.ndim else default

  return jax.tree_util.tree_map_with_path(place, tree)
