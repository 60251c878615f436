"""The data part of a config: where rows come from, how they are split, drawn and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pemt_jax.data import gym, gym_splits, splits
from pemt_jax.data.tasks import get_task
from pemt_jax.data.tasks_base import DEFAULT_TEMPLATE, SPLITS, Task
from pemt_jax.errors import UserError, one_of

SOURCES = ('local', 'hf', 'tfds', 'playground', 'crossfit')


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where rows come from and which of them make a split.

  Attributes:
    root: local folder with `<benchmark>/<task>/<split>.jsonl`, or TFDS data folder.
    source: 'local', 'hf', 'tfds', 'playground', or 'crossfit': folders of `gym_files` below `root`.
    split_rule: one of `splits.SPLIT_RULES`; see `splits.plan_split`.
    validation_rows: rows cut out of train where a rule cuts train.
    compat_splits: the published splits of multi-task ProPETL: train is the whole train split, also
      where validation rows are cut out of it, and every split without a row limit loses its last
      row.
    compat_drop_last: every split without a row limit loses its last row, as in HyperFormer, MPOE.
    data_seed: seed of split permutations and row limits.
    few_shot: train rows for each label value (in all, for tasks without labels); None takes all.
    few_shot_per_class: the same for tasks with labels only, in place of `few_shot`.
    few_shot_seed: seed of the few-shot draw; None takes `data_seed`.
    few_shot_exclude_validation: never draw rows that serve as validation rows; the published draw
      may take them.
    few_shot_give_up_after: end the draw after this many rows without a new label value (published:
      1000); None looks at all rows.
    max_train_rows: row limits, applied after the permutation; None keeps all rows.
    max_validation_rows: see `max_train_rows`.
    max_test_rows: see `max_train_rows`.
    task_row_limits: apply the row limits a task itself states where none is given (Yelp: 100000).
    template: name of the template; see `Task.variants`.
    prefix: pre-built draw to read; '' takes the only one, or the one of the few-shot seed; '*' the
      rows of all draws, for test those of the first.
    train_on_validation: train on the validation rows of pre-built draws too.
    gym_scores: form of the metrics of gym tasks: 'gold_classes', or 'all_classes', where a
      prediction that is no class adds one, and a text that is no number counts as 3.
    gym_test: test rows of gym tasks, 'gym' or 'official'; see `gym_splits.GymSplits`.
    lowercase: write all texts in lower case.
    extra_bos: put `<s> ` in front of all texts.
    compat_misaligned_labels: give validation and test row i the i-th answer of all rows, one after
      the other, as its target, the published behaviour (it changes the loss, not the scores).
    files: split -> file with the task's fields or the columns `source` and `target`.
    split_names: split -> data set split to read in place of the task's own.
    per_task: task name -> fields of this class that differ for that task.
  """

  root: str | None = None
  source: str = 'local'
  split_rule: str = 'published'
  validation_rows: int = 1000
  compat_splits: bool = False
  compat_drop_last: bool = False
  data_seed: int = 42
  few_shot: int | None = None
  few_shot_per_class: int | None = None
  few_shot_seed: int | None = None
  few_shot_exclude_validation: bool = True
  few_shot_give_up_after: int | None = None
  max_train_rows: int | None = None
  max_validation_rows: int | None = None
  max_test_rows: int | None = None
  task_row_limits: bool = True
  template: str = DEFAULT_TEMPLATE
  prefix: str = ''
  gym_test: str = 'gym'
  train_on_validation: bool = False
  gym_scores: str = 'gold_classes'
  lowercase: bool = False
  extra_bos: bool = False
  compat_misaligned_labels: bool = False
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)
  split_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
  per_task: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    """Checks values.

    Raises:
      UserError: a value is out of range.
    """
    if self.source not in SOURCES:
      raise UserError(f"data.source '{self.source}' is not known; choose one of "
                      f"{', '.join(SOURCES)}.")
    if self.split_rule not in splits.SPLIT_RULES:
      raise UserError(f"data.split_rule '{self.split_rule}' is not known; choose one of "
                      f"{', '.join(splits.SPLIT_RULES)}.")
    if self.gym_test not in gym_splits.GYM_TESTS:
      raise UserError(f"data.gym_test '{self.gym_test}' is not known; choose one of "
                      f"{', '.join(gym_splits.GYM_TESTS)}.")
    one_of('data.gym_scores', self.gym_scores, gym.SCORES)
    for name in ('validation_rows', 'few_shot', 'few_shot_per_class', 'max_train_rows',
                 'max_validation_rows', 'max_test_rows', 'few_shot_give_up_after'):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise UserError(f'data.{name} is {value}; give a number of at least 1.')
    for name in ('files', 'split_names'):
      for split in getattr(self, name):
        require_split(split, f'data.{name}')

  @classmethod
  def from_mapping(cls, values: Mapping[str, Any]) -> DataConfig:
    """Makes a config out of a mapping (a ConfigDict too).

    Raises:
      UserError: unknown key.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
      raise UserError(f"data.{unknown[0]} is not a config key; the keys are "
                      f"{', '.join(sorted(known))}.")
    return cls(**{key: values[key] for key in values})

  def for_task(self, name: str) -> DataConfig:
    """Returns the config with the differences of task `name` applied."""
    canonical = get_task(name).name
    changes = [changes for key, changes in self.per_task.items() if get_task(key).name == canonical]
    own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    for change in changes:
      own.update({key: change[key] for key in change})
    return type(self).from_mapping({**own, 'per_task': {}})

  def shots(self, task: Task) -> int | None:
    """Returns the few-shot rows of a task, or None for all rows."""
    labelled = task.gym.kind == 'classification' if task.gym else task.few_shot_label is not None
    if labelled and self.few_shot_per_class is not None:
      return self.few_shot_per_class
    return self.few_shot

  def row_limit(self, task: Task, split: str) -> int | None:
    """Returns the row limit of a split, or None."""
    given = getattr(self, f'max_{split}_rows')
    stated = task.fixed_row_limits.get(split) if self.task_row_limits else None
    return stated if given is None else given


def require_split(split: str, place: str) -> None:
  """Checks the name of a split.

  Raises:
    UserError: it is none of train, validation, test; `place` says where it was given.
  """
  if split not in SPLITS:
    raise UserError(f"{place} names split '{split}'; choose one of {', '.join(SPLITS)}.")
