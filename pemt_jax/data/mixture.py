"""Rows of several tasks in one stream; `task_ids` of a batch tell the task of each row.

`MixedTasks` is a `BatchSource` for `pipeline.Stream`, a Grain data set that resumes at any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools

import numpy as np

from pemt_jax.data.buckets import Batch, BatchOrder, BatchSource, FILLER, Order
from pemt_jax.data.keyed_random import keyed_permutation
from pemt_jax.data.task_orders import DrawnOrder, EpisodeOrder, SingleTaskOrder
from pemt_jax.data.task_sampler import TaskSampler
from pemt_jax.data.tokenized import digest
from pemt_jax.errors import number, one_of

SAMPLINGS = ('proportional', 'equal', 'temperature')
BATCHES = ('mixed', 'single', 'drawn', 'episodes')


@dataclasses.dataclass(frozen=True)
class Mixing:
  """How rows of several tasks come together.

  Attributes:
    sampling: share of each task; see `shares`.
    temperature: see `shares`.
    batches: 'mixed', a batch holds rows of several tasks; 'single', rows of one task. Both show
      every row of every task at least once in an epoch. 'drawn', the published sampler of ProPETL:
      rows of one task, tasks and rows drawn with replacement. 'episodes': as many parts of equal
      size, each of one task, as `episodes` says (MAML).
    seed: of 'drawn' (published: 0); None takes that of the stream.
    episodes: of a batch.
  """

  sampling: str
  temperature: float = 2.0
  batches: str = 'mixed'
  seed: int | None = None
  episodes: int = 1

  def __post_init__(self):
    """Checks the words.

    Raises:
      UserError: one is not known.
    """
    one_of('config.mixture.sampling', self.sampling, SAMPLINGS)
    one_of('config.mixture.batches', self.batches, BATCHES)
    number('config.mixture.episodes', self.episodes, self.episodes >= 1, 'of at least 1')

  def shares(self, sizes: Sequence[int]) -> np.ndarray:
    """Share of each task: [task], sum 1."""
    return shares(sizes, self.sampling, self.temperature)


def shares(sizes: Sequence[int], sampling: str, temperature: float = 2.0) -> np.ndarray:
  """Share of each task in an epoch: [task], sum 1.

  Args:
    sizes: rows of each task.
    sampling: 'proportional' to the rows, 'equal', or 'temperature': proportional to
      rows^(1 / temperature).
    temperature: at least 1; 1 is proportional, large values come near equal.

  Raises:
    UserError: an unknown word, or a temperature below 1.
  """
  one_of('mixture.sampling', sampling, SAMPLINGS)
  number('mixture.temperature', temperature, temperature >= 1, 'of at least 1')
  power = {'proportional': 1.0, 'equal': 0.0, 'temperature': 1.0 / temperature}[sampling]
  weights = (np.asarray(sizes, np.float64) / sum(sizes))**power
  return weights / weights.sum()


def epoch_rows(sizes: Sequence[int], share: np.ndarray, seed: int, name: str) -> list[np.ndarray]:
  """Rows of each task in an epoch: as few as show every row at least once at the wanted shares.

  Args:
    sizes: rows of each task.
    share: see `shares`.
    seed: chooses the rows that come once more than others.
    name: of the stream; other names choose others.

  Returns:
    Row numbers of each task, repeated where the task is oversampled.
  """
  total = np.max(np.asarray(sizes) / share)
  found = []
  for task, size in enumerate(sizes):
    times, rest = divmod(max(int(round(total * share[task])), size), size)
    more = keyed_permutation(size, 'mixture', seed, name, task)[:rest]
    found.append(np.concatenate([np.tile(np.arange(size), times), more]))
  return found


@dataclasses.dataclass(frozen=True)
class MixedTasks:
  """A `BatchSource` over the rows of several tasks.

  Attributes:
    parts: rows of each task.
    owner: [row] number of the task of each row of an epoch.
    place: [row] its row in the part.
    mixing: how they come together.
  """

  parts: tuple[BatchSource, ...]
  owner: np.ndarray
  place: np.ndarray
  mixing: Mixing

  @classmethod
  def of(cls, parts: Sequence[BatchSource], mixing: Mixing, seed: int, name: str) -> MixedTasks:
    """Mixes parts; see `Mixing` and `epoch_rows`."""
    sizes = [len(part) for part in parts]
    rows = [np.arange(size) for size in sizes]
    if mixing.batches != 'drawn':
      rows = epoch_rows(sizes, mixing.shares(sizes), seed, name)
    owner = np.repeat(np.arange(len(parts)), [len(own) for own in rows])
    return cls(tuple(parts), owner, np.concatenate(rows), mixing)

  def batch_order(self, keys: np.ndarray, batch_size: int, seed: int | None, name: str,
                  lookahead: int, drop_remainder: bool) -> Order:
    """Which rows make up the batch of a step; arguments as those of `BatchOrder`."""
    if self.mixing.batches == 'drawn':
      sizes = tuple(len(part) for part in self.parts)
      own = (seed or 0) if self.mixing.seed is None else self.mixing.seed
      return DrawnOrder(TaskSampler(sizes, self.mixing.shares(sizes), batch_size, own))
    if self.mixing.batches in ('single', 'episodes'):
      count = self.mixing.episodes if self.mixing.batches == 'episodes' else 1
      number('config.data.batch_size', batch_size, batch_size % count == 0,
             f'that config.mixture.episodes={count} divides')
      single = SingleTaskOrder.of(self.owner, keys, seed, name, batch_size=batch_size // count,
                                  lookahead=lookahead, drop_remainder=drop_remainder)
      return EpisodeOrder(single, count) if count > 1 else single
    return BatchOrder(keys, batch_size, seed, name, lookahead, drop_remainder)

  def __len__(self) -> int:
    return len(self.owner)

  def _gathered(self, field: str) -> np.ndarray:
    found = np.zeros(len(self), np.int64)
    for task, part in enumerate(self.parts):
      mine = self.owner == task
      found[mine] = getattr(part, field)[self.place[mine]]
    return found

  @functools.cached_property
  def input_lengths(self) -> np.ndarray:
    """[row] ids per input."""
    return self._gathered('input_lengths')

  @functools.cached_property
  def target_lengths(self) -> np.ndarray:
    """[row] ids per target."""
    return self._gathered('target_lengths')

  @property
  def input_limit(self) -> int:
    """Greatest allowed input length."""
    return max(part.input_limit for part in self.parts)

  @property
  def target_limit(self) -> int:
    """Greatest allowed target length."""
    return max(part.target_limit for part in self.parts)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hex digest of the parts, of the rows of an epoch, and of how they come together."""
    rows = digest(self.owner.tobytes().hex(), self.place.tobytes().hex())
    return digest(rows, repr(self.mixing), *(part.fingerprint for part in self.parts))

  def assemble(self, rows: np.ndarray, epoch: int, lengths: tuple[int, int]) -> Batch:
    """Makes a batch; `example_ids` count within the task of the row.

    Args:
      rows: [batch] row numbers, -1 for filler rows.
      epoch: passed on to the parts.
      lengths: (input, target) padded lengths.
    """
    real, batch = rows != FILLER, {}
    for task, part in enumerate(self.parts):
      mine = real & (self.owner[rows] == task)
      made = part.assemble(np.where(mine, self.place[rows], FILLER), epoch, lengths)
      made['task_ids'] = np.where(mine, task, 0).astype(np.int32)
      batch = {name: _choose(mine, array, batch[name]) if batch else array
               for name, array in made.items()}
    return batch


def _choose(mine: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Rows of `first` where `mine`, else of `second`."""
  return np.where(mine.reshape(-1, *[1] * (first.ndim - 1)), first, second)
