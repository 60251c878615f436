"""Length buckets, the order of batches, and their assembly: NumPy only.

A batch is a dict of arrays with static shapes:
  inputs [batch, length] int32, inputs_mask [batch, length] float32 of 0 and 1,
  targets [batch, target_length] int32, targets_mask [batch, target_length] float32,
  task_ids [batch] int32, example_ids [batch] int32.
Rows with labels have labels [batch] float32 in place of targets, and may have token_types.
A filler row has example_ids -1 and masks of zeros. Replicas add a leading axis to every array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Protocol

import numpy as np

from pemt_jax.data.keyed_random import keyed_bits, keyed_permutation
from pemt_jax.errors import UserError

Batch = dict[str, np.ndarray]
Buckets = Sequence[int] | int | None
FILLER = -1


class BatchSource(Protocol):
  """Rows that can be put into batches.

  Attributes:
    input_lengths: [row] ids per input; target_lengths: [row] ids per target.
    input_limit: greatest allowed input length; target_limit: the same for targets.
    fingerprint: hex digest of the content.
  """
  input_lengths: np.ndarray
  target_lengths: np.ndarray
  input_limit: int
  target_limit: int
  fingerprint: str

  def __len__(self) -> int:
    ...

  def assemble(self, rows: np.ndarray, epoch: int, lengths: tuple[int, int]) -> Batch:
    """Makes a batch from row numbers [batch] (-1: filler), padded to (input, target) lengths."""


class Order(Protocol):
  """Which rows make up the batch of a step; `BatchOrder` is one.

  Attributes:
    steps_per_epoch: batches of one epoch.
  """
  steps_per_epoch: int

  def rows(self, step: int) -> tuple[np.ndarray, int]:
    """Row numbers [batch_size] of a global step (-1: filler) and the epoch it belongs to."""


def length_buckets(limit: int, buckets: Buckets = None, smallest: int = 32) -> tuple[int, ...]:
  """Allowed padded lengths, ascending; the last one is `limit`.

  Args:
    limit: greatest length of any row.
    buckets: a list of lengths, or one number whose multiples are taken, or None for powers of two.
    smallest: first power of two, used with None only.

  Raises:
    UserError: if a bucket is below 1.
  """
  if isinstance(buckets, (int, np.integer)):
    if buckets < 1:
      raise UserError(f'buckets={buckets} is not a length; give a multiple of at least 1.')
    chosen = list(range(int(buckets), limit, int(buckets)))
  elif buckets is None:
    chosen = [smallest << i for i in range(32) if smallest << i < limit]
  else:
    chosen = sorted({int(b) for b in buckets})
  if chosen and chosen[0] < 1:
    raise UserError(f'buckets={list(buckets)} holds {chosen[0]}; lengths start at 1.')
  return tuple(b for b in chosen if b < limit) + (limit,)


def bucket_index(lengths: np.ndarray, buckets: Sequence[int]) -> np.ndarray:
  """Index of the smallest bucket that holds each length."""
  return np.searchsorted(np.asarray(buckets), lengths, side='left')


def steps_per_epoch(examples: int, batch_size: int, drop_remainder: bool = False) -> int:
  """Number of batches that hold `examples` rows once each."""
  return examples // batch_size if drop_remainder else -(-examples // batch_size)


@dataclasses.dataclass(frozen=True)
class PaddedShapes:
  """Chooses the padded lengths of a batch from its rows."""
  source: BatchSource
  input_buckets: tuple[int, ...]
  target_buckets: tuple[int, ...]

  @classmethod
  def of(cls, source: BatchSource, buckets: Buckets, target_buckets: Buckets) -> PaddedShapes:
    """Resolves bucket settings against the limits of the source."""
    return cls(source, length_buckets(source.input_limit, buckets),
               length_buckets(source.target_limit, target_buckets, smallest=8))

  def lengths(self, rows: np.ndarray) -> tuple[int, int]:
    """(input, target) lengths of the smallest buckets that hold all given rows."""
    rows = rows[rows != FILLER]
    return (self.input_buckets[bucket_index(self.source.input_lengths[rows].max(),
                                            self.input_buckets)],
            self.target_buckets[bucket_index(self.source.target_lengths[rows].max(),
                                             self.target_buckets)])

  def keys(self) -> np.ndarray:
    """[row] sort keys: rows of equal key fill the same pair of buckets."""
    inputs = bucket_index(self.source.input_lengths, self.input_buckets)
    targets = bucket_index(self.source.target_lengths, self.target_buckets)
    return inputs * len(self.target_buckets) + targets


@dataclasses.dataclass(frozen=True)
class BatchOrder:
  """Which rows make up the batch of a global step, epoch after epoch.

  The rows of an epoch are shuffled by (seed, name, epoch). The steps of all epochs are cut into
  windows of `lookahead` steps; inside a window (and an epoch) rows are sorted by bucket, cut into
  batches, and the batches are visited in an order that depends on the window alone. Streams of
  other data that step together therefore meet short batches, and long ones, at the same time.

  Attributes:
    keys: [row] bucket of each row.
    batch_size: rows per batch.
    seed: of the shuffle; None keeps the rows in order.
    name: of the stream; streams of other names shuffle independently.
    lookahead: steps per window; 1 turns sorting off.
    drop_remainder: leaves the rows out that do not fill the last batch of an epoch.
  """
  keys: np.ndarray
  batch_size: int
  seed: int | None
  name: str
  lookahead: int
  drop_remainder: bool

  @property
  def steps_per_epoch(self) -> int:
    """Batches of one pass over the rows."""
    return steps_per_epoch(len(self.keys), self.batch_size, self.drop_remainder)

  def rows(self, step: int) -> tuple[np.ndarray, int]:
    """Row numbers [batch_size] of a global step (-1: filler) and the epoch it belongs to."""
    epoch = step // self.steps_per_epoch
    found = self._window(epoch, step // self.lookahead)[step]
    padded = np.full(self.batch_size, FILLER, np.int64)
    padded[:len(found)] = found
    return padded, epoch

  @functools.cached_property
  def _window(self):
    return functools.lru_cache(maxsize=4)(self._make_window)

  @functools.cached_property
  def _order(self):
    return functools.lru_cache(maxsize=2)(self._make_order)

  def _make_order(self, epoch: int) -> np.ndarray:
    size = len(self.keys)
    if self.seed is None:
      order = np.arange(size)
    else:
      order = keyed_permutation(size, 'shuffle', self.seed, self.name, epoch)
    return order[:self.steps_per_epoch * self.batch_size]

  def _make_window(self, epoch: int, window: int) -> dict[int, np.ndarray]:
    """Rows of every step that lies in both the window and the epoch."""
    start = epoch * self.steps_per_epoch
    first = max(start, window * self.lookahead)
    last = min(start + self.steps_per_epoch, (window + 1) * self.lookahead)
    order = self._order(epoch)[(first - start) * self.batch_size:(last - start) * self.batch_size]
    order = order[np.argsort(self.keys[order], kind='stable')] if self.lookahead > 1 else order
    steps = np.arange(first, last)
    if self.seed is not None:
      visit = keyed_bits('visit', window, np.arange(self.lookahead))
      steps = steps[np.argsort(visit[steps % self.lookahead], kind='stable')]
    # Every step has batch_size rows, but the last step of an epoch has what is left.
    sizes = np.full(len(steps), self.batch_size)
    sizes[steps == last - 1] = len(order) - (len(steps) - 1) * self.batch_size
    return dict(zip(steps.tolist(), np.split(order, np.cumsum(sizes)[:-1])))


def rows_at(rows: np.ndarray, places: np.ndarray | None) -> np.ndarray:
  """The rows at some places of a batch; places behind its end hold filler rows, None is all."""
  if places is None:
    return rows
  inside = places < len(rows)
  return np.where(inside, rows[np.where(inside, places, 0)], FILLER)


def check_batch(rows: int, batch_size: int) -> None:
  """Refuses settings from which no batch can be made.

  Raises:
    UserError: if there are no rows, or the batch has none.
  """
  if rows < 1:
    raise UserError('There is no example to make batches from; check the split and row limits.')
  if batch_size < 1:
    raise UserError(f'batch_size={batch_size} is not a number of examples; give at least 1.')


def eval_batches(
    source: BatchSource, batch_size: int, buckets: Buckets = None, target_buckets: Buckets = None,
    *, sort: bool = True) -> Iterator[Batch]:
  """Yields every row once, in the same order at every call.

  Args:
    source: the rows.
    batch_size: rows per batch; the last batch ends with filler rows.
    buckets: see `length_buckets`.
    target_buckets: the same for targets.
    sort: True visits long rows first, which pads least; False keeps the given order. Either way
      `example_ids` tells where a row belongs.

  Raises:
    UserError: if there are no rows, or the batch has none.
  """
  check_batch(len(source), batch_size)
  shapes = PaddedShapes.of(source, buckets, target_buckets)
  order = np.arange(len(source))
  if sort:
    order = np.lexsort((-source.target_lengths, -source.input_lengths))
  for start in range(0, len(order), batch_size):
    rows = np.full(batch_size, FILLER, np.int64)
    chosen = order[start:start + batch_size]
    rows[:len(chosen)] = chosen
    yield source.assemble(rows, 0, shapes.lengths(rows))


def pad_batch(batch: Batch, shape: tuple[int, int, int]) -> Batch:
  """Pads a batch with zeros and filler rows to (rows, input length, target length)."""
  rows, input_length, target_length = shape
  columns = {'inputs': input_length, 'inputs_mask': input_length, 'token_types': input_length,
             'targets': target_length, 'targets_mask': target_length}
  return {name: _padded(name, array, (rows, columns.get(name, 0))[:array.ndim])
          for name, array in batch.items()}


def _padded(name: str, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  # Several times faster than `np.pad`, which would be most of what a small batch costs.
  padded = np.full(shape, FILLER if name == 'example_ids' else 0, array.dtype)
  padded[tuple(map(slice, array.shape))] = array
  return padded


def stack_batches(batches: Sequence[Batch]) -> Batch:
  """Stacks the batches of replicas.

  Every array is padded to the largest one of its name: in rows, in length, and in examples of a
  row where rows hold several.

  Returns:
    A batch whose arrays have a leading [replica] axis.
  """
  shapes = {name: np.max([batch[name].shape for batch in batches], axis=0)
            for name in batches[0]}
  return {name: np.stack([_padded(name, batch[name], shape) for batch in batches])
          for name, shape in shapes.items()}


def batch_stats(batch: Batch) -> dict[str, int]:
  """Counts of a batch, stacked or not.

  Returns:
    input_tokens, target_tokens and their sum tokens (padding left out), examples (fillers left
    out), and positions (all input and target positions, padding included).
  """
  inputs, targets = int(batch['inputs_mask'].sum()), int(batch['targets_mask'].sum())
  return {'input_tokens': inputs, 'target_tokens': targets, 'tokens': inputs + targets,
          'examples': int((batch['example_ids'] != FILLER).sum()),
          'positions': batch['inputs'].size + batch['targets'].size}
