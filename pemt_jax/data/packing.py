"""Several examples in one row: which stand together, and how their rows are made. NumPy only.

A packed row is one row of a `BatchSource`, so that streams shuffle, resume and mix packed rows as
they do single examples. Its batches have these arrays more, or of other shapes:
  input_segments [batch, length] int32, target_segments [batch, target_length] int32: the example
    of each position, counted from 1 within the row; 0 is padding,
  example_ids [batch, example] int32, -1 where a row has fewer examples than others.
In front of every input stand `front` positions for a prompt: they belong to the example and have a
mask of 0. The examples of a row have one task.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools

import numpy as np

from pemt_jax.data.buckets import Batch, BatchSource, FILLER
from pemt_jax.data.keyed_random import keyed_permutation
from pemt_jax.data.tokenized import digest
from pemt_jax.errors import UserError

WINDOW = 1024  # examples among which rows are filled
_SLACK = 1.5  # of the room for targets, over what they need on average
_SHARE = 0.99  # of the targets that fit into it
_ROUND = 8  # the room is a multiple of it


@dataclasses.dataclass(frozen=True)
class RowForm:
  """Sizes of a packed row.

  Attributes:
    front: positions in front of each input, for a prompt.
    length: positions for inputs, those in front included.
    target_length: positions for targets; 0 takes what the examples need, see `target_room`. A
      longer target stands in a row of its own.
  """

  front: int
  length: int
  target_length: int = 0


@dataclasses.dataclass(frozen=True)
class PackedRows:
  """A `BatchSource` whose rows hold several examples of another one.

  From epoch to epoch, examples of equal lengths change places, so that an example meets others.

  Attributes:
    source: the examples.
    members: [row, example] row numbers in `source`, -1 for free places.
    form: sizes of a row; `target_length` is not 0.
    seed: of the changes of places.
    name: of the stream; streams of other names change others.
  """

  source: BatchSource
  members: np.ndarray
  form: RowForm
  seed: int
  name: str

  def __len__(self) -> int:
    return len(self.members)

  @property
  def input_limit(self) -> int:
    """Length of every row."""
    return self.form.length

  @property
  def input_lengths(self) -> np.ndarray:
    """[row] the same for all."""
    return np.full(len(self), self.form.length)

  @functools.cached_property
  def target_lengths(self) -> np.ndarray:
    """[row] positions for targets: those of the form, but for rows of one long target."""
    own = np.where(self.members == FILLER, 0, self.source.target_lengths[self.members])
    return np.maximum(own.sum(axis=1), self.form.target_length)

  @property
  def target_limit(self) -> int:
    """Positions for the targets of the largest row."""
    return int(self.target_lengths.max(initial=1))

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hex digest of the examples and of their places."""
    return digest(self.source.fingerprint, self.members.tobytes().hex(), repr(self.form),
                  str(self.seed), self.name)

  def assemble(self, rows: np.ndarray, epoch: int, lengths: tuple[int, int]) -> Batch:
    """Makes a batch; see the module.

    Args:
      rows: [batch] row numbers, -1 for filler rows.
      epoch: decides which examples of equal lengths stand where.
      lengths: (input, target) padded lengths of the rows.
    """
    members = np.where(rows[:, None] == FILLER, FILLER, self.members[rows])
    members = np.where(members == FILLER, FILLER, self._exchanged(epoch)[members])
    flat = members.reshape(-1)
    real = flat[flat != FILLER]
    widest = [int(own[real].max(initial=1))
              for own in (self.source.input_lengths, self.source.target_lengths)]
    alone = self.source.assemble(flat, epoch, tuple(widest))
    batch = {'task_ids': alone['task_ids'].reshape(members.shape).max(axis=1),
             'example_ids': alone['example_ids'].reshape(members.shape)}
    for name, front, length in (('input', self.form.front, lengths[0]), ('target', 0, lengths[1])):
      batch |= _joined(alone, name, members, front, length)
    return batch

  @functools.cached_property
  def _exchanged(self):
    return functools.lru_cache(maxsize=2)(self._exchange)

  def _exchange(self, epoch: int) -> np.ndarray:
    """[example] the example that stands in the place of each one in an epoch."""
    shuffled = keyed_permutation(len(self.source), 'exchange', self.seed, self.name, epoch)
    inputs, targets = self.source.input_lengths, self.source.target_lengths
    found = np.empty(len(shuffled), np.int64)
    # Both are in the order of lengths; only the order among equal lengths differs.
    found[np.lexsort((targets, inputs))] = shuffled[
        np.lexsort((targets[shuffled], inputs[shuffled]))]
    return found


def _joined(alone: Batch, name: str, members: np.ndarray, front: int,
            length: int) -> dict[str, np.ndarray]:
  """Rows of `<name>s`, their mask and `<name>_segments` out of a batch of single examples."""
  count, each = members.shape
  ids, mask = alone[f'{name}s'], alone[f'{name}s_mask']
  sizes = (mask.sum(axis=1).astype(np.int64) + front).reshape(count, each)
  sizes = np.where(members == FILLER, 0, sizes)
  stops = np.cumsum(sizes, axis=1)
  example, place = np.nonzero(mask)
  columns = (stops - sizes).reshape(-1)[example] + front + place
  tokens, real = np.zeros((count, length), np.int32), np.zeros((count, length), np.float32)
  tokens[example // each, columns] = ids[example, place]
  real[example // each, columns] = 1.0
  positions = np.arange(length)
  segments = 1 + (positions[None, :, None] >= stops[:, None, :]).sum(axis=-1)
  segments = np.where(positions < stops[:, -1:], segments, 0).astype(np.int32)
  return {f'{name}s': tokens, f'{name}s_mask': real, f'{name}_segments': segments}


def pack_rows(source: BatchSource, form: RowForm, seed: int, name: str) -> PackedRows:
  """Puts examples together by first fit, in windows of shuffled examples, long ones first.

  Args:
    source: the examples.
    form: sizes of a row.
    seed: of the shuffle.
    name: of the stream; streams of other names shuffle independently.

  Raises:
    UserError: an input that is longer than a row.
  """
  costs, targets = source.input_lengths + form.front, source.target_lengths
  longest = int(costs.max(initial=1))
  if longest > form.length:
    raise UserError(f'an example of {name!r} takes {longest} positions, {form.front} of them for'
                    f' its prompt, but config.data.packed_length is {form.length}; give at least'
                    f' {longest}.')
  if not form.target_length:
    form = dataclasses.replace(form, target_length=target_room(source, form))
  order, rows = keyed_permutation(len(source), 'packing', seed, name), []
  for start in range(0, len(order), WINDOW):
    window = order[start:start + WINDOW]
    window = window[np.argsort(-costs[window], kind='stable')]
    needs = np.stack([costs[window], targets[window]], axis=1)
    rows += [window[places] for places in first_fit(needs, (form.length, form.target_length))]
  members = np.full((len(rows), max(map(len, rows), default=1)), FILLER, np.int64)
  for number, row in enumerate(rows):
    members[number, :len(row)] = row
  return PackedRows(source, members, form, seed, name)


def first_fit(needs: np.ndarray, room: tuple[int, int]) -> list[list[int]]:
  """Puts each item into the first bin that has room for it.

  Args:
    needs: [item, 2] what it takes.
    room: what an empty bin has; an item that needs more gets a bin of its size.

  Returns:
    Items of each bin, in their order.
  """
  free = np.zeros_like(needs)
  bins: list[list[int]] = []
  for item, need in enumerate(needs):
    free[len(bins)] = np.maximum(room, need)
    first = int(np.argmax((free[:len(bins) + 1] >= need).all(axis=1)))
    if first == len(bins):
      bins.append([])
    bins[first].append(item)
    free[first] -= need
  return bins


def target_room(source: BatchSource, form: RowForm) -> int:
  """Positions for the targets of the inputs that fill a row: by the means of both, and so that
  nearly all targets fit."""
  costs, targets = source.input_lengths + form.front, source.target_lengths
  mean = _SLACK * form.length * targets.sum() / costs.sum()
  return -(-int(np.ceil(max(mean, np.quantile(targets, _SHARE)))) // _ROUND) * _ROUND


def aligned(parts: Sequence[PackedRows]) -> list[PackedRows]:
  """The same rows with the sizes of the largest part, so that a batch may hold rows of several."""
  length, target_length = (max(getattr(part.form, field) for part in parts)
                           for field in ('length', 'target_length'))
  most, found = max(part.members.shape[1] for part in parts), []
  for part in parts:
    form = dataclasses.replace(part.form, length=length, target_length=target_length)
    widths = ((0, 0), (0, most - part.members.shape[1]))
    members = np.pad(part.members, widths, constant_values=FILLER)
    found.append(dataclasses.replace(part, form=form, members=members))
  return found
