"""Metrics over decoded texts, each a function (predictions, targets) -> name -> percent.

Texts that are not among the expected words count as wrong, never as missing.
"""

from __future__ import annotations

import collections
import functools
import re
import string
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from pemt_jax.errors import UserError

Metric = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]

_PUNCTUATION = str.maketrans('', '', string.punctuation)


def accuracy(predictions: Sequence[Any], targets: Sequence[Any]) -> dict[str, float]:
  """Returns the percentage of predictions equal to their targets."""
  from sklearn import metrics
  return {'accuracy': 100.0 * float(metrics.accuracy_score(targets, predictions))}


def matthews_corrcoef(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
  """Returns 100 times Matthews' correlation; a text that is no label word is a class of its own."""
  from sklearn import metrics
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', UserWarning)  # One class on both sides gives 0, by definition.
    value = metrics.matthews_corrcoef(targets, predictions)
  return {'matthews_correlation': 100.0 * float(value)}


def pearson_corrcoef(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
  """Returns 100 times Pearson's correlation of numbers given as text; see `_numbers`."""
  from scipy import stats
  return {'pearson': _percent_correlation(stats.pearsonr, predictions, targets)}


def spearman_corrcoef(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
  """Returns 100 times Spearman's rank correlation of numbers given as text; see `_numbers`."""
  from scipy import stats
  return {'spearmanr': _percent_correlation(stats.spearmanr, predictions, targets)}


def _percent_correlation(correlate: Callable[..., Any], predictions: Sequence[str],
                         targets: Sequence[str]) -> float:
  """Returns 100 times a correlation, 0 where it is undefined (fewer than two rows, no spread)."""
  given, wanted = _numbers(predictions), _numbers(targets)
  if len(given) < 2 or np.ptp(given) == 0 or np.ptp(wanted) == 0:
    return 0.0
  return 100.0 * float(np.nan_to_num(correlate(wanted, given)[0], nan=0.0))


def _numbers(texts: Sequence[str]) -> np.ndarray:
  """Returns texts as finite numbers; a text that is none becomes -1."""
  def number(text: str) -> float:
    try:
      value = float(text)
    except ValueError:
      return -1.0
    return value if np.isfinite(value) else -1.0
  return np.asarray([number(text) for text in texts], np.float64)


def f1_score_with_invalid(predictions: Sequence[str], targets: Sequence[str],
                          words: tuple[str, str] = ('False', 'True')) -> dict[str, float]:
  """Returns the F1 of the positive class; any other text counts as the opposite of its target.

  Args:
    predictions: texts.
    targets: texts out of `words`.
    words: the negative and the positive label word.
  """
  from sklearn import metrics
  wanted = np.asarray([target == words[1] for target in targets])
  given = np.asarray([words.index(text) == 1 if text in words else not positive
                      for text, positive in zip(predictions, wanted, strict=True)])
  return {'f1': 100.0 * float(metrics.f1_score(wanted, given, zero_division=0.0))}


def mean_multiclass_f1(predictions: Sequence[int], targets: Sequence[int], classes: int
                       ) -> dict[str, float]:
  """Returns the unweighted mean of the F1 of each class.

  Args:
    predictions: class numbers; others (a text that names no class) match no class.
    targets: class numbers, 0 to `classes` - 1.
    classes: number of classes.
  """
  from sklearn import metrics
  score = metrics.f1_score(targets, predictions, labels=list(range(classes)), average='macro',
                           zero_division=0.0)
  return {'f1_multiclass': 100.0 * float(score)}


def squad(predictions: Sequence[str], targets: Sequence[str | Sequence[str]]) -> dict[str, float]:
  """Returns exact match and token F1 after normalisation, the best over the references of each row.

  Args:
    predictions: texts.
    targets: one reference text, or several, for each prediction.
  """
  references = [[target] if isinstance(target, str) else list(target) for target in targets]
  exact, overlap = [], []
  for text, texts in zip(predictions, references, strict=True):
    exact.append(max(_normalise(text) == _normalise(reference) for reference in texts))
    overlap.append(max(_token_f1(text, reference) for reference in texts))
  return {'em': 100.0 * float(np.mean(exact)), 'f1': 100.0 * float(np.mean(overlap))}


def _normalise(text: str) -> str:
  """Returns text in lower case without punctuation, articles and repeated white space."""
  text = re.sub(r'\b(a|an|the)\b', ' ', text.lower().translate(_PUNCTUATION))
  return ' '.join(text.split())


def _token_f1(text: str, reference: str) -> float:
  given, wanted = _normalise(text).split(), _normalise(reference).split()
  shared = sum((collections.Counter(given) & collections.Counter(wanted)).values())
  if not shared:
    return 0.0
  precision, recall = shared / len(given), shared / len(wanted)
  return 2 * precision * recall / (precision + recall)


def exact_match(predictions: Sequence[Any], targets: Sequence[Any]) -> dict[str, float]:
  """Returns 100 if every prediction equals its target, else 0."""
  return {'em': 100.0 * float(list(predictions) == list(targets))}


def mean_group_metric(metric: Metric) -> Metric:
  """Makes the mean of `metric` over groups of rows.

  The rows of the result's arguments are mappings with `group` and `value`.
  """
  def grouped(predictions: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]
              ) -> dict[str, float]:
    groups: dict[Any, list[tuple[Any, Any]]] = {}
    for given, wanted in zip(predictions, targets, strict=True):
      groups.setdefault(wanted['group'], []).append((given['value'], wanted['value']))
    scores = [metric(*zip(*pairs, strict=True)) for pairs in groups.values()]
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
  return grouped


def multirc_f1_over_all_answers(predictions: Sequence[Mapping[str, Any]],
                                targets: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Returns the F1 of 'True' over all answers of all questions."""
  return f1_score_with_invalid([row['value'] for row in predictions],
                               [row['value'] for row in targets])


METRICS: Mapping[str, Metric] = MappingProxyType({
    'accuracy': accuracy,
    'matthews_corrcoef': matthews_corrcoef,
    'pearson_corrcoef': pearson_corrcoef,
    'spearman_corrcoef': spearman_corrcoef,
    'f1_score_with_invalid': f1_score_with_invalid,
    'squad': squad,
    'exact_match': exact_match,
    'multirc_f1_over_all_answers': multirc_f1_over_all_answers,
    'multirc_exact_match': mean_group_metric(exact_match)})


def get_metric(name: str) -> Metric:
  """Returns a metric by name; `mean_multiclass_f1(3)` and `mean_group_metric(accuracy)` too.

  Raises:
    UserError: there is no such metric.
  """
  # They are built on this module.
  from pemt_jax.evaluation.answers import ANSWER_METRICS
  from pemt_jax.evaluation.generated import GENERATED_METRICS
  known = {**ANSWER_METRICS, **GENERATED_METRICS, **METRICS}
  if name in known:
    return known[name]
  call = re.fullmatch(r'(\w+)\((\w+)\)', name)
  if call and call[1] == 'mean_multiclass_f1' and call[2].isdigit():
    return functools.partial(mean_multiclass_f1, classes=int(call[2]))
  if call and call[1] == 'mean_group_metric' and call[2] in METRICS:
    return mean_group_metric(METRICS[call[2]])
  raise UserError(f"there is no metric '{name}'; the names are {', '.join(known)}, "
                  'mean_multiclass_f1(<classes>) and mean_group_metric(<metric>).')
