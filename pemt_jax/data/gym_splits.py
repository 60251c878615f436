"""Splits of a gym task: its pool, its test part, few-shot draws, halves for full data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from pemt_jax.data import gym
from pemt_jax.data.splits import randperm
from pemt_jax.data.tasks_base import Task
from pemt_jax.data.templates import Example

GYM_TESTS = ('gym', 'official')
Read = Callable[[str], Sequence[Example]]


@dataclasses.dataclass(frozen=True)
class GymSplits:
  """How the splits of a gym task are made.

  With `shots`, train and validation are drawn from the pool and test is the gym's test part.
  Without, train is the whole pool, and the permuted test part is halved into validation and test.

  Attributes:
    task: a task with a `gym` rule.
    shots: rows of train and of validation, for each label where the task has labels; None: all.
    seed: of the few-shot draw.
    half_seed: of the permutation that is halved.
    test: 'gym', or 'official': the data set's own labelled test split where it has one, with the
      whole test part for validation on full data; the second half of the test part elsewhere.
    names: 'train' or 'test' -> data set split that the pool or the test part is read from.
  """

  task: Task
  shots: int | None
  seed: int
  half_seed: int
  test: str
  names: dict[str, str]

  def examples(self, split: str, read: Read) -> tuple[list[Example], str]:
    """Returns the examples of a split, and in a few words which part of what it is.

    Args:
      split: 'train', 'validation' or 'test'.
      read: data set split -> all of its examples in order.
    """
    official = self.task.gym.official_test if self.test == 'official' else None
    if split == 'test' and official:
      return list(read(official)), 'official test'
    if split == 'train' or self.shots is not None and split == 'validation':
      return self._from_pool(split, read)
    pool_split, test_split = self._split('train'), self._split('test')
    shared = self.task.gym.test in ('last_share', 'next_rows')
    rows = read(pool_split if shared else test_split)
    order = gym.pool_and_test(self.task.gym, len(rows), None if shared else len(rows))[1]
    part = [rows[i] for i in order]
    whole = official if split == 'validation' else self.shots is not None and self.test == 'gym'
    if whole:
      return part, 'test part of the gym'
    half, order = len(part) // 2, randperm(len(part), self.half_seed)
    chosen = order[:half] if split == 'validation' else order[half:]
    return [part[i] for i in chosen], f"{'first' if split == 'validation' else 'second'} half"

  def _split(self, split: str) -> str:
    return self.names.get(split, self.task.splits[split])

  def _from_pool(self, split: str, read: Read) -> tuple[list[Example], str]:
    rows = read(self._split('train'))
    pool = [rows[i] for i in gym.pool_and_test(self.task.gym, len(rows), 0)[0]]
    if self.shots is None:
      return pool, 'pool'
    drawn = draw(self.task, pool, self.shots, self.seed)
    return drawn[0 if split == 'train' else 1], 'few-shot draw'


def draw(task: Task, pool: Sequence[Example], shots: int, seed: int
         ) -> tuple[list[Example], list[Example]]:
  """Draws (train, validation) examples from a pool; labels are first answers."""
  labels = [example.extra['answers'][0] for example in pool]
  chosen = gym.few_shot_rows(task.gym.kind, labels, shots, seed)
  return tuple([pool[i] for i in rows] for rows in chosen)
