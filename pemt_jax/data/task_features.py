"""What tasks have in common, as boolean features: what is stated of them and what rows show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from pemt_jax.data import gym_table
from pemt_jax.data.gym import SENTINEL, targets_of, title_of
from pemt_jax.data.tasks import get_task
from pemt_jax.data.templates import Example

MOST = 0.8         # share of rows from which a feature of rows is one of the task
FEW_TARGETS = 10   # different targets of a task that chooses among a few
_OPTION = re.compile(r'\(A\)')


def ontology(name: str) -> tuple[str, str]:
  """(category, group) of a task: the two levels of the gym's ontology.

  Tasks outside of the gym are 'classification' or 'text' by their label words, and their benchmark
  is the group.
  """
  task = get_task(name)
  entry = gym_table.entries().get(title_of(task.name)) if task.gym else None
  if entry is not None:
    return entry.category, f'{entry.category}: {entry.group}'
  return 'classification' if task.label_words else 'text', task.benchmark


def _stated(name: str) -> set[str]:
  task = get_task(name)
  category, group = ontology(name)
  kind = task.gym.kind if task.gym else ('classification' if task.label_words else 'text')
  drawn = 'rows drawn by label' if kind == 'classification' else 'rows drawn in all'
  return {f'category {category}', f'group {group}', drawn,
          *(f'metric {metric}' for metric in task.metrics)}


def _plain(text: str) -> str:
  return text.replace(SENTINEL, '').strip().lower()


def _shown(examples: Sequence[Example]) -> set[str]:
  """Features that most rows have."""
  targets = [_plain(example.target) for example in examples]
  sources = [_plain(example.source) for example in examples]
  share = {
      'several right answers': [len(targets_of(example)) > 1 for example in examples],
      'target stands in the input': [t in s for s, t in zip(sources, targets, strict=True)],
      'input lists options': [bool(_OPTION.search(example.source)) for example in examples],
      'input has a question mark': ['?' in source for source in sources]}
  found = {name for name, values in share.items() if np.mean(values) >= MOST}
  return found | ({f'at most {FEW_TARGETS} targets'} if len(set(targets)) <= FEW_TARGETS else set())


def _mean_words(texts: Sequence[str]) -> float:
  return float(np.mean([len(text.split()) for text in texts]))


def feature_table(names: Sequence[str], examples: Mapping[str, Sequence[Example]] | None = None,
                  least: int = 1) -> tuple[tuple[str, ...], np.ndarray]:
  """Boolean features that divide the tasks.

  Args:
    names: of the tasks.
    examples: task -> some of its rows; None leaves out what only rows tell. Inputs and targets are
      long where their mean number of words is above the median of the tasks.
    least: tasks that must have a feature, and that must lack it.

  Returns:
    Names of the features in sorted order, and [task, feature] booleans.
  """
  found = [_stated(name) for name in names]
  if examples is not None:
    for own, name in zip(found, names, strict=True):
      own |= _shown(examples[name])
    for what, field in (('input', 'source'), ('target', 'target')):
      words = [_mean_words([getattr(e, field) for e in examples[name]]) for name in names]
      for own, size in zip(found, words, strict=True):
        own |= {f'long {what}'} if size > np.median(words) else set()
  features = sorted(set().union(*found))
  table = np.array([[feature in own for feature in features] for own in found], bool)
  table = table.reshape(len(names), len(features))
  differs = np.minimum(table.sum(axis=0), (~table).sum(axis=0)) >= max(least, 1)
  return tuple(np.array(features)[differs].tolist()), table[:, differs]
