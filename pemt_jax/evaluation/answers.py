"""Metrics of the few-shot gym over decoded texts, the best over the accepted answers of each row.

Each is a function (predictions, answers) -> name -> percent; `answers` holds, for each prediction,
its accepted texts. Classification, Matthews' and Pearson's metrics read the first of them.
"""

from __future__ import annotations

import string
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from pemt_jax.evaluation import metrics

Answers = Sequence[Sequence[str]]

_PUNCTUATION = str.maketrans('', '', string.punctuation)


def best_over_answers(compare: Callable[[str, str], float], predictions: Sequence[str],
                      answers: Answers) -> list[float]:
  """Returns for each prediction the greatest `compare(prediction, answer)`."""
  return [max((float(compare(text, answer)) for answer in texts), default=0.0)
          for text, texts in zip(predictions, answers, strict=True)]


def same_letters(text: str, answer: str) -> float:
  """Returns 1 where both texts are equal but for the case of letters, else 0."""
  return float(text.lower() == answer.lower())


def same_words(text: str, answer: str) -> float:
  """Returns 1 where both texts are equal after the normalisation of SQuAD, else 0."""
  return metrics.squad([text], [answer])['em'] / 100.0


def shared_words(text: str, answer: str) -> float:
  """Returns the token F1 of SQuAD, 0 to 1."""
  return metrics.squad([text], [answer])['f1'] / 100.0


def longest_common_words(text: str, answer: str) -> float:
  """Returns the ROUGE-L F value of the package `rouge`, 0 to 1; 0 where a text has no word."""
  import rouge
  if not all(part.translate(_PUNCTUATION).strip() for part in (text, answer)):
    return 0.0
  limit = sys.getrecursionlimit()
  try:
    # The package descends once per word of both texts.
    sys.setrecursionlimit(max(limit, len(text.split()) + len(answer.split()) + 1000))
    scores = rouge.Rouge(metrics=['rouge-l']).get_scores(text, answer)
  finally:
    sys.setrecursionlimit(limit)
  return float(scores[0]['rouge-l']['f'])


def _mean(name: str, compare: Callable[[str, str], float], predictions: Sequence[str],
          answers: Answers) -> dict[str, float]:
  return {name: 100.0 * float(np.mean(best_over_answers(compare, predictions, answers)))}


def answer_accuracy(predictions: Sequence[str], answers: Answers) -> dict[str, float]:
  """Returns the share of predictions equal to an answer, the case of letters aside (ACC)."""
  return _mean('accuracy', same_letters, predictions, answers)


def answer_em(predictions: Sequence[str], answers: Answers) -> dict[str, float]:
  """Returns the share of predictions equal to an answer after normalisation (EM)."""
  return _mean('em', same_words, predictions, answers)


def answer_f1(predictions: Sequence[str], answers: Answers) -> dict[str, float]:
  """Returns the mean token F1 (QA-F1)."""
  return _mean('f1', shared_words, predictions, answers)


def answer_rouge_l(predictions: Sequence[str], answers: Answers) -> dict[str, float]:
  """Returns the mean ROUGE-L (Rouge-L)."""
  return _mean('rouge_l', longest_common_words, predictions, answers)


def _first(answers: Answers) -> list[str]:
  return [texts[0] for texts in answers]


def gold_class_f1(predictions: Sequence[str], answers: Answers) -> dict[str, float]:
  """Returns the mean F1 over the classes that occur among the answers (Classification-F1).

  Classes are exact texts. A prediction that is none of them is wrong for its row and adds no class.
  """
  from sklearn import metrics as sklearn_metrics
  wanted = _first(answers)
  value = sklearn_metrics.f1_score(wanted, list(predictions), labels=sorted(set(wanted)),
                                   average='macro', zero_division=0.0)
  return {'class_f1': 100.0 * float(value)}


def all_class_f1(predictions: Sequence[str], answers: Answers) -> dict[str, float]:
  """Returns the mean F1 over the classes that occur among predictions and first answers.

  Classes are exact texts; each prediction that is no answer of any row adds a class with F1 0.
  """
  from sklearn import metrics as sklearn_metrics
  value = sklearn_metrics.f1_score(_first(answers), list(predictions), average='macro',
                                   zero_division=0.0)
  return {'class_f1': 100.0 * float(value)}


def acceptable_matthews(predictions: Sequence[str], answers: Answers) -> dict[str, float]:
  """Returns 100 times Matthews' correlation of being 'acceptable'; any other text is not."""
  given, wanted = ([str(text == 'acceptable') for text in texts]
                   for texts in (predictions, _first(answers)))
  return metrics.matthews_corrcoef(given, wanted)


def strict_pearson(predictions: Sequence[str], answers: Answers) -> dict[str, float]:
  """Returns 100 times Pearson's correlation; NaN if a prediction is no number."""
  try:
    [float(text) for text in predictions]
  except ValueError:
    return {'pearson': float('nan')}
  return metrics.pearson_corrcoef(predictions, _first(answers))


def lenient_pearson(predictions: Sequence[str], answers: Answers) -> dict[str, float]:
  """Returns 100 times Pearson's correlation; a prediction that is no number counts as 3."""
  return metrics.pearson_corrcoef([_number_or(text, 3.0) for text in predictions], _first(answers))


def _number_or(text: str, other: float) -> float:
  try:
    return float(text)
  except ValueError:
    return other


ANSWER_METRICS: Mapping[str, metrics.Metric] = MappingProxyType({
    'answer_accuracy': answer_accuracy, 'answer_em': answer_em, 'answer_f1': answer_f1,
    'answer_rouge_l': answer_rouge_l, 'gold_class_f1': gold_class_f1,
    'all_class_f1': all_class_f1, 'acceptable_matthews': acceptable_matthews,
    'strict_pearson': strict_pearson, 'lenient_pearson': lenient_pearson})
