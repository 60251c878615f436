"""Paired comparisons of measurements that share their replicas."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Paired:
  """One column against another over the replicas that both have.

  Attributes:
    difference: mean of first minus second.
    interval: confidence interval of the difference; None below three pairs.
    p: two-sided p value of the paired t-test.
    count: number of pairs, at least two.
  """

  difference: float
  interval: tuple[float, float] | None
  p: float
  count: int


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
  """Confidence interval of a mean by Student's t.

  Args:
    values: repetitions, taken as a sample of a normal distribution.
    level: chance of missing the true mean, in (0, 1); 0.05 gives the 95 % interval.

  Returns:
    (low, high), or None below three values or where one is not finite.
  """
  if len(values) < 3 or not all(map(math.isfinite, values)):
    return None
  from scipy import stats

  mean = statistics.fmean(values)
  reach = float(stats.t.ppf(1 - level / 2, len(values) - 1)) * (
      statistics.stdev(values) / math.sqrt(len(values)))
  return mean - reach, mean + reach


def paired(first: Mapping[str, float], second: Mapping[str, float]) -> Paired | None:
  """Compares two columns by a paired t-test (scipy.stats.ttest_rel).

  Args:
    first, second: value by name of the replica; names that only one has are left out.

  Returns:
    The comparison, or None with fewer than two pairs or a value that is not finite. Differences
    that are all equal but for rounding have no spread to test against: p is 1 where they are 0 and
    0 elsewhere.
  """
  names = [name for name in first if name in second]
  differences = [first[name] - second[name] for name in names]
  if len(names) < 2 or not all(map(math.isfinite, differences)):
    return None
  mean = statistics.fmean(differences)
  rounding = 1e-12 * max(abs(one[name]) for one in (first, second) for name in names)
  if max(differences) - min(differences) <= rounding:
    return Paired(mean, interval(differences), float(abs(mean) <= rounding), len(names))
  from scipy import stats

  test = stats.ttest_rel([first[name] for name in names], [second[name] for name in names])
  return Paired(mean, interval(differences), float(test.pvalue), len(names))
