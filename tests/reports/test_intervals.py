"""PNG files of scores and differences."""

from __future__ import annotations

import matplotlib.axes
import numpy as np
import pytest

from pemt_jax.reports import intervals, significance


@pytest.fixture(name='drawn')
def fixture_drawn(monkeypatch):
  """Arguments of all bars, lines and points that are drawn."""
  calls = []
  for name in ('bar', 'hlines', 'scatter'):
    original = getattr(matplotlib.axes.Axes, name)

    def record(self, *args, _name=name, _original=original, **options):
      calls.append((_name, args, options))
      return _original(self, *args, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, name, record)
  return calls


def test_bars_are_means_with_the_interval_of_their_repetitions(drawn, tmp_path):
  values = {('a', 'x/one'): (1.0, 2.0, 6.0), ('b', 'x/one'): (5.0,), ('a', 'two'): (4.0, 4.0, 4.0)}
  intervals.save_bars(values, tmp_path / 'bars.png', 'score')
  assert (tmp_path / 'bars.png').read_bytes().startswith(b'\x89PNG')
  (_, first, options), (_, second, _) = drawn
  np.testing.assert_allclose(first[1], [3.0, 4.0])
  assert second[1][0] == 5.0 and np.isnan(second[1][1])
  low, high = significance.interval((1.0, 2.0, 6.0))
  np.testing.assert_allclose(options['yerr'], [(high - low) / 2, 0.0])
  assert first[0][0] < second[0][0]


def test_differences_lie_between_their_ends_and_show_their_sign(drawn, tmp_path):
  values = {'gain': (2.0, 1.0, 3.0), 'loss': (-2.0, -3.0, -1.0), 'open': (0.5, -1.0, 2.0)}
  intervals.save_intervals(values, tmp_path / 'gains.png', 'points')
  assert (tmp_path / 'gains.png').read_bytes().startswith(b'\x89PNG')
  (_, lines, options), (_, points, _) = drawn
  np.testing.assert_allclose(lines[1:], [[1.0, -3.0, -1.0], [3.0, -1.0, 2.0]])
  np.testing.assert_allclose(points[0], [2.0, -2.0, 0.5])
  assert len(set(options['color'])) == 3
