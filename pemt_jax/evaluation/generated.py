"""Metrics of generated text: summaries, translations, tagged spans, copied answers.

Each is a function (predictions, targets) -> name -> percent, as those of `metrics`. Spans and tags
are separated by ` $$ `.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

import numpy as np

from pemt_jax.data.templates_propetl import SEPARATOR
from pemt_jax.evaluation import metrics

ROUGE_TYPES = ('rouge1', 'rouge2', 'rougeL', 'rougeLsum')
_BOOTSTRAP_SEED = 42


def bleu(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
  """Returns the corpus BLEU of SacreBLEU with its defaults, one reference per prediction."""
  import sacrebleu
  return {'bleu': float(sacrebleu.corpus_bleu(list(predictions), [list(targets)]).score)}


def sentences(text: str) -> list[str]:
  """Returns the sentences of a text by the untrained Punkt rules of NLTK, which need no data."""
  from nltk.tokenize import punkt
  return punkt.PunktSentenceTokenizer().tokenize(text)


def rouge(predictions: Sequence[str], targets: Sequence[str],
          split: Callable[[str], Sequence[str]] = sentences) -> dict[str, float]:
  """Returns mean ROUGE F values with stemming: rouge1, rouge2, rougeL and rougeLsum.

  Args:
    predictions: texts.
    targets: texts.
    split: text -> sentences, for rougeLsum.
  """
  scores = _rouge_scores(predictions, targets, split)
  return {name: 100.0 * float(np.mean([score[name].fmeasure for score in scores]))
          for name in ROUGE_TYPES}


def rouge_bootstrap(predictions: Sequence[str], targets: Sequence[str],
                    split: Callable[[str], Sequence[str]] = sentences) -> dict[str, float]:
  """Returns the published form of `rouge`: the median over 1000 resampled sets of rows.

  The resampling has a seed of its own here (not in original: it draws from NumPy's global state).
  """
  from rouge_score import scoring
  aggregator = scoring.BootstrapAggregator()
  for score in _rouge_scores(predictions, targets, split):
    aggregator.add_scores(score)
  with _global_seed(_BOOTSTRAP_SEED):
    found = aggregator.aggregate()
  return {name: 100.0 * float(found[name].mid.fmeasure) for name in ROUGE_TYPES}


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
  """Seeds NumPy's global generator, from which the library draws, and puts it back."""
  state = np.random.get_state()
  np.random.seed(seed)
  try:
    yield
  finally:
    np.random.set_state(state)


def _rouge_scores(predictions, targets, split):
  """`rouge_score` values of each row by type."""
  from rouge_score import rouge_scorer
  scorer = rouge_scorer.RougeScorer(ROUGE_TYPES, use_stemmer=True)
  lines = lambda text: '\n'.join(split(text))
  return [scorer.score(lines(target), lines(text))
          for text, target in zip(predictions, targets, strict=True)]


def _overlap(given: Sequence[str], wanted: Sequence[str]) -> float:
  """F1 of two bags."""
  shared = sum((collections.Counter(given) & collections.Counter(wanted)).values())
  return 2.0 * shared / (len(given) + len(wanted)) if shared else 0.0


def _in_order(given: Sequence[str], wanted: Sequence[str]) -> float:
  """Share of wanted items that stand at their place."""
  return sum(a == b for a, b in zip(given, wanted)) / len(wanted)


def _same(given: Sequence[str], wanted: Sequence[str]) -> float:
  return float(list(given) == list(wanted))


def _mean(predictions: Sequence[str], targets: Sequence[str], name: str, separator: str,
          compare: Callable[[Sequence[str], Sequence[str]], float]) -> dict[str, float]:
  """Percent: mean over rows of a comparison of their parts."""
  values = [compare(text.split(separator), target.split(separator))
            for text, target in zip(predictions, targets, strict=True)]
  return {name: 100.0 * float(np.mean(values))}


def binary_f1(predictions: Sequence[int], targets: Sequence[int]) -> dict[str, float]:
  """Returns the F1 of class 1; a prediction that is no class counts as the other one."""
  return metrics.f1_score_with_invalid(predictions, targets, words=(0, 1))


GENERATED_METRICS: Mapping[str, metrics.Metric] = MappingProxyType({
    'bleu': bleu, 'rouge': rouge, 'rouge_bootstrap': rouge_bootstrap, 'binary_f1': binary_f1,
    'span_f1': functools.partial(_mean, name='f1', separator=SEPARATOR, compare=_overlap),
    'tag_accuracy': functools.partial(
        _mean, name='accuracy', separator=SEPARATOR, compare=_in_order),
    'word_f1': functools.partial(_mean, name='f1', separator=' ', compare=_overlap),
    'word_match': functools.partial(_mean, name='em', separator=' ', compare=_same)})
