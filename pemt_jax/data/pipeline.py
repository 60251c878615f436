"""Endless, deterministic, checkpointable streams of batches (Grain), one per replica.

Examples -> `tokenize_examples` -> `TokenizedData` -> `Stream` (training) or `eval_batches`;
`stack_batches` joins the batches of replicas. Everything random is a function of (seed, name,
epoch), never of other streams, and the position of a stream is one number.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pemt_jax.data.buckets import (
    Batch, BatchOrder, BatchSource, Buckets, Order, PaddedShapes, batch_stats, check_batch,
    eval_batches, rows_at, stack_batches, steps_per_epoch)
from pemt_jax.data.tokenized import (
    Ragged, TokenizedData, concatenate_data, digest, tokenize_examples)
from pemt_jax.errors import UserError

__all__ = [
    'Batch', 'BatchSource', 'Ragged', 'Stream', 'StreamConfig', 'TokenizedData', 'batch_stats',
    'concatenate_data', 'eval_batches', 'order_of', 'stack_batches', 'steps_per_epoch',
    'tokenize_examples']


@dataclasses.dataclass(frozen=True)
class StreamConfig:
  """Settings of a stream.

  Attributes:
    batch_size: rows per batch.
    seed: of the shuffle.
    name: of the replica; streams of other names shuffle independently.
    buckets: allowed input lengths; a list, one number for its multiples, None for powers of two
      from 32. The limit of the data is always the last one.
    target_buckets: the same for targets; None: powers of two from 8.
    lookahead: steps whose rows are sorted by length together; 1 turns sorting off.
    shuffle: False keeps rows in order within a window.
    drop_remainder: leaves out the rows that do not fill the last batch of an epoch; otherwise
      filler rows complete it.
    prefetch: batches made ahead in a background thread; 0 makes each on demand.
  """
  batch_size: int
  seed: int = 0
  name: str = ''
  buckets: Buckets = None
  target_buckets: Buckets = None
  lookahead: int = 32
  shuffle: bool = True
  drop_remainder: bool = False
  prefetch: int = 2


def order_of(source: BatchSource, config: StreamConfig) -> tuple[PaddedShapes, Order]:
  """Returns the padded shapes of a stream, and which rows make up the batch of each step.

  A source with a method `batch_order` decides that itself.
  """
  shapes = PaddedShapes.of(source, config.buckets, config.target_buckets)
  make = getattr(source, 'batch_order', BatchOrder)
  return shapes, make(shapes.keys(), config.batch_size, config.seed if config.shuffle else None,
                      config.name, config.lookahead, config.drop_remainder)


class Stream:
  """Iterator over the batches of epoch 0, 1, 2, ... without end.

  Attributes:
    steps_per_epoch: batches per epoch, the same for every epoch.
  """

  def __init__(self, source: BatchSource, config: StreamConfig):
    """Opens a stream at step 0.

    Raises:
      UserError: if there are no rows, or the sizes do not fit each other.
    """
    check_batch(len(source), config.batch_size)
    if config.lookahead < 1:
      raise UserError(f'lookahead={config.lookahead} is not a number of steps; give at least 1.')
    self._source, self._config = source, config
    self._places: np.ndarray | None = None
    self._shapes, self._order = order_of(source, config)
    self.steps_per_epoch = self._order.steps_per_epoch
    if not self.steps_per_epoch:
      raise UserError(f'drop_remainder leaves no batch: batch_size={config.batch_size} is above '
                      f'the {len(source)} examples; lower it or keep the remainder.')
    self._identity = digest(source.fingerprint, repr(
        (config.batch_size, config.seed, config.name, self._shapes.input_buckets,
         self._shapes.target_buckets, config.lookahead, config.shuffle, config.drop_remainder)))
    self._iterator = self._open()

  def _open(self) -> Any:
    import grain
    prefetch = self._config.prefetch
    options = grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)
    steps = grain.MapDataset.range(self.steps_per_epoch).repeat()
    return iter(steps.map_with_index(self._batch_at).to_iter_dataset(options))

  def _batch_at(self, step: int, _: int) -> Batch:
    """Makes the batch of a global step; a pure function, hence exact resume."""
    rows, epoch = self._order.rows(step)
    return self._source.assemble(rows_at(rows, self._places), epoch, self._shapes.lengths(rows))

  @property
  def batch_size(self) -> int:
    """Rows per batch."""
    return self._config.batch_size

  def keep(self, places: np.ndarray | None) -> None:
    """Assembles the rows at some places of every later batch only, as one of several processes.

    Lengths and order, and hence the saved position, are those of whole batches.

    Args:
      places: [row] places in the batch, those behind its end give filler rows; None is all.
    """
    if places is self._places or np.array_equal(places, self._places):
      return
    position = self._iterator.get_state()
    self._iterator.close()
    self._places = places
    self._iterator = self._open()
    self._iterator.set_state(position)

  def __iter__(self) -> Stream:
    return self

  def __next__(self) -> Batch:
    return next(self._iterator)

  @property
  def step(self) -> int:
    """Number of batches taken since the start of epoch 0."""
    return self._iterator.get_state()['next_index']

  @property
  def epoch(self) -> int:
    """Epoch of the next batch."""
    return self.step // self.steps_per_epoch

  def get_state(self) -> dict[str, Any]:
    """Position as a dict that JSON can hold."""
    return {'identity': self._identity, 'position': self._iterator.get_state()}

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues where `get_state` was called.

    Raises:
      UserError: if the state belongs to other data or settings.
    """
    if state.get('identity') != self._identity:
      raise UserError(
          f'The saved data position of stream {self._config.name!r} belongs to other examples or '
          'settings (texts, tokenizer, lengths, batch_size, seed, buckets); restore them or start '
          'in a new workdir.')
    self._iterator.set_state(dict(state['position']))

  def close(self) -> None:
    """Ends the background thread."""
    self._iterator.close()
