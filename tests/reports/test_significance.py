"""Paired tests and intervals against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from pemt_jax.reports import significance


def test_interval_of_three_numbers_by_hand():
  # Mean 2, deviation 1, t(0.975, 2) = 4.302653: 2 -+ 4.302653 / sqrt(3).
  low, high = significance.interval([1.0, 2.0, 3.0])
  assert (low, high) == (pytest.approx(2 - 2.484138, abs=1e-5), pytest.approx(2 + 2.484138,
                                                                             abs=1e-5))


@pytest.mark.parametrize('values', [[], [1.0], [1.0, 2.0], [1.0, 2.0, math.nan]])
def test_no_interval_below_three_finite_numbers(values):
  assert significance.interval(values) is None


def test_paired_test_by_hand():
  # Differences 1, 2, 3: t = 2 / (1 / sqrt(3)) = 3.4641 with 2 degrees of freedom, so that
  # p = 1 - t / sqrt(t^2 + 2) = 1 - 3.4641 / sqrt(14) = 0.07418.
  found = significance.paired({'a': 11.0, 'b': 12.0, 'c': 14.0}, {'c': 11.0, 'a': 10.0, 'b': 10.0})
  assert (found.difference, found.count) == (pytest.approx(2.0), 3)
  assert found.p == pytest.approx(0.07418, abs=1e-5)
  assert found.interval[0] == pytest.approx(2 - 2.484138, abs=1e-5)


def test_only_shared_replicas_count():
  first, second = {'a': 1.0, 'b': 2.0, 'x': 90.0}, {'a': 0.0, 'b': 3.0, 'y': 70.0}
  found = significance.paired(first, second)
  assert (found.difference, found.count, found.interval) == (0.0, 2, None)
  assert significance.paired({'a': 1.0, 'x': 2.0}, {'a': 0.0, 'y': 2.0}) is None
  assert significance.paired({'a': 1.0, 'b': math.nan}, {'a': 0.0, 'b': 2.0}) is None


@pytest.mark.parametrize('shift, p', [(0.0, 1.0), (0.5, 0.0)])
def test_equal_differences_need_no_spread(shift, p):
  first = {'a': 1.0, 'b': 2.0, 'c': 4.0}
  found = significance.paired({name: value + shift for name, value in first.items()}, first)
  assert (found.difference, found.p) == (shift, p)


def test_differences_that_rounding_parts_are_equal():
  found = significance.paired({'a': 0.1 + 0.2, 'b': 0.3, 'c': 40.3}, {'a': 0., 'b': 0., 'c': 40.})
  assert found.p == 0.0
  found = significance.paired({'a': 0.1 + 0.2, 'b': 0.3}, {'a': 0.3, 'b': 0.1 + 0.2})
  assert (found.p, found.count) == (1.0, 2)
