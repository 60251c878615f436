"""Masked prototypes on disk: floats of the prototype, one bit for each entry of a mask.

A packed file is one safetensors file. Masks are packed along their entries, so that the masks of
one task or layer are whole bytes that can be read alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.deltas.generated_prefix import RowPrefix
from pemt_jax import guards
from pemt_jax.errors import UserError, one_of
from pemt_jax.experts import library, tree_files
from pemt_jax.experts.masked import densities_of, score_axes
from pemt_jax.experts.masks import top_mask
from pemt_jax.models.sites import Plan
from pemt_jax.trees import Tree, flatten, unflatten

AnyPlan = Plan | Sequence[Mapping[str, Any]]  # of a model, or of the card of an expert
DTYPES = {'float32': 32, 'bfloat16': 16}
_MASKS = 'masks'  # entry of the file's metadata: path -> shape of the mask
_FORMAT = '1'


@dataclasses.dataclass(frozen=True)
class Storage:
  """What a set of trained leaves takes.

  Attributes:
    floats: numbers of the prototype and of other leaves without masks.
    mask_entries: entries of all masks, one bit each.
    float_bits: bits of a float.
  """

  floats: int
  mask_entries: int
  float_bits: int = 32

  @property
  def bits(self) -> int:
    """All bits."""
    return self.floats * self.float_bits + self.mask_entries

  @property
  def bytes(self) -> int:
    """All bytes, rounded up."""
    return -(-self.bits // 8)

  @property
  def equivalent(self) -> float:
    """Numbers of 32 bits that take as much."""
    return self.bits / 32

  def share(self, backbone: int, tasks: int = 1) -> float:
    """Percent of the parameters of a backbone, for each of several tasks."""
    return 100.0 * self.equivalent / backbone / tasks


def storage_of(tuned: Tree, plan: AnyPlan, dtype: str = 'float32') -> Storage:
  """Storage of a tuned tree; leaves may be arrays or shapes.

  Args:
    tuned: trained leaves without a replica axis.
    plan: of the model; tells which leaves are scores.
    dtype: of the floats.

  Raises:
    UserError: an unknown dtype.
  """
  one_of('the dtype of a packed file', dtype, DTYPES)
  floats, entries, densities = 0, 0, densities_of(plan)
  for path, leaf in flatten(tuned).items():
    size = math.prod(leaf.shape)
    if score_axes(path, densities) is None:
      floats += size
    else:
      entries += size
  return Storage(floats, entries, DTYPES[dtype])


def pack(tuned: Tree, plan: AnyPlan, dtype: str = 'float32') -> tuple[dict[str, np.ndarray], dict]:
  """Arrays of a packed file, and the shapes of its masks.

  Args:
    tuned: trained leaves without a replica axis.
    plan: of the model.
    dtype: of the floats.

  Returns:
    (path -> float array or uint8 [..., bytes], path -> shape of a mask).

  Raises:
    UserError: an unknown dtype.
  """
  one_of('the dtype of a packed file', dtype, DTYPES)
  arrays, shapes, densities = {}, {}, densities_of(plan)
  for path, leaf in flatten(tuned).items():
    axes = score_axes(path, densities)
    if axes is None:
      arrays[path] = np.asarray(jnp.asarray(leaf, jnp.dtype(dtype)))
      continue
    density, leading = axes
    mask = np.asarray(top_mask(jnp.asarray(leaf, jnp.float32), density, leading)) > 0
    arrays[path] = np.packbits(mask.reshape(*mask.shape[:leading], -1), axis=-1)
    shapes[path] = list(mask.shape)
  return arrays, shapes


def write_packed(path: str | os.PathLike, tuned: Tree, plan: AnyPlan,
                 dtype: str = 'float32') -> None:
  """Writes a packed file in one move.

  Args:
    path: of the file.
    tuned: trained leaves without a replica axis.
    plan: of the model.
    dtype: of the floats, a name out of `DTYPES`.

  Raises:
    UserError: an unknown dtype.
  """
  from safetensors.numpy import save_file  # pylint: disable=g-import-not-at-top
  path = pathlib.Path(path)
  arrays, shapes = pack(tuned, plan, dtype)
  with tree_files.replacing(path) as temporary:
    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, temporary,
              metadata={'format': _FORMAT, _MASKS: json.dumps(shapes, separators=(',', ':'))})


def _open(path: pathlib.Path) -> tuple[Any, Mapping[str, list[int]]]:
  file = guards.open_safetensors(path)
  metadata = file.metadata() or {}
  if metadata.get('format') != _FORMAT or _MASKS not in metadata:
    raise UserError(f"'{path}' is not a packed file of format {_FORMAT}; give one that this version"
                    ' wrote.')
  with guards.reading(path, 'copy it again'):
    shapes = guards.parse_json(metadata[_MASKS])
    absent = set(shapes) - set(file.keys())
    if absent:
      raise ValueError(f'{min(absent)!r} is missing')
    for name, shape in shapes.items():
      _check_mask(file.get_slice(name), name, shape)
  return file, shapes


def _check_mask(bits: Any, name: str, shape: list[int]) -> None:
  """Checks that bits [..., bytes] are those of a mask of this shape.

  Raises:
    ValueError: they are not.
  """
  own = bits.get_shape()
  leading, right = len(own) - 1, all(type(size) is int and size >= 0 for size in shape)
  if not right or leading < 0 or bits.get_dtype() != 'U8' or own[:-1] != shape[:leading] or (
      own[-1] != -(-math.prod(shape[leading:]) // 8)):
    raise ValueError(f"'{name}' is {bits.get_dtype()} {own}, which is no mask of shape {shape}")


def _unpack(bits: np.ndarray, shape: Iterable[int]) -> np.ndarray:
  """uint8 [..., bytes] -> zeros and ones of `shape`, which starts with the same axes."""
  shape = tuple(shape)
  entries = math.prod(shape[bits.ndim - 1:])
  return np.unpackbits(bits, axis=-1, count=entries).reshape(shape).astype(np.float32)


def read_packed(path: str | os.PathLike) -> Tree:
  """Reads a packed file: float32 leaves, masks as scores of zeros and ones.

  Such scores give back the masks, so that the model computes what it did before.

  Raises:
    UserError: not a packed file.
  """
  file, shapes = _open(pathlib.Path(path))
  leaves = {}
  for name in file.keys():
    value = file.get_tensor(name)
    leaves[name] = (_unpack(value, shapes[name]) if name in shapes
                    else np.asarray(value, np.float32))
  with guards.reading(path):
    return unflatten(leaves)


def read_task(path: str | os.PathLike, task: int) -> dict[str, np.ndarray]:
  """Reads the masks of one task only; what a change of the task needs.

  Args:
    path: of the packed file.
    task: number of the task mask.

  Returns:
    Path of the scores -> mask without the axis of tasks.

  Raises:
    UserError: not a packed file, or one without this task.
  """
  file, shapes = _open(pathlib.Path(path))
  found = {}
  for name, shape in shapes.items():
    if name.split('/')[-2:-1] == ['task'] and shape:
      if task not in range(shape[0]):
        raise UserError(f"'{path}' has masks of {shape[0]} tasks, not of task {task}; give a number"
                        f' from 0 to {shape[0] - 1}.')
      found[name] = _unpack(file.get_slice(name)[task], shape[1:])
  if not found:
    raise UserError(f"'{path}' has no masks of tasks; give a file of a method that has them.")
  return found


def save_packed(folder: str | os.PathLike, tuned: Tree, card: library.ExpertCard, plan: AnyPlan,
                dtype: str = 'float32') -> library.ExpertCard:
  """Writes an expert with a packed file in one move; `library.load_expert` reads it.

  Args:
    folder: of the expert; one that is there is replaced.
    tuned: trained leaves without a replica axis.
    card: what it is; what it takes is added as `extra['storage']`.
    plan: of the model.
    dtype: of the floats.

  Returns:
    The card as written.

  Raises:
    UserError: an unknown dtype.
  """
  folder, storage = pathlib.Path(folder), storage_of(tuned, plan, dtype)
  counts = dataclasses.asdict(storage) | {'bits': storage.bits, 'bytes': storage.bytes}
  card = library.completed(dataclasses.replace(card, extra={**card.extra, 'storage': counts}),
                           {'tuned': tuned, 'constants': {}})
  with tree_files.replacing_folder(folder) as temporary:
    write_packed(temporary / library.PACKED, tuned, plan, dtype)
    tree_files.write_json(temporary / library.CARD, dataclasses.asdict(card))
  return card


def pack_expert(source: str | os.PathLike, target: str | os.PathLike,
                dtype: str = 'float32') -> pathlib.Path:
  """Writes an expert again, with one bit for each entry of its masks.

  Under 'float32' predictions stay the same; scores, which only further training needs, are lost.

  Args:
    source: folder of the expert.
    target: folder to write; one that is there is replaced.
    dtype: of its floats, 'float32' or 'bfloat16'.

  Returns:
    The folder.

  Raises:
    UserError: no expert, one without masks or with constants, or an unknown dtype.
  """
  tuned, constants, card = library.load_expert(source)
  if not densities_of(card.plan) or constants:
    raise UserError(f"expert '{card.name}' has no masks or more than prototype and masks; only an"
                    ' expert of propetl alone can be packed.')
  tuned, card = without_networks(tuned, card)
  save_packed(target, tuned, card, card.plan, dtype)
  return pathlib.Path(target)


def without_networks(tuned: Tree, card: library.ExpertCard) -> tuple[Tree, library.ExpertCard]:
  """Puts the rows of masked prefixes in place of the networks that make them.

  Args:
    tuned: trained leaves of an expert.
    card: of the expert.

  Returns:
    Leaves and card of an expert that computes the same.
  """
  flat = flatten(tuned)
  networks = {rule['name']: rule['config']['delta'] for rule in card.plan
              if rule['delta'] == 'Masked' and rule['config']['delta'].get('hidden')}
  if not networks:
    return tuned, card
  for start in [path.removesuffix('/table') for path in flat if path.endswith('/table')]:
    own = networks.get(start.rpartition('/')[2])
    if own is None:
      continue
    delta = RowPrefix(**own)
    names = ('table', 'project_in', 'bias_in', 'project_out', 'bias_out')
    values = {name: jnp.asarray(flat.pop(f'{start}/{name}')) for name in names}
    make = lambda values, delta=delta: delta.from_source(values, None)['rows']
    many = values['table'].ndim > 2  # layers have networks of their own
    flat[f'{start}/rows'] = np.asarray((jax.vmap(make) if many else make)(values))
  extra = {name: _hidden_to_zero(value) for name, value in card.extra.items()}
  plan = [_hidden_to_zero(rule) if rule['name'] in networks else rule for rule in card.plan]
  return unflatten(flat), dataclasses.replace(card, plan=plan, extra=extra)


def _hidden_to_zero(value: Any) -> Any:
  """Options of masked prefixes, wherever they stand in plain values, without a network."""
  if not isinstance(value, dict):
    return value
  found = {name: _hidden_to_zero(inner) for name, inner in value.items()}
  masked = {'hidden', 'length'} <= set(found) and {'form', 'heads'} & set(found)
  return found | {'hidden': 0} if masked else found
