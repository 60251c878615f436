"""Laws of the metrics; the golden case holds the figures of the published code."""

from __future__ import annotations

import json

import hypothesis
import hypothesis.strategies as st
import pytest

from pemt_jax.errors import UserError
from pemt_jax.evaluation import metrics, parity_data

WORDS = st.lists(st.sampled_from(['True', 'False', 'junk']), min_size=1, max_size=30)


def test_golden_metrics_and_text_forms(golden_root):
  folder = golden_root / 'pemt' / 'metrics'
  kind, made = parity_data.compute(folder)
  wanted = json.loads((folder / 'outputs.json').read_text(encoding='utf-8'))
  assert kind == 'json' and made.keys() == wanted.keys()
  for name in ('pad_punctuation', 'round_stsb_target'):
    assert made[name] == wanted[name]
  assert len(made['rows']) == len(wanted['rows'])
  for given, expected in zip(made['rows'], wanted['rows'], strict=True):
    assert given == pytest.approx(expected, abs=1e-9)
    assert given.keys() == expected.keys()


@hypothesis.given(WORDS, st.randoms(use_true_random=False))
def test_perfect_predictions_score_a_hundred_and_order_does_not_matter(targets, order):
  assert metrics.accuracy(targets, targets) == {'accuracy': 100.0}
  pairs = list(zip([*targets[1:], 'True'], targets, strict=True))
  shuffled = order.sample(pairs, len(pairs))
  for metric in (metrics.accuracy, metrics.matthews_corrcoef, metrics.squad):
    plain, mixed = metric(*zip(*pairs, strict=True)), metric(*zip(*shuffled, strict=True))
    assert plain == pytest.approx(mixed, abs=1e-9)


def test_invalid_text_counts_as_the_opposite_of_its_target():
  targets = ['True', 'False', 'True']
  junk = metrics.f1_score_with_invalid(['junk', 'junk', 'True'], targets)
  assert junk == metrics.f1_score_with_invalid(['False', 'True', 'True'], targets) == {'f1': 50.0}


def test_class_means_give_a_class_without_rows_zero():
  assert metrics.mean_multiclass_f1([0, 1], [0, 1], classes=2) == {'f1_multiclass': 100.0}
  assert metrics.mean_multiclass_f1([0, 1], [0, 1], classes=4) == {'f1_multiclass': 50.0}


@pytest.mark.parametrize('predictions', [['1.0'], ['2', '2', '2'], ['x', 'nan', 'inf']])
def test_undefined_correlations_are_zero(predictions):
  targets = [str(i) for i in range(len(predictions))]
  assert metrics.pearson_corrcoef(predictions, targets) == {'pearson': 0.0}
  assert metrics.spearman_corrcoef(predictions, targets) == {'spearmanr': 0.0}


def test_text_that_is_no_finite_number_counts_as_minus_one():
  targets = ['0', '1', '2', '3']
  wanted = metrics.pearson_corrcoef(['2', '-1', '-1', '5'], targets)
  assert metrics.pearson_corrcoef(['2', 'oops', 'inf', '5'], targets) == wanted != {'pearson': 0.0}


def test_squad_takes_the_best_reference():
  assert metrics.squad(['The  Red, house!'], [['blue', 'red house']]) == {'em': 100.0, 'f1': 100.0}
  assert metrics.squad(['red'], [['blue', 'red house']]) == pytest.approx({'em': 0, 'f1': 200 / 3})
  assert metrics.squad(['the'], ['an']) == {'em': 100.0, 'f1': 0.0}


def test_group_means_weigh_groups_not_rows():
  rows = [{'group': 'a', 'value': 'x'}] * 3 + [{'group': 'b', 'value': 'x'}]
  wrong = [*rows[:3], {'group': 'b', 'value': 'y'}]
  assert metrics.METRICS['multirc_exact_match'](wrong, rows) == {'em': 50.0}


def test_metrics_are_found_by_name_with_arguments():
  assert metrics.get_metric('mean_multiclass_f1(2)')([0, 1], [0, 1]) == {'f1_multiclass': 100.0}
  rows = [{'group': 0, 'value': 'x'}]
  assert metrics.get_metric('mean_group_metric(accuracy)')(rows, rows) == {'accuracy': 100.0}
  with pytest.raises(UserError) as error:
    metrics.get_metric('meteor')
  assert str(error.value).startswith(
      "there is no metric 'meteor'; the names are answer_accuracy, answer_em, answer_f1, ")
  assert str(error.value).endswith(
      'multirc_exact_match, mean_multiclass_f1(<classes>) and mean_group_metric(<metric>).')
