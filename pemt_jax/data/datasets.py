"""Loads the examples of a task's split: rows from a source, split rule, few-shot draw, template."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pemt_jax import guards
from pemt_jax.data import gym, gym_files, gym_splits, sources, splits
from pemt_jax.data.data_config import DataConfig, require_split
from pemt_jax.data.tasks import PLAYGROUND_PREFIX, get_task
from pemt_jax.data.tasks_base import SPLITS, Task
from pemt_jax.data.templates import (
    Example, Row, label_index, structured_field, text_field)
from pemt_jax.errors import UserError

__all__ = ['DataConfig', 'TaskData', 'load_all_splits', 'load_task']


@dataclasses.dataclass(frozen=True)
class TaskData:
  """Examples of one split.

  Attributes:
    task: the task.
    split: 'train', 'validation' or 'test'.
    examples: text-to-text examples in training or scoring order.
    provenance: how they came about: rule, files, counts, seeds; plain JSON values.
  """

  task: Task
  split: str
  examples: Sequence[Example]
  provenance: Mapping[str, Any]


def load_task(name: str, split: str, config: DataConfig) -> TaskData:
  """Loads one split of a task.

  Args:
    name: task name or alias.
    split: 'train', 'validation' or 'test'.
    config: see `DataConfig`.

  Raises:
    UserError: unknown task or split, rows that cannot be found, an empty split, a bad row.
  """
  return _Loader(name, config).load(split)


def load_all_splits(name: str, config: DataConfig,
                    wanted: Sequence[str] = SPLITS) -> dict[str, TaskData]:
  """Loads several splits of a task; rows that two of them share are read once.

  Raises:
    UserError: see `load_task`.
  """
  loader = _Loader(name, config)
  return {split: loader.load(split) for split in wanted}


class _Loader:
  """Reads the splits of one task and keeps the tables it has read."""

  def __init__(self, name: str, config: DataConfig):
    self.config = config.for_task(name)
    self.task = gym.scored(get_task(name), self.config.gym_scores)
    self.template = self.task.template_named(self.config.template)
    self.playground = self.task.name.startswith(PLAYGROUND_PREFIX)
    if self.config.source == 'playground' and not self.playground:
      raise UserError(f"task '{self.task.name}' is not part of the playground; choose a name that "
                      f"starts with {PLAYGROUND_PREFIX}, or another data.source.")
    if self.config.source == 'crossfit' and self.task.gym is None:
      raise UserError(f"task '{self.task.name}' is not part of the few-shot gym; choose a name "
                      f'that starts with {gym.GYM_PREFIX}, or another data.source.')
    self._tables: dict[tuple[bool, str], sources.RowTable] = {}

  def load(self, split: str) -> TaskData:
    """Loads one split; see `load_task`."""
    require_split(split, 'the run')
    config = self.config
    if self._drawn_by_gym(split):
      return self._load_gym(split)
    plan = self._plan(split)
    table = self._table(split, plan.read)
    self._require_rows(split, plan, table)
    indices = splits.split_indices(plan, len(table.rows), config.data_seed)
    shots = config.shots(self.task) if split == 'train' else None
    if shots is not None:
      indices = self._few_shot(plan, table, shots)
    limit = config.row_limit(self.task, split)
    drops = config.compat_splits or config.compat_drop_last
    if drops and limit is None and shots is None and self._rule(split) != 'file':
      indices = indices[:-1]
    indices = splits.limit_indices(indices, plan, limit, config.data_seed)
    examples = [example for index in indices for example in self._examples(table, int(index))]
    examples = self._finished(split, examples, f'{len(table.rows)} rows of {table.origin}')
    return TaskData(self.task, split, examples, {
        'task': self.task.name, 'split': split, 'source': self._source(split),
        'rule': self._rule(split), 'part': plan.part, 'files': [table.origin],
        'rows_read': len(table.rows), 'rows_chosen': len(indices), 'examples': len(examples),
        'data_seed': config.data_seed, 'few_shot': shots, 'row_limit': limit,
        'few_shot_seed': None if shots is None else self._few_shot_seed(),
        'template': config.template, 'notes': self._notes(split, plan, shots)}
        | {name: True for name in ('compat_splits', 'compat_drop_last') if getattr(config, name)})

  def _finished(self, split: str, examples: list[Example], rows: str) -> list[Example]:
    if not examples:
      raise UserError(f"split '{split}' of task '{self.task.name}' has no example left out of "
                      f'{rows}; give it rows with labels.')
    config = self.config
    if split != 'train' and config.compat_misaligned_labels:
      examples = gym.misaligned(examples)
    return [gym.dressed(example, config.lowercase, config.extra_bos) for example in examples]

  def _drawn_by_gym(self, split: str) -> bool:
    published = self.config.split_rule == 'published' or self.config.source == 'crossfit'
    return self.task.gym is not None and published and split not in self.config.files

  def _load_gym(self, split: str) -> TaskData:
    config, task, seed = self.config, self.task, self._few_shot_seed()
    shots = config.shots(task)
    if config.source == 'crossfit':
      examples, part = self._whole(split), 'pre-built'
      if shots is not None and split == 'train':
        examples = gym_splits.draw(task, examples, shots, seed)[0]
    else:
      rule = gym_splits.GymSplits(task, shots, seed, config.data_seed, config.gym_test,
                                  dict(config.split_names))
      examples, part = rule.examples(split, self._whole)
    limit = config.row_limit(task, split)
    files = [table.origin for table in self._tables.values()]
    examples = self._finished(split, examples[:limit], f"the rows of {', '.join(files)}")
    return TaskData(task, split, examples, {
        'task': task.name, 'split': split, 'source': config.source, 'rule': 'few-shot gym',
        'part': part, 'files': files, 'examples': len(examples), 'data_seed': config.data_seed,
        'few_shot': shots, 'row_limit': limit, 'few_shot_seed': None if shots is None else seed,
        'template': config.template, 'notes': []})

  def _whole(self, read: str) -> list[Example]:
    """All examples of a data set split in order."""
    table = self._table(read, read)
    return [example for i in range(len(table.rows)) for example in self._examples(table, i)]

  def _plan(self, split: str) -> splits.SplitPlan:
    config, rule = self.config, self._rule(split)
    if rule == 'file':
      return splits.SplitPlan(split, 'all', config.validation_rows)
    plan = splits.plan_split(self.task, split, rule, config.validation_rows)
    if config.compat_splits and plan.part == 'rest':
      plan = dataclasses.replace(plan, part='all')
    base = {'all': split, 'head': 'train', 'rest': 'train'}.get(plan.part, 'validation')
    own = self.task.tfds_splits if config.source == 'tfds' else {}
    read = 'train' if self._from_file(split) else config.split_names.get(
        base, own.get(base, plan.read))
    return dataclasses.replace(plan, read=read)

  def _rule(self, split: str) -> str:
    """Returns the rule that is applied: a given file stands as it is, unless train is to be cut."""
    if split in self.config.files and not (split == 'train' and self._cuts_given_train()):
      return 'file'
    published = self.config.split_rule == 'published'
    return 'natural' if self.playground and published else self.config.split_rule

  def _cuts_given_train(self) -> bool:
    files = self.config.files
    return (self.config.split_rule == 'first_n_of_train' and 'train' in files
            and 'validation' not in files)

  def _from_file(self, split: str) -> bool:
    return split in self.config.files or (split == 'validation' and self._cuts_given_train())

  def _table(self, split: str, read: str) -> sources.RowTable:
    key = (self._from_file(split), read)
    if key not in self._tables:
      table = self._read(*key)
      if self.task.prepare is not None and self.config.source != 'crossfit':
        with guards.reading(table.origin):
          table = dataclasses.replace(table, rows=self.task.prepare(table.rows))
      self._tables[key] = table
    return self._tables[key]

  def _read(self, from_file: bool, read: str) -> sources.RowTable:
    config, task = self.config, self.task
    if from_file:
      return sources.read_file(config.files[read])
    if self.playground:
      from pemt_jax.data import playground
      rows = playground.rows(task.name, read, config.data_seed)
      return sources.RowTable(rows, f'{task.name}, split {read}')
    if config.source == 'crossfit':
      return gym_files.read_prebuilt(gym.title_of(task.name), read, config.root, config.prefix,
                                     self._few_shot_seed(), config.train_on_validation)
    if config.source == 'hf':
      return sources.read_hf(task, read)
    if config.source == 'tfds':
      return sources.read_tfds(task, read, config.root)
    return sources.read_local(task, read, config.root)

  def _source(self, split: str) -> str:
    if self._from_file(split):
      return 'file'
    return 'playground' if self.playground else self.config.source

  def _require_rows(self, split: str, plan: splits.SplitPlan, table: sources.RowTable) -> None:
    count = len(table.rows)
    if not count:
      raise UserError(f"split '{split}' of task '{self.task.name}' has no rows in {table.origin}; "
                      'fill it or choose another data.split_rule.')
    if plan.part in ('head', 'rest') and count <= plan.validation_rows:
      raise UserError(f"task '{self.task.name}': split rule '{self._rule(split)}' takes "
                      f'{plan.validation_rows} validation rows out of the {count} rows of '
                      f'{table.origin}; lower data.validation_rows or set '
                      "data.split_rule='natural'.")
    if plan.part in ('first_half', 'second_half') and count < 2:
      raise UserError(f"task '{self.task.name}': split rule '{self._rule(split)}' halves "
                      f"{table.origin}, which has one row; set data.split_rule='natural'.")

  def _few_shot_seed(self) -> int:
    given = self.config.few_shot_seed
    return self.config.data_seed if given is None else given

  def _few_shot(self, plan: splits.SplitPlan, table: sources.RowTable, shots: int) -> np.ndarray:
    count, config = len(table.rows), self.config
    barred: Sequence[int] = ()
    if plan.part == 'rest' and config.few_shot_exclude_validation:
      head = dataclasses.replace(plan, part='head')
      barred = splits.split_indices(head, count, config.data_seed)
    with guards.reading(table.origin):
      drawn = splits.few_shot_indices(
          self._labels(table), count, shots, self._few_shot_seed(), barred,
          config.few_shot_give_up_after)
    return np.asarray(drawn, np.int64)

  def _labels(self, table: sources.RowTable) -> list[Any] | None:
    field = self.task.few_shot_label
    if field is None:
      return None
    labels = []
    for i, row in enumerate(table.rows):
      name = 'target' if _is_text_pair(row) else field
      if row.get(name) is None:
        raise UserError(f"{table.place(i)}: field '{name}' is missing; fix the row or remove it.")
      labels.append(row[name])
    return labels

  def _examples(self, table: sources.RowTable, index: int) -> list[Example]:
    row = table.rows[index]
    with table.reading(index):
      return [_text_pair(self.task, row)] if _is_text_pair(row) else self.template(row)

  def _notes(self, split: str, plan: splits.SplitPlan, shots: int | None) -> list[str]:
    notes = []
    if plan.part == 'rest' and shots is not None and not self.config.few_shot_exclude_validation:
      notes.append('few-shot rows may be validation rows')
    if split == 'validation' and plan.part == 'head' and self.config.compat_splits:
      notes.append('validation rows are train rows too')
    if split != 'train' and plan.part == 'all':
      other = 'validation' if split == 'test' else 'test'
      twin = self._plan(other)
      same_table = (twin.read, self._from_file(other)) == (plan.read, self._from_file(split))
      if twin.part == 'all' and same_table:
        notes.append('validation and test hold the same rows')
    return notes


def _is_text_pair(row: Row) -> bool:
  return 'source' in row and 'target' in row


def _text_pair(task: Task, row: Row) -> Example:
  """Returns the example of a row that already has the columns `source` and `target`."""
  target = text_field(row, 'target')
  if task.label_words:
    target = task.label_words[label_index(row, 'target', task.label_words)]
  extra = {name: structured_field(row, name) for name in row
           if name not in ('source', 'target') and row[name] is not None}
  return Example(text_field(row, 'source'), target, extra)
