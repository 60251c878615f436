"""Rows of the replicas: which replicas a config asks for, their examples, tokens and batches."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ml_collections as mlc
import numpy as np

from pemt_jax.data import pipeline
from pemt_jax.data.answers import draw_answers
from pemt_jax.data.datasets import TaskData, load_task
from pemt_jax.data.mixture import MixedTasks, Mixing
from pemt_jax.data.packing import RowForm, aligned, pack_rows
from pemt_jax.data.tasks import PLAYGROUND_PREFIX, get_task
from pemt_jax.data.templates import Example
from pemt_jax.data.tokenizer import Tokenizer
from pemt_jax.errors import UserError, number, one_of
from pemt_jax.methods.language_modelling import NAME, is_language
from pemt_jax.stages.config import data_config, for_task
from pemt_jax.stages.starts import start_folder
from pemt_jax.training.waiting import announced


MIXTURE = 'mixture'  # name of a replica that trains on all tasks
TOGETHER = ('all', 'task', 'none')
_COUNTS = ('batch_size', 'eval_batch_size', 'max_source_length', 'max_target_length', 'lookahead',
           'buckets', 'target_buckets')


@dataclasses.dataclass(frozen=True)
class ReplicaSpec:
  """What one replica trains on.

  Attributes:
    name: unique; a folder name.
    task: canonical task name.
    seed: of initialisation, dropout and data order.
    learning_rate: peak rate, or None for the config's.
    start: folder of the expert that it starts from, or None.
    config: the config with the task's differences applied.
    parts: the tasks that it mixes, as replicas of their own; () if it trains on one task. `task` is
      then the first of them, and `task_ids` of its batches count the parts.
  """

  name: str
  task: str
  seed: int
  learning_rate: float | None
  start: pathlib.Path | None
  config: mlc.ConfigDict
  parts: tuple[ReplicaSpec, ...] = ()

  @property
  def tasks(self) -> tuple[str, ...]:
    """Tasks that it trains on, in the order of their ids."""
    return tuple(part.task for part in self.parts) or (self.task,)


def replica_specs(config: mlc.ConfigDict) -> tuple[ReplicaSpec, ...]:
  """Returns task x start x seed x learning rate x batch size; names carry only what differs.

  Plain text counts as one task.

  Raises:
    UserError: no task, an unknown task, a start that is no expert, a replica that is given twice,
      a number out of its range.
  """
  if is_language(config.stage):
    found = _specs_of(config, NAME)
    _check(found)
    return tuple(found)
  if not config.tasks:
    raise UserError('the config names no task; set config.tasks to task names.')
  tasks = [_task_name(name) for name in config.tasks]
  if len(set(tasks)) < len(tasks):
    raise UserError(f"config.tasks names a task twice: {', '.join(tasks)}; list each once.")
  specs = [_specs_of(config, task) for task in tasks]
  if config.mixture.sampling:
    found = _mixtures(config, specs)
  else:
    found = list(itertools.chain.from_iterable(specs))
  _check(found)
  return tuple(found)


def _specs_of(config: mlc.ConfigDict, task: str) -> list[ReplicaSpec]:
  """Replicas of one task."""
  rates, own, specs = tuple(config.learning_rates) or (None,), for_task(config, task), []
  starts = [(pathlib.Path(start).name, start_folder(start, task))
            for start in config.starts] or [('', None)]
  sizes = tuple(config.batch_sizes) or (None,)
  for (label, start), seed, rate, rows in itertools.product(starts, config.seeds, rates, sizes):
    name = task.replace('/', '-')
    name += f'-from-{label}' if len(starts) > 1 else ''
    name += f'-seed{seed}' if len(config.seeds) > 1 else ''
    name += f'-lr{rate:g}' if len(rates) > 1 else ''
    name += f'-rows{rows}' if len(sizes) > 1 else ''
    specs.append(ReplicaSpec(name, task, seed, rate, start, _with_rows(own, rows)))
  return specs


def _with_rows(config: mlc.ConfigDict, rows: int | None) -> mlc.ConfigDict:
  """The config with a batch size; itself where that is None."""
  if rows is None:
    return config
  changed = copy.deepcopy(config)
  changed.data.batch_size = rows
  return changed


def _mixtures(config: mlc.ConfigDict, specs: list[list[ReplicaSpec]]) -> list[ReplicaSpec]:
  """Replicas that train on all tasks; each has one of every task's replicas as parts."""
  mixing_of(config)
  one_of('config.mixture.average', config.mixture.average, ('tasks', 'values'))
  found, sizes = [], tuple(config.batch_sizes) or (None,)
  for number, parts in enumerate(zip(*specs, strict=True)):
    for part in parts:
      if part.config.train != config.train:
        raise UserError(f'per_task.{part.task} changes train, which the tasks of a mixture share;'
                        ' let it change data only.')
    first = parts[0]
    name = MIXTURE + first.name.removeprefix(first.task.replace('/', '-'))
    own = _with_rows(config, sizes[number % len(sizes)])
    found.append(dataclasses.replace(first, name=name, config=own, parts=parts))
  return found


def programs_of(config: mlc.ConfigDict,
                specs: Iterable[ReplicaSpec]) -> dict[str, list[ReplicaSpec]]:
  """Returns which replicas train in one program, as `config.together` says.

  Returns:
    Name of the program -> its replicas. A program has the name of its task or of its replica, and
    '' where it has all of them.

  Raises:
    UserError: an unknown word.
  """
  one_of('config.together', config.together, TOGETHER)
  found: dict[str, list[ReplicaSpec]] = {}
  for spec in specs:
    own = MIXTURE if spec.parts else spec.task.replace('/', '-')
    name = {'all': '', 'task': own, 'none': spec.name}[config.together]
    found.setdefault(name, []).append(spec)
  return found


def mixing_of(config: mlc.ConfigDict) -> Mixing:
  """How the tasks of a mixture come together.

  Raises:
    UserError: a word that is not known.
  """
  mixture = config.mixture
  return Mixing(mixture.sampling, mixture.temperature, mixture.batches, mixture.seed,
                mixture.episodes)


def _check(specs: Sequence[ReplicaSpec]) -> None:
  names = [spec.name for spec in specs]
  for spec in specs:
    number('config.seeds', spec.seed, spec.seed >= 0, 'of at least 0')
    if names.count(spec.name) > 1:
      raise UserError(f"two replicas are called '{spec.name}'; list each seed of config.seeds,"
                      ' each rate of config.learning_rates and each expert of config.starts once.')
    for field in _COUNTS:
      value = spec.config.data[field]
      least = min(value, default=1) if isinstance(value, tuple) else value
      number(f'config.data.{field}', value, least >= 1, 'of at least 1')
    for field in ('packed_length', 'packed_target_length'):
      value = spec.config.data[field]
      number(f'config.data.{field}', value, value >= 0, 'of at least 0')
    rows, parts = spec.config.data.batch_size, spec.config.train.accumulate
    if rows % parts:
      raise UserError(f'config.train.accumulate is {parts}, which does not divide a batch of {rows}'
                      ' rows; choose a divisor of config.data.batch_size.')


def _task_name(name: str) -> str:
  try:
    return get_task(name).name
  except UserError:
    if ',' not in name or name.startswith(PLAYGROUND_PREFIX):
      raise
    names = ', '.join(f"'{part.strip()}'" for part in name.split(','))
    raise UserError(f"config.tasks holds '{name}' as one task; write --config.tasks=\"({names})\""
                    ' for several.') from None


class RowStore:
  """Loads and tokenizes each (task, split, seed) once.

  Attributes:
    tokenizer: text to ids.
    cache_dir: folder of token caches.
    reader: (task data, data fields, cache folder) -> rows, where they are not text to text.
    front: positions that packed rows keep free in front of each input, for a prompt.
  """

  def __init__(self, tokenizer: Tokenizer, cache_dir: str | pathlib.Path,
               reader: Callable[..., pipeline.BatchSource] | None = None, front: int = 0):
    self.tokenizer = tokenizer
    self.cache_dir = cache_dir
    self.reader = reader
    self.front = front
    self._packed: dict[str, pipeline.BatchSource] = {}
    self._data: dict[Any, TaskData] = {}
    self._tokens: dict[Any, pipeline.BatchSource] = {}

  def _key(self, spec: ReplicaSpec, split: str) -> tuple[Any, ...]:
    # The draws of a gym task have validation rows of their own; they share the test rows.
    drawn = split == 'train' or split == 'validation' and get_task(spec.task).gym is not None
    return spec.task, split, spec.seed if drawn and spec.config.few_shot_by_seed else None

  def examples(self, spec: ReplicaSpec, split: str) -> TaskData:
    """Examples of a split; those of all parts of a mixture, under the first task.

    Raises:
      UserError: see `data.datasets.load_task`.
    """
    if spec.parts:
      each = [self.examples(part, split) for part in spec.parts]
      return dataclasses.replace(
          each[0], examples=[example for own in each for example in own.examples],
          provenance={part.task: own.provenance
                      for part, own in zip(spec.parts, each, strict=True)})
    key = self._key(spec, split)
    if key not in self._data:
      with announced(f"rows of '{spec.task}', split {split}"):
        self._data[key] = load_task(spec.task, split, data_config(spec.config, spec.seed))
    return self._data[key]

  def tokens(self, spec: ReplicaSpec, split: str) -> pipeline.BatchSource:
    """Tokenized examples of a split of one task."""
    key = self._key(spec, split)
    if key not in self._tokens:
      data, fields = self.examples(spec, split), spec.config.data
      if self.reader is not None:
        self._tokens[key] = self.reader(data, fields, fields.cache_dir or self.cache_dir)
        return self._tokens[key]
      self._tokens[key] = pipeline.tokenize_examples(
          data.examples, self.tokenizer, max_source_length=fields.max_source_length,
          max_target_length=data.task.target_tokens or fields.max_target_length,
          cache_dir=fields.cache_dir or self.cache_dir)
    return self._tokens[key]

  def references(self, spec: ReplicaSpec, split: str) -> Sequence[Example]:
    """Examples of one task as they are scored."""
    examples = self.examples(spec, split).examples
    if not spec.config.data.compat_truncated_targets or self.reader is not None:
      return examples
    targets, decode = self.tokens(spec, split).targets, self.tokenizer.decode_batch
    texts = decode([targets.row(i) for i in range(len(examples))])
    return [dataclasses.replace(example, target=text)
            for example, text in zip(examples, texts, strict=True)]

  def _train_rows(self, spec: ReplicaSpec) -> pipeline.BatchSource:
    packing = spec.config.data.packing
    if spec.parts:
      parts = [self._train_rows(part) for part in spec.parts]
      parts = aligned(parts) if packing else parts
      return MixedTasks.of(parts, mixing_of(spec.config), spec.seed, spec.name)
    if self.reader is not None:
      return self.tokens(spec, 'train')
    cache = spec.config.data.cache_dir or self.cache_dir
    rows = draw_answers(self.tokens(spec, 'train'), self.examples(spec, 'train').examples,
                        self.tokenizer, spec.seed, cache)
    return self._pack(rows, spec) if packing else rows

  def _pack(self, rows: pipeline.BatchSource, spec: ReplicaSpec) -> pipeline.BatchSource:
    if spec.name not in self._packed:
      fields = spec.config.data
      length = fields.packed_length or fields.max_source_length + self.front
      form = RowForm(self.front, length, fields.packed_target_length)
      self._packed[spec.name] = pack_rows(rows, form, spec.seed, spec.name)
    return self._packed[spec.name]

  def stream(self, spec: ReplicaSpec) -> pipeline.Stream:
    """Training batches of a replica; they depend on its name and seed only."""
    rows = self._train_rows(spec)
    return pipeline.Stream(rows, self._stream_config(rows, spec))

  @staticmethod
  def _stream_config(rows: pipeline.BatchSource, spec: ReplicaSpec) -> pipeline.StreamConfig:
    config = stream_config(spec)
    if not spec.config.data.packing:
      return config
    return dataclasses.replace(config, buckets=None, target_buckets=[int(min(rows.target_lengths))])

  def steps_per_epoch(self, spec: ReplicaSpec) -> int:
    """Updates per pass over the training rows; see `data.mixture` for an epoch of several tasks."""
    if spec.parts or spec.config.data.packing:
      rows = self._train_rows(spec)
      return pipeline.order_of(rows, self._stream_config(rows, spec))[1].steps_per_epoch
    return pipeline.steps_per_epoch(len(self.tokens(spec, 'train')), spec.config.data.batch_size)

  def eval_batches(self, spec: ReplicaSpec, split: str) -> list[pipeline.Batch]:
    """Evaluation batches, long rows first; task by task where there are several."""
    fields = spec.config.data
    if spec.parts:
      return [batch | {'task_ids': np.full_like(batch['task_ids'], number)}
              for number, part in enumerate(spec.parts)
              for batch in self.eval_batches(part, split)]
    return list(pipeline.eval_batches(
        self.tokens(spec, split), fields.eval_batch_size, list(fields.buckets) or None,
        list(fields.target_buckets) or None))


def stream_config(spec: ReplicaSpec) -> pipeline.StreamConfig:
  """Settings of a replica's stream."""
  fields = spec.config.data
  return pipeline.StreamConfig(
      batch_size=fields.batch_size, seed=spec.seed, name=spec.name,
      buckets=list(fields.buckets) or None, target_buckets=list(fields.target_buckets) or None,
      lookahead=fields.lookahead)
