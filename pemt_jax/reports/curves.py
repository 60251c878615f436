"""Learning curves: mean and spread over the repetitions of a task, one colour per run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pemt_jax.reports import pictures
from pemt_jax.reports.tables import group_of

Lines = Mapping[str, np.ndarray]  # replica -> [point, 2] steps and values
PANELS = 30  # most panels of a picture
_POINTS = 200  # most points of a line
_STYLES = ('-', '--', ':', '-.')  # of runs that share a colour, one after the other


def curves_of(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
  """Sorts metric lines into curves.

  Args:
    metrics: lines of a metrics file.

  Returns:
    Metric -> replica ('' where a line names none) -> [point, 2] steps and values.
  """
  points: dict[str, dict[str, list[tuple[float, float]]]] = {}
  for row in metrics:
    for name, value in row.items():
      is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
      if name not in ('step', 'replica') and is_number:
        lines = points.setdefault(name, {})
        lines.setdefault(str(row.get('replica', '')), []).append((row['step'], value))
  return {name: {replica: np.asarray(line, float) for replica, line in lines.items()}
          for name, lines in points.items()}


def mean_curve(lines: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Mean and spread over curves at every step that occurs.

  Args:
    lines: arrays [point, 2] of steps and values.

  Returns:
    [step] steps, means and sample standard deviations of the curves that have the step (NaN for
    one curve). Long curves are thinned: neighbouring steps are averaged.
  """
  joined = np.concatenate(lines)
  steps, where = np.unique(joined[:, 0], return_inverse=True)
  counts = np.bincount(where)
  means = np.bincount(where, joined[:, 1]) / counts
  squares = np.bincount(where, (joined[:, 1] - means[where]) ** 2)
  spreads = np.sqrt(squares / np.where(counts > 1, counts - 1, np.nan))
  parts = min(_POINTS, len(steps))
  thinned = (np.array([part.mean() for part in np.array_split(column, parts)])
             for column in (steps, means, spreads))
  return tuple(thinned)


def by_task(lines: Lines) -> dict[str, list[np.ndarray]]:
  """Curves of each task, in the order of the first replica; replicas differ by their seed."""
  groups: dict[str, list[np.ndarray]] = {}
  for replica, line in lines.items():
    groups.setdefault(group_of(replica), []).append(line)
  return groups


def draw_tasks(runs: Mapping[str, Lines], colours: Mapping[str, str], title: str) -> str:
  """Draws one panel per task and in it one line per run: the mean, and a band of one deviation.

  Args:
    runs: run -> curves of one metric.
    colours: run -> colour.
    title: name of the metric.

  Returns:
    An `<svg>` element; tasks beyond `PANELS` are left out.
  """
  grouped = {run: by_task(lines) for run, lines in runs.items()}
  tasks = list(dict.fromkeys(task for groups in grouped.values() for task in groups))[:PANELS]
  shades = [colours[run] for run in runs]
  styles = {run: _STYLES[shades[:i].count(shades[i]) % len(_STYLES)] for i, run in enumerate(runs)}
  with pictures.settings():
    figure, panels = _panels(len(tasks))
    for panel, task in zip(panels, tasks):
      for run in (run for run, groups in grouped.items() if task in groups):
        _draw(panel, grouped[run][task], colours[run], run, styles[run])
      panel.set_title(task, fontsize=8.5, loc='left')
    if len(runs) > 1:
      _legend(figure, panels)
    return pictures.to_svg(figure, f'{title} against the step, one panel per task')


def draw_metrics(metrics: Mapping[str, Lines], colour: str) -> str:
  """Draws one panel per metric: mean over all replicas of a run and a band of one deviation.

  Args:
    metrics: metric -> curves, at least one; those beyond `PANELS` are left out.
    colour: of the lines.

  Returns:
    An `<svg>` element.
  """
  names = list(metrics)[:PANELS]
  with pictures.settings():
    figure, panels = _panels(len(names))
    for panel, name in zip(panels, names):
      _draw(panel, list(metrics[name].values()), colour, '')
      panel.set_title(name, fontsize=8.5, loc='left')
    return pictures.to_svg(figure, f'{", ".join(names)} against the step')


def _panels(count: int) -> tuple[Any, list[Any]]:
  columns = min(count, 4) if count > 3 else max(count, 2)
  rows = math.ceil(count / columns)
  height = 2.0 if columns > 2 else 2.7
  figure, axes = pictures.axes_grid(pictures.WIDTH, 0.35 + height * rows, rows, columns)
  for index, panel in enumerate(axes.flat):
    pictures.plain(panel)
    panel.set_visible(index < count)
    if index + columns >= count:
      panel.set_xlabel('step', fontsize=7.5)
  return figure, list(axes.flat)[:count]


def _draw(panel: Any, lines: Sequence[np.ndarray], colour: str, label: str,
          style: str = '-') -> None:
  steps, means, spreads = mean_curve(lines)
  panel.fill_between(steps, means - spreads, means + spreads, color=colour, alpha=0.2, linewidth=0)
  panel.plot(steps, means, color=colour, linewidth=1.4, label=label or None, linestyle=style,
             marker='o' if len(steps) < 12 else None, markersize=2.5)


def _legend(figure: Any, panels: Sequence[Any]) -> None:
  handles = {}
  for panel in panels:
    handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels())}
  figure.legend(handles.values(), handles.keys(), loc='outside upper left', fontsize=8,
                ncols=max(1, 150 // (8 + max(map(len, handles)))), frameon=False)


def is_score(name: str) -> bool:
  """Whether a metric is a result of an evaluation and no loss."""
  return not name.startswith('train/') and not name.endswith(('loss', 'second', 'nats'))


def main_metrics(names: Sequence[str], wanted: str = '') -> list[str]:
  """The loss and the score that stand first: a training loss, and the selecting metric.

  Args:
    names: of the curves.
    wanted: ending of the score's name, or '' for the first score.
  """
  losses = [name for name in names if name.rpartition('/')[2] == 'loss']
  scores = [name for name in names if is_score(name) and '/' in name]
  chosen = [name for name in scores if wanted and name.endswith(f'/{wanted}')] or scores
  return [*sorted(losses, key=lambda name: not name.startswith('train/'))[:2], *chosen[:1]]
