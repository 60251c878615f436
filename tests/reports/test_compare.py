"""Runs side by side: config differences, shared tasks, seconds, facts."""

from __future__ import annotations

import pytest

from pemt_jax.reports import compare
from pemt_jax.reports.files import Stage


def test_only_fields_that_differ_are_listed():
  configs = {'a': {'seed': 1, 'train': {'rate': 0.1, 'steps': 5}, 'method': {'rank': 8}},
             'b': {'seed': 1, 'train': {'rate': 0.2, 'steps': 5}, 'method': {}}, 'c': None}
  assert compare.differing(configs) == {'method.rank': {'a': 8}, 'train.rate': {'a': 0.1, 'b': 0.2}}
  assert compare.equal_fields(configs) == {'seed': 1, 'train.steps': 5}
  view = compare.differences_view(configs)
  assert view.head == ('field', 'a', 'b')
  assert [[entry.text for entry in row] for row in view.rows] == [
      ['method.rank', '8', compare.UNSET], ['train.rate', '0.1', '0.2']]
  assert view.caption == '2 fields differ, 2 are equal.'


def test_equal_or_absent_configs_have_no_table():
  assert compare.differences_view({'a': {'x': [1, 2]}, 'b': {'x': [1, 2]}}) is None
  assert compare.differences_view({'a': None, 'b': None}) is None
  assert compare.differences_view({}) is None and compare.equal_fields({}) == {}


def test_many_runs_are_rows():
  view = compare.differences_view({f'run{i}': {'seed': i} for i in range(20)})
  assert view.head == ('run', 'seed') and len(view.rows) == 20


def _stage(*replicas, **parts):
  return Stage('', metrics=[{'step': 3, 'replica': name} for name in replicas], **parts)


def test_runs_are_grouped_by_common_tasks():
  runs = {'a': _stage('rte-seed0'), 'b': _stage('qqp'), 'c': _stage('rte-seed1', 'cb-seed0'),
          'd': _stage('cb-seed1'), 'e': Stage('')}
  assert compare.sharing_tasks(runs) == [['a', 'c', 'd'], ['b'], ['e']]


def test_final_metrics_become_records_with_the_selecting_metric_first():
  entry = {'metric': 'f1', 'final_metrics': {'accuracy': 90.0, 'f1': 80.0}}
  runs = {'a': Stage('', result={'replicas': {'rte-seed0': entry}}), 'b': Stage('', result=None)}
  records = compare.score_records(runs)
  assert [(r.task, r.method, r.metric, r.value, r.replica) for r in records] == [
      ('rte', 'a', 'f1', 80.0, 'rte-seed0'), ('rte', 'a', 'accuracy', 90.0, 'rte-seed0')]


def test_seconds_outside_of_the_loop_are_what_is_left():
  times = {'step': 6.0, 'input': 1.0, 'other phase': 0.5}
  runs = {'a': _stage('x', times=times, resources={'seconds': 10.0}),
          'resumed': _stage('x', times=times, resources={'seconds': 2.0}), 'none': _stage('x')}
  seconds = compare.seconds_of(runs)
  assert list(seconds) == ['a', 'resumed']
  assert list(seconds['a'].items()) == [('input', 1.0), ('step', 6.0), ('other phase', 0.5),
                                        ('time outside of the loop', 2.5)]
  assert 'time outside of the loop' not in seconds['resumed']
  view = compare.seconds_view(seconds, runs)
  assert view.head[0] == 'run' and view.head[-2:] == ('all', 'ms per step')
  assert [entry.text for entry in view.rows[0]][-2:] == ['10.0', '2000.0']


def test_facts_say_how_far_a_run_is():
  run = _stage('cb-seed0', 'cb-seed1', config={'stage': 'prompt'}, resources={'seconds': 125.0})
  assert compare.facts(run) == {'stage': 'prompt', 'tasks': '1', 'replicas': '2', 'steps': '3',
                                'state': 'not finished', 'time': '2 min 5 s'}
  run.result = {'replicas': {'cb-seed0': {}, 'cb-seed1': {}}}
  assert compare.facts(run)['state'] == 'finished'
  assert compare.facts(Stage('', result={'records': []})) == {}


@pytest.mark.parametrize('seconds, text', [(None, None), (9.96, '10.0 s'), (60, '1 min 0 s'),
                                           (3600 * 3 + 65, '3 h 1 min')])
def test_duration_in_words(seconds, text):
  assert compare.duration(seconds) == text


def test_bytes_in_words():
  assert [compare.size(count) for count in (None, 2 ** 20, 3 * 2 ** 29)] == [
      None, '1 MiB', '1.5 GiB']
