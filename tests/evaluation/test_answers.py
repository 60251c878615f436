"""Laws of the metrics over several accepted answers."""

from __future__ import annotations

import math

import hypothesis
import hypothesis.strategies as st
import pytest

from pemt_jax.evaluation import answers
from pemt_jax.evaluation.metrics import METRICS, get_metric

TEXTS = st.text(st.sampled_from('ab the.,! é'), max_size=12)
ROWS = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=6)
BEST = ('answer_accuracy', 'answer_em', 'answer_f1', 'answer_rouge_l')


def test_names_are_new_and_can_be_looked_up():
  assert not set(answers.ANSWER_METRICS) & set(METRICS)
  for name, metric in answers.ANSWER_METRICS.items():
    assert get_metric(name) is metric


@hypothesis.given(ROWS)
def test_more_answers_never_lower_a_score_and_their_order_does_not_matter(rows):
  predictions, accepted = zip(*rows)
  for name in BEST:
    metric = get_metric(name)
    value, = metric(predictions, accepted).values()
    assert 0 <= value <= 100
    turned, = metric(predictions, [texts[::-1] for texts in accepted]).values()
    more, = metric(predictions, [[*texts, 'b a'] for texts in accepted]).values()
    assert turned == value and more >= value - 1e-9


@pytest.mark.parametrize('text, answer, values', [
    ('The U.S.', 'us', (0, 100, 100, 0)), ('YES', 'yes', (100, 100, 100, 0)),
    ('...', '...', (100, 100, 0, 0)), ('red blue', 'red green', (0, 0, 50, 50)),
    ('', 'a', (0, 100, 0, 0))])
def test_each_metric_has_its_own_equality(text, answer, values):
  found = [next(iter(get_metric(name)([text], [[answer]]).values())) for name in BEST]
  assert found == pytest.approx(values, abs=1e-5)


def test_long_texts_have_a_rouge_value():
  text = ' '.join(f'w{i}' for i in range(1500))
  assert answers.answer_rouge_l([text], [[text]])['rouge_l'] == pytest.approx(100, abs=1e-5)


def test_only_gold_classes_count():
  wanted = [['x'], ['x'], ['y']]
  assert answers.gold_class_f1(['x', 'x', 'y'], wanted) == {'class_f1': 100.0}
  assert answers.gold_class_f1(['x', 'odd', 'y'], wanted)['class_f1'] == pytest.approx(
      100 * (2 / 3 + 1) / 2)


def test_whatever_is_not_acceptable_is_unacceptable():
  wanted = [['acceptable'], ['unacceptable'], ['unacceptable']]
  found = answers.acceptable_matthews(['acceptable', 'junk', 'unacceptable'], wanted)
  assert found == {'matthews_correlation': pytest.approx(100)}


def test_a_text_that_is_no_number_leaves_pearson_undefined():
  assert answers.strict_pearson(['1', '3'], [['2'], ['4']])['pearson'] == pytest.approx(100)
  assert math.isnan(answers.strict_pearson(['1', 'x'], [['2'], ['4']])['pearson'])
