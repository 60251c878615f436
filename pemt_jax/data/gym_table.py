"""What the few-shot gym states about its 160 tasks: shots, metrics, groups, and its eight splits.

Names are the published ones, without the prefix of `gym`. The groups are those of the ontology of
task-level mixtures of experts (Ye et al. 2022, arXiv 2205.12701), the splits those of CrossFit (Ye
et al. 2021, arXiv 2104.08835).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pemt_jax.errors import one_of

SEEDS = (100, 13, 21, 42, 87)  # of the five published draws, in their order
PARTS = ('train', 'dev', 'test')
RANDOM = 'random'              # the split of all 160 tasks
_FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'assets' / 'gym'
# Group of the ontology -> family of `gym.DESCRIPTIONS`; the others have a family by their category.
_FAMILIES: Mapping[str, str] = MappingProxyType({
    'machine reading comprehension': 'machine_reading_comprehension',
    'multiple-choice qa': 'multiple_choice_qa', 'binary': 'binary',
    'long-form qa': 'long_form_qa', 'closed-book qa': 'closed_book_qa',
    'paraphrase': 'paraphrase', 'summarization': 'summarization',
    'linguistic phenomenon': 'linguistics'})


@dataclasses.dataclass(frozen=True)
class GymEntry:
  """A task of the gym.

  Attributes:
    title: published name.
    shots: k of the published draws; 16 for each label, or 32 in all.
    part: 'train', 'dev' or 'test', its place in the random split.
    metric: published name of its metric, a key of `gym.METRIC_NAMES`.
    category: first level of the ontology.
    group: second level.
  """

  title: str
  shots: int
  part: str
  metric: str
  category: str
  group: str

  @property
  def kind(self) -> str:
    """How rows are drawn: 'classification' for each label, or 'text' in all."""
    return 'classification' if self.shots == 16 else 'text'

  @property
  def family(self) -> str:
    """Group of tasks that share a description."""
    other = 'classification' if self.category == 'classification' else 'other'
    return _FAMILIES.get(self.group, other)


@functools.cache
def _read(name: str) -> Any:
  return json.loads((_FOLDER / f'{name}.json').read_text(encoding='utf-8'))


@functools.cache
def entries() -> Mapping[str, GymEntry]:
  """The tasks by title."""
  return MappingProxyType({title: GymEntry(title, *values)
                           for title, values in _read('tasks').items()})


def words_of(title: str) -> tuple[str, ...]:
  """Label words in class order of the tasks that have many of them."""
  return tuple(_read('words')[title])


def partition_names() -> tuple[str, ...]:
  """Names of the eight splits."""
  return (RANDOM, *_read('partitions'))


def partition(name: str) -> dict[str, tuple[str, ...]]:
  """Returns a split: 'train', 'dev' and 'test' -> titles in sorted order.

  Raises:
    UserError: no such split.
  """
  one_of('the split of tasks', name, partition_names())
  if name == RANDOM:
    return {part: tuple(sorted(title for title, entry in entries().items() if entry.part == part))
            for part in PARTS}
  return {part: tuple(titles) for part, titles in _read('partitions')[name].items()}
