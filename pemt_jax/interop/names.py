"""One table of weights, read in both directions: foreign names <-> leaves of a parameter tree."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.trees import Tree

_ROWS = 64  # of a transposed copy at a time


@dataclasses.dataclass(frozen=True)
class Weight:
  """One foreign tensor and the part of a leaf that it is.

  Attributes:
    name: foreign name.
    path: '/'-joined keys of the leaf.
    index: position on the leading axes of the leaf, such as (layer,) or (layer, expert); () if the
      tensor is the whole leaf.
    shape: shape of the foreign tensor.
    transpose: whether the leaf holds the tensor transposed (torch's [out, in] against [in, out]).
    rows: rows of the leaf where they are more than the tensor's, which then fills the last ones.
    unit: axis of one element that the tensor has and the leaf has not.
    view: the tensor's shape with an axis split into several, which `transpose` then turns around.
  """

  name: str
  path: str
  index: tuple[int, ...]
  shape: tuple[int, ...]
  transpose: bool = False
  rows: int | None = None
  unit: int | None = None
  view: tuple[int, ...] | None = None

  @property
  def split(self) -> tuple[int, ...]:
    """Shape of the foreign tensor, seen as `view`."""
    return self.view or self.shape

  @property
  def part_shape(self) -> tuple[int, ...]:
    """Shape of the leaf behind `index`."""
    shape = self.split[::-1] if self.transpose else self.split
    if self.unit is not None:
      shape = shape[:self.unit] + shape[self.unit + 1:]
    return shape if self.rows is None else (self.rows, *shape[1:])


def projection(name: str, path: str, shape: tuple[int, int],
               index: tuple[int, ...] = ()) -> tuple[Weight, Weight]:
  """`weight` of shape [out, in] and `bias` of a projection; arguments as those of `Weight`."""
  return (Weight(f'{name}.weight', f'{path}/kernel', index, shape, True),
          Weight(f'{name}.bias', f'{path}/bias', index, shape[:1]))


def norm(name: str, path: str, size: int, index: tuple[int, ...] = ()) -> tuple[Weight, Weight]:
  """`weight` and `bias` of a norm over `size` features."""
  return (Weight(f'{name}.weight', f'{path}/scale', index, (size,)),
          Weight(f'{name}.bias', f'{path}/bias', index, (size,)))


@dataclasses.dataclass(frozen=True)
class Table:
  """Everything a foreign file may hold.

  Attributes:
    weights: the tensors that must be there.
    aliases: second names of tensors -> the name in `weights` they repeat; may be absent.
    ignored: names that may be present and are not read.
  """

  weights: tuple[Weight, ...]
  aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
  ignored: Collection[str] = ()

  def names_of_paths(self) -> dict[str, dict[tuple[int, ...], str]]:
    """Path -> {index on the leading axes, such as (layer, expert): foreign name}."""
    found: dict[str, dict[tuple[int, ...], str]] = {}
    for weight in self.weights:
      found.setdefault(weight.path, {})[weight.index] = weight.name
    return found

  def leaf_shapes(self) -> dict[str, tuple[int, ...]]:
    """Shape of every leaf by path."""
    leading = collections.defaultdict(tuple)
    for weight in self.weights:
      before = leading[weight.path] or (0,) * len(weight.index)
      leading[weight.path] = tuple(max(b, i + 1) for b, i in zip(before, weight.index, strict=True))
    return {weight.path: leading[weight.path] + weight.part_shape for weight in self.weights}


def load(
    state: Mapping[str, Any], table: Table, place: str | None = None, dtype: Any = None) -> Tree:
  """Assembles a tree from foreign tensors, strictly.

  Args:
    state: foreign name -> array; `files.TensorFiles` names its own file in messages.
    table: what `state` must and may hold.
    place: file or folder for messages.
    dtype: type of the leaves; default is the type of their first tensor.

  Returns:
    Nested dict of NumPy arrays.

  Raises:
    UserError: missing, unexpected or misshaped names, or an alias with other values.
  """
  place = place or getattr(state, 'source', 'the state')
  place_of = getattr(state, 'place_of', lambda name: place)
  _check_names(state, table, place, place_of)
  shapes = table.leaf_shapes()
  leaves = {}
  for weight in table.weights:
    value = np.asarray(state[weight.name])
    if value.shape != weight.shape:
      raise UserError(
          f"'{place_of(weight.name)}' has '{weight.name}' of shape {list(value.shape)}, expected "
          f'{list(weight.shape)}; check that the sizes of the model belong to this file.')
    if weight.path not in leaves:
      leaves[weight.path] = np.zeros(shapes[weight.path], dtype or value.dtype)
    _copy(_part(leaves[weight.path], weight), value.reshape(weight.split), weight.transpose)
  _check_aliases(state, table, place_of)
  return trees.unflatten(leaves)


def _copy(part: np.ndarray, value: np.ndarray, transposed: bool) -> None:
  """Copies into a view; into a transposed one by few rows at a time, which caches can hold."""
  if not transposed:
    part[...] = value
    return
  for start in range(0, len(value), _ROWS):
    part[start:start + _ROWS] = value[start:start + _ROWS]


def _part(leaf: np.ndarray, weight: Weight) -> np.ndarray:
  """View of `leaf` in the orientation of the foreign tensor and the shape of its `split`."""
  part = leaf[(*weight.index, ...)]  # the ellipsis keeps a view where all axes are indexed
  if weight.rows is not None:
    part = part[weight.rows - weight.shape[0]:]
  if weight.unit is not None:
    part = np.expand_dims(part, weight.unit)
  return part.T if weight.transpose else part


def _check_names(state: Mapping[str, Any], table: Table, place: str, place_of: Any) -> None:
  missing = [weight for weight in table.weights if weight.name not in state]
  if missing:
    raise UserError(f"'{place}' lacks '{missing[0].name}' of shape {list(missing[0].shape)}"
                    f'{_more(missing)}; check that it is complete and belongs to this model.')
  known = {weight.name for weight in table.weights}.union(table.aliases, table.ignored)
  unexpected = [name for name in state if name not in known]
  if unexpected:
    raise UserError(f"'{place_of(unexpected[0])}' has the unexpected key '{unexpected[0]}'"
                    f'{_more(unexpected)}; check that it belongs to this model.')


def _check_aliases(state: Mapping[str, Any], table: Table, place_of: Any) -> None:
  for alias, name in table.aliases.items():
    if alias in state and not np.array_equal(state[alias], state[name]):
      raise UserError(f"'{place_of(alias)}' has other values in '{alias}' than in '{name}', which "
                      'must be the same; check that it belongs to this model.')


def _more(found: Sequence[Any]) -> str:
  return f' and {len(found) - 1} more' if len(found) > 1 else ''


def dump(
    tree: Mapping[str, Any], table: Table, *, place: str = 'the tree', aliases: bool = False,
    partial: bool = False) -> dict[str, np.ndarray]:
  """Takes a tree apart into foreign tensors, strictly; the reverse of `load`.

  Args:
    tree: nested dict of arrays.
    table: which foreign tensors make the tree.
    place: what the tree is, for messages.
    aliases: also write the second names.
    partial: write what the tree holds and let other leaves be absent (gradients of tuned leaves).

  Returns:
    Foreign name -> array, in the order of the table.

  Raises:
    UserError: a leaf that is missing (unless `partial`), not in the table, or of another shape.
  """
  leaves = {path: np.asarray(leaf)
            for path, leaf in trees.flatten(tree).items()}
  check_leaves(leaves, table, place=place, partial=partial)
  state = {weight.name: take(leaves, weight)
           for weight in table.weights if weight.path in leaves}
  if aliases:
    state |= {alias: state[name] for alias, name in table.aliases.items() if name in state}
  return state


def take_known(tree: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
  """Like `dump` of the part of `tree` that `table` names; other leaves may be there."""
  wanted = table.leaf_shapes()
  leaves = {path: leaf for path, leaf in trees.flatten(tree).items() if path in wanted}
  return dump(trees.unflatten(leaves), table)


def take(leaves: Mapping[str, np.ndarray], weight: Weight) -> np.ndarray:
  """Returns one foreign tensor out of flat leaves, contiguous."""
  return np.ascontiguousarray(_part(leaves[weight.path], weight)).reshape(weight.shape)


def check_leaves(
    leaves: Mapping[str, Any], table: Table, *, place: str = 'the tree', partial: bool = False
) -> None:
  """Checks that flat leaves are exactly those of a table.

  Raises:
    UserError: a leaf that is missing (unless `partial`), not in the table, or of another shape.
  """
  shapes = table.leaf_shapes()
  missing = [path for path in shapes if path not in leaves]
  if missing and not partial:
    raise UserError(f'{place} lacks {missing[0]} of shape {list(shapes[missing[0]])}'
                    f'{_more(missing)}; check that it belongs to this model.')
  unexpected = [path for path in leaves if path not in shapes]
  if unexpected:
    raise UserError(f'{place} has {unexpected[0]}{_more(unexpected)}, for which this format has no '
                    'name; check that it belongs to this model.')
  for path, leaf in leaves.items():
    if tuple(leaf.shape) != shapes[path]:
      raise UserError(f'{place} has {path} of shape {list(leaf.shape)}, expected '
                      f'{list(shapes[path])}; check that it belongs to this model.')
