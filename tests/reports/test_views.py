"""Tables as a page shows them: marks, intervals, captions that say what was tested."""

from __future__ import annotations

import pytest

from pemt_jax.errors import UserError
from pemt_jax.reports import tables, views
from pemt_jax.reports.tables import Record


def _table(**columns):
  table, = tables.tables_of([Record('rte', name, value, 'accuracy', str(seed))
                             for name, values in columns.items()
                             for seed, value in enumerate(values)])
  return table


def test_a_tested_table_shows_marks_intervals_and_says_what_they_mean():
  view = views.of_table(_table(a=(10.0, 20.0, 30.0), b=(9.0, 21.0, 29.0), c=(1.0,)))
  name, *entries = view.rows[0]
  assert (name.text, [entry.mark for entry in entries]) == (
      'rte', [tables.BEST, tables.LIKE_BEST, ''])
  assert entries[0].text == '20.00 ± 10.00' and entries[0].below == '[-4.84, 44.84]'
  assert entries[2].below == ''
  for words in ('Bold: best', 'p ≥ 0.05', 'not tested', '± sample', '95 %'):
    assert words in view.caption, words


def test_captions_promise_no_test_that_was_not_made():
  one_each = views.of_table(_table(a=(1.0,), b=(2.0,)))
  assert 'nothing is tested' in one_each.caption and 'p ≥' not in one_each.caption
  all_tested = views.of_table(_table(a=(1.0, 2.0), b=(2.0, 2.5)))
  assert 'p ≥ 0.05' in all_tested.caption and 'not tested' not in all_tested.caption
  assert '95 %' not in all_tested.caption
  assert views.of_table(_table(a=(1.0,))).caption == ''


def test_differences_are_those_to_the_best_column():
  view = views.differences(_table(a=(11.0, 12.0, 14.0), b=(10.0, 10.0, 11.0), c=(0.0,)))
  (row,) = view.rows
  assert [entry.text for entry in row] == [
      'rte', 'a', 'b', '-2.00', '[-4.48, +0.48]', '0.074', '3']
  assert views.differences(_table(a=(1.0,), b=(2.0,))) is None


def test_a_study_table_is_shown_as_it_is():
  entry = {'title': 'Gates', 'corner': 'target', 'columns': ['right', 'share'], 'caption': 'Text.',
           'rows': [{'name': 'one', 'cells': {'right': '9 of 10', 'share': 0.25}},
                    {'name': 'two', 'cells': {'right': 3}}]}
  (title, view), = views.study_tables({'tables': [entry]}, 's')
  assert (title, view.head, view.caption) == ('Gates', ('target', 'right', 'share'), 'Text.')
  assert [[e.text for e in row] for row in view.rows] == [['one', '9 of 10', '0.25'],
                                                          ['two', '3', '-']]
  assert views.to_markdown(view).startswith('| target |   right | share |\n')


@pytest.mark.parametrize('entry', [3, {}, {'title': 'a', 'columns': 3, 'rows': []},
                                   {'title': 'a', 'columns': ['x'], 'rows': [{'name': 'y'}]}])
def test_a_study_table_of_another_form_is_named(entry):
  with pytest.raises(UserError, match=r"^An entry of 'tables' in result\.json of stage 's' does"):
    views.study_tables({'tables': [entry]}, 's')


@pytest.mark.parametrize('value, text', [(None, '-'), (1.0, '1'), (1e-08, '1e-08'), ([], '(empty)'),
                                         ([1, 'a'], '1, a'), ('', "''"), (True, 'True')])
def test_values_as_text(value, text):
  assert views.plain_text(value) == text
