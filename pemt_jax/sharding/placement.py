"""Where the arrays of a stage stand: on the default device, or on a mesh by the rule table."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pemt_jax.errors import UserError
from pemt_jax.sharding import rules as rules_lib
from pemt_jax.sharding.mesh import REPLICA, use_mesh
from pemt_jax.trees import flatten

Tree = Any
# How float32 products are made: accelerators round their inputs by default.
PRECISIONS = ('default', 'high', 'highest')


def put(value: Any, sharding: NamedSharding) -> jax.Array:
  """Moves one array, the same on all processes, to its devices; a device holds its part only."""
  if isinstance(value, jax.Array) and value.sharding == sharding:
    return value
  if sharding.is_fully_addressable:
    return jax.device_put(value, sharding)
  host = np.asarray(fetch(value))
  return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def fetch(tree: Tree) -> Tree:
  """Returns a tree as NumPy arrays, on every process, wherever its parts stand."""
  from jax.experimental import multihost_utils

  def one(leaf):
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
      return leaf
    if leaf.is_fully_replicated:
      return leaf.addressable_data(0)
    return multihost_utils.process_allgather(leaf, tiled=True)

  return jax.device_get(jax.tree.map(one, tree))


@dataclasses.dataclass(frozen=True)
class BatchPart:
  """Rows of a batch that one of several processes reads.

  Attributes:
    rows: number of rows of the whole batch.
    places: [own row] their places in it, ascending.
  """

  rows: int
  places: np.ndarray

  def put(self, own: np.ndarray, shape: tuple[int, ...], sharding: NamedSharding,
          lead: int) -> jax.Array:
    """Makes the whole array out of the own rows of every process.

    Args:
      own: [own row, ...] behind `lead` axes.
      shape: of the whole array.
      sharding: of the whole array.
      lead: axes in front of the rows.
    """
    def piece(index):
      rows = np.searchsorted(self.places, np.arange(self.rows)[index[lead]])
      return own[(*index[:lead], rows, *index[lead + 1:])]

    return jax.make_array_from_callback(shape, sharding, piece)


@dataclasses.dataclass(frozen=True)
class Placement:
  """Devices of a stage, and what its programs share.

  Attributes:
    mesh: device mesh; None leaves everything on the default device.
    params: {path: sharding} of all parameters of the model.
    matmul_precision: one of `PRECISIONS`.
  """

  mesh: Mesh | None = None
  params: Mapping[str, NamedSharding] = dataclasses.field(default_factory=dict)
  matmul_precision: str = 'default'

  @classmethod
  def of(cls, mesh: Mesh, boxed: Tree) -> Placement:
    """The placement of a model's parameters.

    Args:
      mesh: device mesh; one of a single device is none.
      boxed: shapes with logical axes, see `rules.param_shardings`.

    Raises:
      UserError: an array without logical axes.
    """
    if mesh.size == 1:
      return cls()
    return cls(mesh, flatten(rules_lib.param_shardings(boxed, mesh)))

  @property
  def replica_axis(self) -> str | None:
    """Mesh axis that replicas are spread over, or None."""
    return REPLICA if self.mesh is not None and REPLICA in self.mesh.shape else None

  def require_replicas(self, count: int) -> None:
    """Checks that the mesh divides the replicas.

    Raises:
      UserError: it does not.
    """
    parts = self.mesh.shape[REPLICA] if self.replica_axis else 1
    if count % parts:
      raise UserError(f'config.mesh.replica is {parts}, which does not divide the {count} replicas'
                      ' of this run; choose a divisor.')

  @contextlib.contextmanager
  def scope(self) -> Iterator[None]:
    """Context in which programs must be traced and called: logical axes and precision act there."""
    with contextlib.ExitStack() as stack:
      if self.mesh is not None:
        stack.enter_context(use_mesh(self.mesh))
      if self.matmul_precision != 'default':
        stack.enter_context(jax.default_matmul_precision(self.matmul_precision))
      yield

  def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is always called inside of `scope`."""
    if self.mesh is None and self.matmul_precision == 'default':
      return function

    @functools.wraps(function)
    def inside(*args, **kwargs):
      with self.scope():
        return function(*args, **kwargs)

    return inside

  def frozen(self, tree: Tree) -> Tree:
    """Moves parameters of the model, NumPy or on devices, to where they belong."""
    if self.mesh is None:
      return jax.tree.map(jax.numpy.asarray, tree)
    return jax.tree.map(put, tree, self.of_params(tree))

  def stacked(self, tree: Tree, spread: bool = True) -> Tree:
    """The same for a tree with a leading axis.

    Args:
      tree: leaves [replica, ...] or [source, ...].
      spread: over the mesh axis of replicas, where that divides it.
    """
    if self.mesh is None:
      return tree
    axis = self.replica_axis if spread else None
    if axis and jax.tree.leaves(tree)[0].shape[0] % self.mesh.shape[axis]:
      axis = None
    return jax.tree.map(put, tree, rules_lib.over_replicas(self.of_params(tree), axis))

  def whole(self, tree: Tree) -> Tree:
    """Puts a copy of a tree on every device."""
    if self.mesh is None:
      return tree
    return jax.tree.map(lambda leaf: put(leaf, rules_lib.replicated(self.mesh)), tree)

  def batch(self, batch: Mapping[str, np.ndarray], lead: int = 1,
            part: BatchPart | None = None) -> dict[str, Any]:
    """Spreads the rows of a batch over `BATCH_AXES`, and its replicas over `replica`.

    Args:
      batch: [replica, row, ...] arrays; rows that the mesh does not divide stand whole.
      lead: 1, or 0 for [row, ...] arrays.
      part: which rows of the batch the arrays hold, see `part_of_batch`; None is all.
    """
    if self.mesh is None:
      return dict(batch)
    if part is None:
      return {name: put(batch[name], where) for name, where in self.of_batch(batch, lead).items()}
    whole = {name: jax.ShapeDtypeStruct((*leaf.shape[:lead], part.rows, *leaf.shape[lead + 1:]),
                                        leaf.dtype) for name, leaf in batch.items()}
    return {name: part.put(batch[name], whole[name].shape, where, lead)
            for name, where in self.of_batch(whole, lead).items()}

  def part_of_batch(self, rows: int) -> BatchPart | None:
    """The rows of a batch of `rows` rows that stand on the devices of this process.

    None where one process has all devices. Processes that differ along `tensor` or `replica`
    alone hold the same rows; all hold all where the mesh does not divide the rows.
    """
    if self.mesh is None or not self.mesh.is_multi_process:
      return None
    where = self._of_rows('inputs', jax.ShapeDtypeStruct((rows,), np.int32), 0)
    slices = where.addressable_devices_indices_map((rows,)).values()
    return BatchPart(rows, np.unique([np.arange(rows)[own] for own in slices]))

  def of_batch(self, batch: Mapping[str, np.ndarray], lead: int = 1) -> dict[str, NamedSharding]:
    """Shardings of a batch, see `batch`."""
    return {name: self._of_rows(name, leaf, lead) for name, leaf in batch.items()}

  def state(self, state: Tree) -> Tree:
    """Shardings of a `RunState`: what is tuned and its moments by the rules, the rest whole."""
    axis = self.replica_axis
    tuned = rules_lib.over_replicas(self.of_params(state.tuned), axis)
    over = NamedSharding(self.mesh, PartitionSpec(axis))
    others = {name: jax.tree.map(lambda _: over, getattr(state, name))
              for name in ('constants', 'key', 'active', 'first_bad_step')}
    return state.replace(step=rules_lib.replicated(self.mesh), tuned=tuned,
                         moments=rules_lib.matching(state.moments, tuned, over), **others)

  def placed(self, state: Tree) -> Tree:
    """Moves a `RunState` to where `state` says."""
    return state if self.mesh is None else jax.tree.map(put, state, self.state(state))

  def of_params(self, tree: Tree) -> Tree:
    """Shardings of a tree that holds some of the parameters of the model."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator='/')
    return jax.tree_util.tree_map_with_path(lambda path, _: self.params[name(path)], tree)

  def _of_rows(self, name: str, leaf: np.ndarray, lead: int) -> NamedSharding:
    names = (('act_replica',) * lead + ('act_batch',) + ('act_length',) * leaf.ndim)[:leaf.ndim]
    table = (*rules_lib.RULES, ('act_replica', self.replica_axis))
    spec = rules_lib.partition_spec(name, names, leaf.shape, self.mesh, table)
    return NamedSharding(self.mesh, spec)
