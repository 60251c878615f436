"""Predicted similarity against measured gain: rank correlations, a table and a picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from pemt_jax.reports import pictures


@dataclasses.dataclass(frozen=True)
class Agreement:
  """How well a similarity predicts a gain.

  Attributes:
    pairs: number of source-target pairs.
    spearman: rank correlation over all pairs, in [-1, 1]; positive is right, whatever the sign of
      the metric. NaN where all similarities or all gains are equal.
    spearman_p: two-sided p-value of that, pairs taken as independent.
    kendall: Kendall's tau-b over all pairs.
    kendall_p: its p-value.
    within: mean over targets of Spearman's correlation over the target's sources; NaN where no
      target has sources that differ.
    best_found: share of the targets whose most similar source has the largest gain.
    regret: mean over targets of the largest gain minus the gain of the most similar source.
  """

  pairs: int
  spearman: float
  spearman_p: float
  kendall: float
  kendall_p: float
  within: float
  best_found: float
  regret: float


def agreement(similarity: np.ndarray, gain: np.ndarray, sign: int,
              allowed: np.ndarray) -> Agreement:
  """Compares two matrices [target, source] over the pairs that are allowed.

  Args:
    similarity: as its metric gives it.
    gain: measured gains.
    sign: 1 where a larger similarity means more similar, -1 where a smaller one does.
    allowed: [target, source] booleans; every target needs one pair.
  """
  from scipy import stats

  score = sign * np.asarray(similarity, np.float64)
  pair = score[allowed], gain[allowed]
  differs = all(np.ptp(values) > 0 for values in pair)
  undefined = (math.nan, math.nan)  # of numbers that are all alike
  spearman, kendall = (tuple(test(*pair)) if differs else undefined
                       for test in (stats.spearmanr, stats.kendalltau))
  within, found, regret = [], [], []
  for own, value, chosen in zip(score, gain, allowed, strict=True):
    own, value = own[chosen], value[chosen]
    if np.ptp(own) > 0 and np.ptp(value) > 0:
      within.append(float(stats.spearmanr(own, value).statistic))
    picked = value[int(np.argmax(own))]
    found.append(picked == value.max())
    regret.append(value.max() - picked)
  return Agreement(int(allowed.sum()), *map(float, (*spearman, *kendall)),
                   float(np.mean(within)) if within else math.nan, float(np.mean(found)),
                   float(np.mean(regret)))


def to_markdown(found: Mapping[str, Agreement]) -> str:
  """One line per metric."""
  lines = ['| metric | pairs | Spearman | p | Kendall | p | Spearman within targets '
           '| best source found | regret |', '|---|' + '--:|' * 8]
  for name, a in found.items():
    lines.append(f'| {name} | {a.pairs} | {a.spearman:.3f} | {a.spearman_p:.2g} | {a.kendall:.3f} '
                 f'| {a.kendall_p:.2g} | {a.within:.3f} | {a.best_found:.0%} | {a.regret:.4g} |')
  return '\n'.join(lines) + '\n'


def scatter(similarities: Mapping[str, np.ndarray], gain: np.ndarray,
            allowed: np.ndarray) -> str:
  """Draws gain over similarity, one panel per metric, one colour per target, as an `<svg>`.

  Args:
    similarities: metric -> [target, source].
    gain: [target, source].
    allowed: [target, source] booleans, the pairs that are shown.
  """
  columns = min(len(similarities), 3)
  rows = math.ceil(len(similarities) / columns)
  with pictures.settings():
    figure, axes = pictures.axes_grid(pictures.WIDTH * columns / 3, 2.6 * rows, rows, columns)
    for panel in axes.flat[len(similarities):]:
      panel.set_visible(False)
    for panel, (name, values) in zip(axes.flat, similarities.items(), strict=False):
      for i, chosen in enumerate(allowed):
        panel.scatter(values[i][chosen], gain[i][chosen], s=9, alpha=0.8, linewidths=0,
                      color=pictures.COLOURS[i % len(pictures.COLOURS)])
      panel.set_title(name, fontsize=8.5, loc='left')
      panel.set_xlabel('similarity', fontsize=7)
      panel.set_ylabel('gain', fontsize=7)
      pictures.plain(panel)
    return pictures.to_svg(figure, 'Gain of each source-target pair over predicted similarity')
