"""Rows of the replicas: which replicas a config asks for, their examples, tokens and batches."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections as mlc

from pemt_jax.data import pipeline
from pemt_jax.data.answers import draw_answers
from pemt_jax.data.datasets import TaskData, load_task
from pemt_jax.data.tasks import PLAYGROUND_PREFIX, get_task
from pemt_jax.data.tokenizer import Tokenizer
from pemt_jax.errors import UserError, number
from pemt_jax.stages.config import data_config, for_task
from pemt_jax.stages.starts import start_folder


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
  """

  name: str
  task: str
  seed: int
  learning_rate: float | None
  start: pathlib.Path | None
  config: mlc.ConfigDict


def replica_specs(config: mlc.ConfigDict) -> tuple[ReplicaSpec, ...]:
  """Returns task x start x seed x learning rate; names carry only what differs.

  Raises:
    UserError: no task, an unknown task, a start that is no expert, a replica that is given twice,
      a number out of its range.
  """
  if not config.tasks:
    raise UserError('the config names no task; set config.tasks to task names.')
  tasks = [_task_name(name) for name in config.tasks]
  if len(set(tasks)) < len(tasks):
    raise UserError(f"config.tasks names a task twice: {', '.join(tasks)}; list each once.")
  rates = tuple(config.learning_rates) or (None,)
  specs = []
  for task in tasks:
    own = for_task(config, task)
    starts = [start_folder(start, task) for start in config.starts] or [None]
    for start, seed, rate in itertools.product(starts, config.seeds, rates):
      name = task.replace('/', '-')
      name += f'-from-{start.name}' if len(starts) > 1 else ''
      name += f'-seed{seed}' if len(config.seeds) > 1 else ''
      name += f'-lr{rate:g}' if len(rates) > 1 else ''
      specs.append(ReplicaSpec(name, task, seed, rate, start, own))
  _check(specs)
  return tuple(specs)


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
  """

  def __init__(self, tokenizer: Tokenizer, cache_dir: str | pathlib.Path):
    self.tokenizer = tokenizer
    self.cache_dir = cache_dir
    self._data: dict[Any, TaskData] = {}
    self._tokens: dict[Any, pipeline.TokenizedData] = {}

  def _key(self, spec: ReplicaSpec, split: str) -> tuple[Any, ...]:
    seed = spec.seed if split == 'train' and spec.config.few_shot_by_seed else None
    return spec.task, split, seed

  def examples(self, spec: ReplicaSpec, split: str) -> TaskData:
    """Examples of a split.

    Raises:
      UserError: see `data.datasets.load_task`.
    """
    key = self._key(spec, split)
    if key not in self._data:
      self._data[key] = load_task(spec.task, split, data_config(spec.config, spec.seed))
    return self._data[key]

  def tokens(self, spec: ReplicaSpec, split: str) -> pipeline.TokenizedData:
    """Tokenized examples of a split."""
    key = self._key(spec, split)
    if key not in self._tokens:
      data, fields = self.examples(spec, split), spec.config.data
      self._tokens[key] = pipeline.tokenize_examples(
          data.examples, self.tokenizer, max_source_length=fields.max_source_length,
          max_target_length=data.task.target_tokens or fields.max_target_length,
          cache_dir=fields.cache_dir or self.cache_dir)
    return self._tokens[key]

  def stream(self, spec: ReplicaSpec) -> pipeline.Stream:
    """Training batches of a replica; they depend on its name and seed only."""
    data, fields = self.tokens(spec, 'train'), spec.config.data
    rows = draw_answers(data, self.examples(spec, 'train').examples, self.tokenizer, spec.seed,
                        fields.cache_dir or self.cache_dir)
    return pipeline.Stream(rows, stream_config(spec))

  def steps_per_epoch(self, spec: ReplicaSpec) -> int:
    """Updates per pass over the training rows."""
    return pipeline.steps_per_epoch(len(self.tokens(spec, 'train')), spec.config.data.batch_size)

  def eval_batches(self, spec: ReplicaSpec, split: str) -> list[pipeline.Batch]:
    """Evaluation batches, long rows first."""
    fields = spec.config.data
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
