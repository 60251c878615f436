"""Batches of one task each, drawn by weight: the sampler of multi-task ProPETL, bit for bit.

The task of each batch is drawn with replacement, and so are its rows, out of the rank's share of
the permuted rows of the task.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pemt_jax.data.torch_random import TorchRandom


@dataclasses.dataclass(frozen=True)
class TaskSampler:
  """Draws batches; everything is a function of (seed, epoch).

  Attributes:
    sizes: rows of each task.
    weights: [task] probability of each task, sum 1; see `mixture.shares`.
    batch_size: rows of a batch of one rank.
    seed: epoch e draws with `seed + e` (published: 0).
    ranks: processes, which draw the same tasks and different rows.
    rank: of this process.
  """

  sizes: tuple[int, ...]
  weights: np.ndarray
  batch_size: int
  seed: int = 0
  ranks: int = 1
  rank: int = 0

  @property
  def batches_per_epoch(self) -> int:
    """Batches of an epoch of one rank."""
    return (sum(self.sizes) + self.batch_size - 1) // self.batch_size // self.ranks

  def epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws an epoch.

    Returns:
      [batch] int64 task of each batch, and [batch, batch_size] int64 its rows within the task.
    """
    random, count = TorchRandom(self.seed + epoch), self.batches_per_epoch
    orders = [random.permutation(size) for size in self.sizes]
    own = [order[self.rank:len(order) // self.ranks * self.ranks:self.ranks] for order in orders]
    tasks = random.choices(self.weights, count)
    shares = np.asarray([len(rows) for rows in own])
    places = random.below(shares[tasks][:, None], (count, self.batch_size))
    starts = np.cumsum([0, *shares])[:-1]
    return tasks, np.concatenate(own)[starts[tasks][:, None] + places]

  def rows(self, epoch: int) -> np.ndarray:
    """Rows of the batches of an epoch, counted through all tasks: [batch, batch_size] int64."""
    tasks, rows = self.epoch(epoch)
    return np.cumsum([0, *self.sizes])[:-1][tasks][:, None] + rows
