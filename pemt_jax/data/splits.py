"""Split rules, few-shot draws and row limits: everything that chooses row numbers.

All draws are those of the published run: a permutation equal to PyTorch's CPU `randperm`, computed
with NumPy alone, and Python's own shuffle for few-shot rows.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from pemt_jax.data.tasks_base import Task
from pemt_jax.data.torch_random import TorchRandom
from pemt_jax.errors import UserError

SPLIT_RULES = ('published', 'natural', 'first_n_of_train', 'halved_validation', 'halved_or_cut')


@dataclasses.dataclass(frozen=True)
class SplitPlan:
  """Which rows make a split.

  Attributes:
    read: data set split to read.
    part: 'all'; 'first_half' or 'second_half' of the permuted rows; 'head' (the first
      `validation_rows` of the permuted rows) or 'rest' (all others).
    validation_rows: rows that 'head' takes.
  """

  read: str
  part: str
  validation_rows: int


def randperm(count: int, seed: int = 42) -> np.ndarray:
  """Returns the permutation of `torch.randperm(count)` under a CPU generator with this seed.

  Args:
    count: rows.
    seed: generator seed, 0 to 2**32 - 1.

  Returns:
    [count] int64.
  """
  return TorchRandom(seed).permutation(count)


def python_shuffle(count: int, seed: int = 42) -> np.ndarray:
  """Returns `random.seed(seed); random.shuffle(range(count))`.

  Returns:
    [count] int64.
  """
  order = list(range(count))
  random.Random(seed).shuffle(order)
  return np.asarray(order, np.int64)


def plan_split(task: Task, split: str, rule: str, validation_rows: int = 1000) -> SplitPlan:
  """Returns which data set split and which part of it make `split` of `task`.

  Args:
    task: the task.
    split: 'train', 'validation' or 'test'.
    rule: 'published' halves, cuts or maps by the size of the task; 'natural' takes the data set's
      own splits; 'first_n_of_train' cuts validation rows out of train for any task;
      'halved_validation' halves the validation rows of any task; 'halved_or_cut' halves those of
      small tasks and cuts train for all others.
    validation_rows: rows cut out of train where train is cut.

  Raises:
    UserError: unknown rule.
  """
  if rule not in SPLIT_RULES:
    raise UserError(f"data.split_rule '{rule}' is not known; choose one of "
                    f"{', '.join(SPLIT_RULES)}.")
  if rule == 'natural':
    return SplitPlan(task.natural_split(split), 'all', validation_rows)
  small = task.size == 'small'
  halved = rule == 'halved_validation' or rule in ('published', 'halved_or_cut') and small
  if halved and split != 'train':
    part = 'first_half' if split == 'validation' else 'second_half'
    return SplitPlan(task.splits['validation'], part, validation_rows)
  cut = rule == 'first_n_of_train' or rule == 'halved_or_cut' and not small or (
      rule == 'published' and task.size == 'large')
  if cut and split != 'test':
    part = 'head' if split == 'validation' else 'rest'
    return SplitPlan(task.splits['train'], part, validation_rows)
  return SplitPlan(task.splits[split], 'all', validation_rows)


def split_indices(plan: SplitPlan, count: int, seed: int = 42) -> np.ndarray:
  """Returns the row numbers of a split in order.

  Args:
    plan: see `plan_split`.
    count: rows of the data set split that the plan reads.
    seed: seed of the permutation.

  Returns:
    [rows] int64; file order for 'all', permuted order otherwise.
  """
  if plan.part == 'all':
    return np.arange(count, dtype=np.int64)
  order = randperm(count, seed)
  if plan.part in ('first_half', 'second_half'):
    half = count // 2
    return order[:half] if plan.part == 'first_half' else order[half:]
  kept = plan.validation_rows
  return order[:kept] if plan.part == 'head' else order[kept:]


def limit_indices(indices: np.ndarray, plan: SplitPlan, limit: int | None,
                  seed: int = 42) -> np.ndarray:
  """Returns at most `limit` row numbers; rows in file order are permuted before the cut.

  Args:
    indices: [rows] from `split_indices`.
    plan: the plan they come from.
    limit: rows to keep, or None for all in unchanged order.
    seed: seed of the permutation.
  """
  if limit is None:
    return indices
  if plan.part == 'all':
    indices = indices[randperm(len(indices), seed)]
  return indices[:limit]


def few_shot_indices(labels: Sequence[Any] | None, count: int, shots: int, seed: int = 42,
                     exclude: Sequence[int] = (), give_up_after: int | None = None) -> list[int]:
  """Draws few-shot rows: shuffled rows are walked, up to `shots` of each label value are taken.

  Args:
    labels: label of each row; None draws `shots` rows in all.
    count: rows of the train split.
    shots: rows for each label value, or in all.
    seed: seed of the shuffle.
    exclude: row numbers that are passed over (validation rows cut out of train).
    give_up_after: end the walk after this many rows in a row without a label value not met before,
      the published rule with 1000; None walks until all rows are seen.

  Returns:
    Row numbers in the order of the walk.
  """
  barred = frozenset(int(row) for row in exclude)
  walk = [row for row in python_shuffle(count, seed).tolist() if row not in barred]
  if labels is None:
    return walk[:shots]
  taken: dict[Any, int] = {}
  drawn, misses = [], 0
  for row in walk:
    label = labels[row]
    misses = misses + 1 if label in taken else 0
    if give_up_after is not None and misses >= give_up_after:
      break
    if taken.setdefault(label, 0) < shots:
      taken[label] += 1
      drawn.append(row)
  return drawn
