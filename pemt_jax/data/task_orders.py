"""Orders of batches that hold rows of one task each; see `buckets.BatchOrder` for the protocol."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from pemt_jax.data.buckets import FILLER, BatchOrder
from pemt_jax.data.keyed_random import keyed_permutation
from pemt_jax.data.task_sampler import TaskSampler


@dataclasses.dataclass(frozen=True)
class SingleTaskOrder:
  """Every row of an epoch once, in batches of one task, which are visited in shuffled order.

  Attributes:
    rows_of: rows of each task.
    orders: order of the rows of each task.
    seed: of the visits; None visits task after task.
    name: of the stream.
  """

  rows_of: tuple[np.ndarray, ...]
  orders: tuple[BatchOrder, ...]
  seed: int | None
  name: str

  @classmethod
  def of(cls, owner: np.ndarray, keys: np.ndarray, seed: int | None, name: str,
         **options: int) -> SingleTaskOrder:
    """Cuts rows by task.

    Args:
      owner: [row] number of its task.
      keys: [row] its bucket.
      seed: of all shuffles, or None.
      name: of the stream.
      **options: batch_size, lookahead and drop_remainder of `BatchOrder`.
    """
    rows_of = tuple(np.flatnonzero(owner == task) for task in range(int(owner.max()) + 1))
    orders = tuple(BatchOrder(keys=keys[rows], seed=seed, name=f'{name}/{task}', **options)
                   for task, rows in enumerate(rows_of))
    return cls(rows_of, orders, seed, name)

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    """[task] batches of an epoch up to and with each task."""
    return np.cumsum([order.steps_per_epoch for order in self.orders])

  @property
  def steps_per_epoch(self) -> int:
    """Batches of an epoch."""
    return int(self._ends[-1])

  @functools.cached_property
  def _visits(self):
    return functools.lru_cache(maxsize=2)(self._make_visits)

  def _make_visits(self, epoch: int) -> np.ndarray:
    if self.seed is None:
      return np.arange(self.steps_per_epoch)
    return keyed_permutation(self.steps_per_epoch, 'tasks', self.seed, self.name, epoch)

  def rows(self, step: int) -> tuple[np.ndarray, int]:
    """Row numbers [batch_size] of a global step (-1: filler) and the epoch it belongs to."""
    epoch, place = divmod(step, self.steps_per_epoch)
    batch = int(self._visits(epoch)[place])
    task = int(np.searchsorted(self._ends, batch, side='right'))
    order = self.orders[task]
    first = int(self._ends[task]) - order.steps_per_epoch
    found, _ = order.rows(epoch * order.steps_per_epoch + batch - first)
    return np.where(found == FILLER, FILLER, self.rows_of[task][found]), epoch


@dataclasses.dataclass(frozen=True)
class EpisodeOrder:
  """Batches of several episodes one after the other; an episode is a batch of one task.

  Attributes:
    order: of the episodes.
    count: episodes of a batch.
  """

  order: SingleTaskOrder
  count: int

  @property
  def steps_per_epoch(self) -> int:
    """Batches that show every row at least once."""
    return -(-self.order.steps_per_epoch // self.count)

  def rows(self, step: int) -> tuple[np.ndarray, int]:
    """Row numbers [batch_size] of a global step (-1: filler) and the epoch it belongs to."""
    parts = [self.order.rows(step * self.count + place) for place in range(self.count)]
    return np.concatenate([rows for rows, _ in parts]), parts[0][1]


@dataclasses.dataclass(frozen=True)
class DrawnOrder:
  """Tasks and rows are drawn with replacement; an epoch has as many batches as the rows fill."""

  sampler: TaskSampler

  @property
  def steps_per_epoch(self) -> int:
    """Batches of an epoch."""
    return self.sampler.batches_per_epoch

  @functools.cached_property
  def _epochs(self):
    return functools.lru_cache(maxsize=2)(self.sampler.rows)

  def rows(self, step: int) -> tuple[np.ndarray, int]:
    """Row numbers [batch_size] of a global step and the epoch it belongs to."""
    epoch, place = divmod(step, self.steps_per_epoch)
    return self._epochs(epoch)[place], epoch
