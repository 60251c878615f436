"""Laws of the metrics of generated text."""

from __future__ import annotations

import numpy as np
import pytest

from pemt_jax.evaluation import generated
from pemt_jax.evaluation.metrics import get_metric

TEXTS = ['the cat sat. the dog ran.', 'a fox', 'PER: A $$ LOC: B']


@pytest.mark.parametrize('name', sorted(set(generated.GENERATED_METRICS) - {'binary_f1'}))
def test_equal_texts_score_full_and_others_nothing(name):
  long = [f'{text} with some more words' for text in TEXTS]
  assert all(value == pytest.approx(100) for value in get_metric(name)(long, long).values())
  other = get_metric(name)(['nothing'] * 3, long)
  assert all(value == pytest.approx(0) for value in other.values())


def test_resampled_rouge_is_near_the_mean_and_leaves_the_global_generator_alone():
  targets = [' '.join(f'w{i % n}' for i in range(8)) for n in range(1, 31)]
  given = [' '.join(f'w{i % 5}' for i in range(8))] * 30
  np.random.seed(7)
  expected = np.random.rand()
  np.random.seed(7)
  first = generated.rouge_bootstrap(given, targets)
  assert np.random.rand() == expected
  assert first == generated.rouge_bootstrap(given, targets)
  mean = generated.rouge(given, targets)
  assert first != mean and first == pytest.approx(mean, abs=1.0)


def test_sentences_matter_for_the_summary_level_only():
  given, target = ['the dog ran. the cat sat.'], ['the cat sat. the dog ran.']
  whole = generated.rouge(given, target, split=lambda text: [text])
  split = generated.rouge(given, target)
  assert split['rougeLsum'] == pytest.approx(100) and whole['rougeLsum'] < 100
  assert {name: split[name] for name in ('rouge1', 'rouge2', 'rougeL')} == {
      name: whole[name] for name in ('rouge1', 'rouge2', 'rougeL')}


def test_bags_and_places():
  metric = generated.GENERATED_METRICS
  assert metric['span_f1'](['B $$ A'], ['A $$ B'])['f1'] == pytest.approx(100)
  assert metric['tag_accuracy'](['B $$ A'], ['A $$ B'])['accuracy'] == 0
  assert metric['word_f1'](['the red car'], ['red car'])['f1'] == pytest.approx(80)
  assert metric['word_match'](['red  car'], ['red car'])['em'] == 0
  assert generated.binary_f1([1, 7, 0], [1, 1, 0]) == {'f1': pytest.approx(200 / 3)}
