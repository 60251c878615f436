"""Tables of few-shot tuning: best rows, summaries, relative gains, files."""

from __future__ import annotations

import math

import pytest

from pemt_jax.errors import UserError
from pemt_jax.reports import few_shot

ROWS = [('a_16_13', 1e-5, 2, 0.5, 0.1), ('a_16_13', 2e-5, 2, 0.75, 0.25),
        ('a_16_13', 5e-5, 2, 0.75, 0.9), ('a_16_42', 1e-5, 2, math.nan, 0.2),
        ('a_16_42', 2e-5, 2, 0.25, 0.75)]


def _write(folder, scores):
  for title, score in scores.items():
    place = folder / title
    place.mkdir(parents=True)
    rows = [('p_1', 1e-5, 2, 0.5, score), ('p_2', 1e-5, 2, 0.5, score + 0.2)]
    few_shot.result_table(rows).to_csv(place / few_shot.RESULT, index=False)
  return folder


def test_the_first_best_row_of_each_sample_stands_behind_it():
  table = few_shot.result_table(ROWS)
  assert list(table['prefix']) == ['a_16_13'] * 3 + ['a_16_13_best'] + ['a_16_42'] * 2 + [
      'a_16_42_best']
  best = few_shot.best_rows(table)
  assert best['lr'].tolist() == [2e-5, 2e-5]
  assert best['test_performance'].tolist() == [0.25, 0.75]


def test_a_summary_has_mean_spread_and_an_empty_row():
  summary = few_shot.summary_of({'a': few_shot.result_table(ROWS)})
  assert summary['entry'].tolist()[:4] == ['a_16_13', 'a_16_42', 'mean', 'std']
  assert summary['test_performance'].tolist()[2:4] == [0.5, 0.25]
  assert summary.iloc[4].isna().all()


def test_folders_become_files(tmp_path):
  first = _write(tmp_path / 'first', {'singletask-b': 0.2, 'a': 0.4, 'only_here': 0.1})
  second = _write(tmp_path / 'second', {'b': 0.5, 'a': 0.3})
  few_shot.write_summary(first, tmp_path / 'out')
  for reference in (first, tmp_path / 'out' / 'summary.csv'):
    text = few_shot.write_summary(second, tmp_path / 'out2', reference)
    # b: from 0.3 to 0.6, a: from 0.5 to 0.4.
    assert text.endswith('Average relative gain over 2 tasks: +40.00 %\n')
  assert (tmp_path / 'out2' / 'comparison.csv').read_text().splitlines()[0] == (
      ',task,test_performance_1,test_performance_2,diff,rg')
  assert '| a | 0.5000 | 0.4000 | 0.1000 |' in text


def test_a_gain_over_nothing_does_not_count():
  first, second = (few_shot.summary_of({
      name: few_shot.result_table([('p', 1e-5, 2, 0.5, score)]) for name, score in scores.items()})
      for scores in ({'a': 0.0, 'b': 0.5}, {'a': 0.5, 'b': 0.75}))
  assert few_shot.relative_gain(first, second)[1] == 0.5


def test_mistakes_are_named(tmp_path):
  with pytest.raises(UserError, match='give the folder of a few-shot run'):
    few_shot.read_results(tmp_path)
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / few_shot.RESULT).write_text('x,y\n1,2\n')
  with pytest.raises(UserError, match='has the columns x, y; it needs prefix, lr'):
    few_shot.read_results(tmp_path)
  with pytest.raises(UserError, match='there is no summary'):
    few_shot.read_summary(tmp_path / 'none.csv')
  summaries = [few_shot.summary_of({task: few_shot.result_table(ROWS)}) for task in 'ab']
  with pytest.raises(UserError, match='share no task'):
    few_shot.relative_gain(*summaries)
