"""From decoded texts to scores: post-processing of each task, and its metrics together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from pemt_jax.data.tasks_base import Task
from pemt_jax.data.templates import Example
from pemt_jax.errors import UserError
from pemt_jax.evaluation import metrics

AVERAGE = 'average_metrics'

Postprocess = Callable[[Sequence[str], Sequence[Example]], tuple[list[Any], list[Any]]]


def text(predictions: Sequence[str], examples: Sequence[Example]) -> tuple[list[Any], list[Any]]:
  """Compares stripped texts."""
  return [item.strip() for item in predictions], [example.target.strip() for example in examples]


def multirc_groups(predictions: Sequence[str], examples: Sequence[Example]
                   ) -> tuple[list[Any], list[Any]]:
  """Wraps each text with the question it belongs to."""
  given, wanted = text(predictions, examples)
  groups = [example.extra['group'] for example in examples]

  def wrap(values: Sequence[str]) -> list[dict[str, Any]]:
    return [{'group': group, 'value': value} for group, value in zip(groups, values, strict=True)]

  return wrap(given), wrap(wanted)


def all_answers(predictions: Sequence[str], examples: Sequence[Example]
                ) -> tuple[list[Any], list[Any]]:
  """Accepts every gold answer of a row (ReCoRD, few-shot gym)."""
  return [item.strip() for item in predictions], [
      list(example.extra.get('answers') or [example.target]) for example in examples]


def _number(item: str, kind: Callable[[str], Any]) -> Any:
  try:
    return kind(item)
  except ValueError:
    return kind(-1)


def integers(predictions: Sequence[str], examples: Sequence[Example]
             ) -> tuple[list[Any], list[Any]]:
  """Reads whole numbers; any other text is -1."""
  given, wanted = text(predictions, examples)
  return [_number(item, int) for item in given], [_number(item, int) for item in wanted]


def decimals(predictions: Sequence[str], examples: Sequence[Example]
             ) -> tuple[list[Any], list[Any]]:
  """Reads numbers; any other text is -1."""
  given, wanted = text(predictions, examples)
  return [_number(item, float) for item in given], [_number(item, float) for item in wanted]


POSTPROCESS: Mapping[str, Postprocess] = MappingProxyType({
    'text': text, 'multirc_groups': multirc_groups, 'all_answers': all_answers,
    'integers': integers, 'decimals': decimals})


def score(task: Task, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
  """Scores decoded texts with the metrics of a task.

  Args:
    task: the task.
    predictions: decoded text of each example, special tokens skipped.
    examples: the examples in the same order.

  Returns:
    Percent by metric name. `average_metrics`, the figure for model selection, is the mean of the
    values of `task.metrics`; the values of `task.reported` stand beside it and do not enter.

  Raises:
    UserError: no examples, or another number of predictions than examples.
  """
  if len(predictions) != len(examples):
    raise UserError(f"task '{task.name}' has {len(examples)} examples but {len(predictions)} "
                    'predictions; give one prediction for each example.')
  if not examples:
    raise UserError(f"task '{task.name}' has no examples to score; give a split that has rows.")
  given, wanted = POSTPROCESS[task.postprocess](predictions, examples)
  values: dict[str, float] = {}
  for name in task.metrics:
    values |= metrics.get_metric(name)(given, wanted)
  values[AVERAGE] = float(np.mean(list(values.values())))
  for name in task.reported:
    values |= _over_labels(name, task.label_words, given, wanted)
  return values


def _over_labels(name: str, words: tuple[str, ...], given: Sequence[str], wanted: Sequence[str]
                 ) -> dict[str, float]:
  """Applies a metric that needs the label words or class numbers of the task."""
  if name == 'mean_multiclass_f1':
    numbers = {word: number for number, word in enumerate(words)}
    return metrics.mean_multiclass_f1([numbers.get(item, len(words)) for item in given],
                                      [numbers[item] for item in wanted], len(words))
  if name == 'f1_score_with_invalid':
    return metrics.f1_score_with_invalid(given, wanted, words)
  return metrics.get_metric(name)(given, wanted)
