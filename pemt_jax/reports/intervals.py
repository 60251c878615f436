"""PNG files of scores and of differences with their confidence intervals."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pemt_jax.reports import pictures, significance


def save_bars(values: Mapping[tuple[str, str], Sequence[float]], path: str | os.PathLike[str],
              unit: str) -> None:
  """Draws the mean of each (column, task) with its 95 % interval; tasks side by side.

  Args:
    values: (column, task) -> repetitions.
    path: PNG file to write.
    unit: name of the axis.
  """
  columns = list(dict.fromkeys(column for column, _ in values))
  tasks = list(dict.fromkeys(task for _, task in values))
  with pictures.settings():
    figure, axes = _panel(max(5.0, 1.5 * len(tasks)), 3.4, 'y')
    width = 0.85 / len(columns)
    colours = _colours(len(columns))
    for i, column in enumerate(columns):
      own = [values.get((column, task)) for task in tasks]
      means = [np.nan if found is None else np.mean(found) for found in own]
      reach = [0.0 if found is None else _reach(found) for found in own]
      place = np.arange(len(tasks)) + (i - (len(columns) - 1) / 2) * width
      axes.bar(place, means, width * 0.92, yerr=reach, label=column.replace('_', ' '),
               color=colours[i], error_kw={'elinewidth': 0.8})
    axes.set_xticks(np.arange(len(tasks)), [task.rpartition('/')[2] for task in tasks])
    axes.set_ylabel(unit)
    figure.legend(loc='outside upper center', ncols=4, frameon=False, fontsize=8)
    _save(figure, path)


def save_intervals(values: Mapping[str, tuple[float, float, float]],
                   path: str | os.PathLike[str], unit: str) -> None:
  """Draws (mean, low, high) of each name on a line of its own, with a line at zero.

  Args:
    values: name -> mean and interval.
    path: PNG file to write.
    unit: name of the axis.
  """
  with pictures.settings():
    figure, axes = _panel(7.0, 0.8 + 0.24 * len(values), 'x')
    place = np.arange(len(values))
    mean, low, high = np.array(list(values.values())).T
    colours = ['#3b7dd8' if a > 0 else '#c4413a' if b < 0 else '#8a7f78'
               for a, b in zip(low, high)]
    axes.hlines(place, low, high, color=colours, linewidth=2.5)
    axes.scatter(mean, place, color=colours, s=22, zorder=3)
    axes.axvline(0.0, color='#222222', linewidth=0.8)
    axes.set_yticks(place, list(values))
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    _save(figure, path)


def _panel(width: float, height: float, grid: str) -> tuple[Any, Any]:
  figure, axes = pictures.axes_grid(width, height)
  pictures.plain(axes[0, 0], '')
  axes[0, 0].grid(color='#dddddd', linewidth=0.6, axis=grid)
  return figure, axes[0, 0]


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
  figure.savefig(path, dpi=150, facecolor='white')


def _reach(found: Sequence[float]) -> float:
  """Half of the 95 % interval; 0 where there is none."""
  pair = significance.interval(found)
  return 0.0 if pair is None else (pair[1] - pair[0]) / 2


def _colours(count: int) -> list[Any]:
  from matplotlib import colormaps
  return [colormaps['tab20'](i % 20) for i in range(count)]
