"""Learning curves: the numbers behind the lines, and what is drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from pemt_jax.reports import curves


def test_curves_are_sorted_by_metric_and_replica():
  lines = [{'step': 1, 'replica': 'a', 'loss': 3.0}, {'step': 1, 'replica': 'b', 'loss': 4.0},
           {'step': 2, 'replica': 'a', 'loss': 2, 'note': 'text', 'flag': True},
           {'step': 2, 'x': 0}]
  found = curves.curves_of(lines)
  assert set(found) == {'loss', 'x'} and set(found['x']) == {''}
  np.testing.assert_array_equal(found['loss']['a'], [[1, 3], [2, 2]])


def test_mean_and_spread_at_every_step():
  lines = [np.array([[0, 1], [2, 5]]), np.array([[0, 3]]), np.array([[0, 2], [2, 7], [4, 9]])]
  steps, means, spreads = curves.mean_curve(lines)
  np.testing.assert_array_equal(steps, [0, 2, 4])
  np.testing.assert_array_equal(means, [2, 6, 9])
  np.testing.assert_allclose(spreads, [1, 2 ** 0.5, np.nan])


def test_long_curves_are_thinned_and_keep_their_mean():
  line = np.stack([np.arange(5000), np.random.default_rng(0).normal(size=5000)], axis=1)
  steps, means, _ = curves.mean_curve([line])
  assert len(steps) == 200 and means.mean() == pytest.approx(line[:, 1].mean(), abs=1e-9)


def test_replicas_of_a_task_share_a_panel():
  lines = {name: np.ones((2, 2)) for name in ('cb-seed0', 'rte-seed0', 'cb-seed1')}
  assert {task: len(found) for task, found in curves.by_task(lines).items()} == {'cb': 2, 'rte': 1}


def test_training_loss_and_selecting_metric_come_first():
  names = ['train/loss', 'train/learning_rate', 'validation/f1', 'validation/accuracy',
           'validation/loss', 'train/tokens_per_second', 'train/sparsity_loss']
  assert curves.main_metrics(names, 'accuracy') == [
      'train/loss', 'validation/loss', 'validation/accuracy']
  assert curves.main_metrics(names)[-1] == 'validation/f1'
  assert curves.main_metrics(['train/x']) == []


def _runs(count, tasks, seeds):
  steps = np.arange(1, 8)
  return {f'run {i}': {f'task{t}-seed{s}': np.stack([steps, (1 + s + i) / steps], axis=1)
                       for t in range(tasks) for s in range(seeds)} for i in range(count)}


@pytest.mark.parametrize('count, tasks, seeds', [(1, 1, 1), (2, 3, 1), (12, 5, 10), (2, 40, 1)])
def test_every_number_of_panels_comes_out(count, tasks, seeds):
  runs = _runs(count, tasks, seeds)
  text = curves.draw_tasks(runs, dict.fromkeys(runs, '#112233'), 'loss <a&b>')
  root = ElementTree.fromstring(text)
  assert root.get('aria-label') == 'loss <a&b> against the step, one panel per task'
  words = [element.text for element in root.iter() if element.tag.endswith('}text')]
  assert sum(word.startswith('task') for word in words) == min(tasks, curves.PANELS)
  assert {run for run in runs if run in words} == (set(runs) if count > 1 else set())


def test_runs_of_one_colour_have_lines_of_their_own():
  runs = _runs(3, 1, 1)
  same = curves.draw_tasks(runs, dict.fromkeys(runs, '#112233'), 'x')
  other = curves.draw_tasks(runs, dict(zip(runs, ('#112233', '#112234', '#112235'))), 'x')
  assert 'stroke-dasharray' in same and 'stroke-dasharray' not in other


def test_metrics_have_a_panel_each():
  text = curves.draw_metrics({'a': {'x': np.ones((1, 2))}, 'b': {'x': np.ones((3, 2))}}, '#112233')
  assert ElementTree.fromstring(text).get('role') == 'img' and '>a<' in text and '>b<' in text
