"""Tables: mean and spread over replicas, nothing dropped in silence."""

from __future__ import annotations

import json
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from pemt_jax.reports import tables
from pemt_jax.reports.tables import Cell, Record


@hypothesis.given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9))
def test_cell_holds_mean_and_sample_deviation(values):
  cell = tables.cell_of(values)
  assert cell.count == len(values)
  np.testing.assert_allclose(cell.mean, np.mean(values), rtol=1e-9, atol=1e-6)
  np.testing.assert_allclose(cell.spread, np.std(values, ddof=1), rtol=1e-6, atol=1e-6)


def test_one_repetition_has_no_spread_and_a_failed_one_stays_visible():
  assert tables.cell_of([3.0]) == Cell(3.0, None, 1)
  failed = tables.cell_of([3.0, math.nan])
  assert math.isnan(failed.mean) and math.isnan(failed.spread)
  assert tables.cell_text(failed) == 'nan ± nan'


def _records(**changes):
  values = {('rte', 'pemt'): (60.0, 62.0), ('cb', 'pemt'): (80.0, 90.0), ('rte', 'prompt'): (51.0,),
            **changes}
  return [Record(task, method, value, 'accuracy', str(seed))
          for (task, method), listed in values.items() for seed, value in enumerate(listed)]


def test_table_is_task_by_method_with_a_mean_over_complete_columns():
  table, = tables.tables_of(_records())
  assert (table.title, table.rows, table.columns) == (
      'accuracy', ('rte', 'cb', 'mean'), ('pemt', 'prompt'))
  assert table.cells['rte', 'pemt'].mean == 61.0
  mean = table.cells['mean', 'pemt']
  assert (mean.mean, mean.count) == (73.0, 2)
  assert mean.spread == pytest.approx(np.std([70.0, 76.0], ddof=1))
  assert ('mean', 'prompt') not in table.cells


def test_mean_over_tasks_with_different_replicas_has_no_spread():
  table, = tables.tables_of(_records(**{}) + [Record('cb', 'pemt', 70.0, 'accuracy', 'extra')])
  assert table.cells['mean', 'pemt'] == Cell(70.5, None, 2)


def test_mean_over_tasks_pairs_replicas_by_their_seed():
  records = [Record(task, 'pemt', value + seed, 'accuracy', f'{task}-seed{seed}')
             for task, value in (('rte', 60.0), ('cb', 80.0)) for seed in (0, 1)]
  table, = tables.tables_of(records)
  assert table.values['mean', 'pemt'] == {'-seed0': 70.0, '-seed1': 71.0}
  assert table.cells['mean', 'pemt'].count == 2


# Method b is 2 below a on average. With replicas that move together the difference is sure, with
# the same numbers in another order it is not.
TOGETHER, CROSSED = (8.0, 18.1, 27.9, 38.2), (38.2, 8.0, 27.9, 18.1)


@pytest.mark.parametrize('other, mark', [(TOGETHER, None), (CROSSED, tables.LIKE_BEST)])
def test_marks_follow_the_pairing(other, mark):
  records = [Record('rte', method, value, 'accuracy', f'seed{i}')
             for method, values in (('a', (10.0, 20.0, 30.0, 40.0)), ('b', other))
             for i, value in enumerate(values)]
  table, = tables.tables_of(records)
  marks = tables.marks_of(table)
  assert marks == {('rte', 'a'): tables.BEST} | ({('rte', 'b'): mark} if mark else {})
  text = tables.to_markdown(table, marked=True)
  assert '**25.00 ± 12.91** |' in text and (f'± 12.96 {tables.LIKE_SIGN} |' in text) == bool(mark)
  assert '**' not in tables.to_markdown(table)


def test_a_loss_is_better_where_it_is_smaller():
  table, = tables.tables_of([Record('rte', 'a', 1.0, 'test/loss'),
                             Record('rte', 'b', 2.0, 'test/loss')])
  assert tables.marks_of(table) == {('rte', 'a'): tables.BEST}
  assert tables.lower_is_better('cross_entropy_nats') and not tables.lower_is_better('f1')


def test_no_mark_without_a_choice_or_with_one_pair():
  alone, = tables.tables_of([Record('rte', 'a', 1.0)])
  assert not tables.marks_of(alone)
  failed, = tables.tables_of([Record('rte', 'a', math.nan), Record('rte', 'b', 1.0)])
  assert not tables.marks_of(failed)
  single, = tables.tables_of([Record('rte', 'a', 1.0), Record('rte', 'b', 0.9)])
  assert tables.marks_of(single) == {('rte', 'a'): tables.BEST}


def test_equal_means_are_both_the_best():
  table, = tables.tables_of([Record('rte', 'a', 1.0), Record('rte', 'b', 1.0)])
  assert set(tables.marks_of(table).values()) == {tables.BEST} and len(tables.marks_of(table)) == 2


def test_an_interval_needs_three_repetitions():
  three = tables.cell_of([1.0, 2.0, 3.0]).interval
  assert three == (pytest.approx(-0.484138, abs=1e-5), pytest.approx(4.484138, abs=1e-5))
  assert tables.cell_of([1.0, 2.0]).interval is None


def test_each_metric_has_its_own_table():
  records = [Record('cb', 'pemt', 1.0, 'f1'), Record('cb', 'pemt', 2.0, 'accuracy')]
  assert [table.title for table in tables.tables_of(records)] == ['f1', 'accuracy']


def test_markdown_is_aligned_and_names_gaps():
  table, = tables.tables_of(_records())
  assert tables.to_markdown(table) == (
      '| task |         pemt | prompt |\n'
      '| ---- | -----------: | -----: |\n'
      '| rte  | 61.00 ± 1.41 |  51.00 |\n'
      '| cb   | 85.00 ± 7.07 |      - |\n'
      '| mean | 73.00 ± 4.24 |      - |\n')


def test_a_bar_in_a_name_does_not_break_markdown():
  table, = tables.tables_of([Record('a|b', 'm', 1.0)])
  assert '| a\\|b |' in tables.to_markdown(table)


@pytest.mark.parametrize('cells, digits', [
    ([Cell(150.0, None, 1), Cell(3.0, None, 1)], 0), ([Cell(0.5, None, 1)], 3),
    ([Cell(92.857, None, 1)], 2), ([Cell(1.0, 0.0, 3)], 3), ([Cell(math.nan, None, 1)], 3)])
def test_digits_follow_the_size_of_the_numbers(cells, digits):
  assert tables.digits_for(cells) == digits


def test_json_holds_the_same_cells():
  table, = tables.tables_of(_records())
  data = json.loads(json.dumps(tables.to_json(table)))
  assert data['columns'] == ['pemt', 'prompt']
  assert [row['name'] for row in data['rows']] == ['rte', 'cb', 'mean']
  assert data['rows'][1]['cells'] == {'pemt': {
      'mean': 85.0, 'count': 2, 'spread': pytest.approx(50 ** 0.5), 'interval': None}}
  assert data['rows'][0]['cells']['pemt']['mark'] == tables.BEST
  assert 'mark' not in data['rows'][0]['cells']['prompt']


def test_replicas_that_differ_by_their_seed_share_a_group():
  assert [tables.group_of(name) for name in ('rte-seed0', 'rte-seed12', 'rte', 'a-seed1-b')] == [
      'rte', 'rte', 'rte', 'a-seed1-b']
