"""Figures of a report, drawn with matplotlib's Agg canvas; each comes back as PNG bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pemt_jax.reports.files import Correlation, Gates
from pemt_jax.reports.tables import group_of

_DPI = 120
_PANELS = 12        # most panels of learning curves
_NAMED_GROUPS = 8   # most groups of replicas with a name and a colour of their own
_WRITTEN_CELLS = 160  # most cells of a heat map that carry their number
_COLOURS = ('#3366b0', '#d1691e', '#2b8a5b', '#a3459c', '#8a6d1d', '#c23b4e', '#3b9db3', '#6b6b6b')
_INK, _GRID = '#333333', '#dddddd'


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, np.ndarray]:
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), dpi=_DPI, layout='constrained')
  return figure, figure.subplots(rows, columns, squeeze=False)


def _png(figure: Any) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', metadata={'Software': None})
  return buffer.getvalue()


def _limits(matrix: np.ndarray) -> tuple[str, float, float]:
  """Colour map and its range: around zero where signs differ, from zero where they do not."""
  finite = matrix[np.isfinite(matrix)]
  low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
  if low < 0:
    bound = max(-low, high)
    return 'RdBu_r', -bound, bound
  return 'Blues', 0.0, high or 1.0


def _heat_map(axes: Any, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str],
              limits: tuple[str, float, float], written: bool) -> Any:
  colours, low, high = limits
  image = axes.imshow(matrix, cmap=colours, vmin=low, vmax=high, aspect='auto')
  axes.set_xticks(range(len(columns)), columns, fontsize=8,
                  rotation=45 if max(map(len, columns)) > 4 else 0,
                  ha='right' if max(map(len, columns)) > 4 else 'center', rotation_mode='anchor')
  axes.set_yticks(range(len(rows)), rows, fontsize=8)
  axes.tick_params(length=0, colors=_INK)
  for side in axes.spines.values():
    side.set_visible(False)
  middle = (0.55 if low == 0 else 0.65) * high
  for i, j in np.ndindex(*matrix.shape) if written else ():
    dark = abs(matrix[i, j]) > middle
    axes.text(j, i, f'{matrix[i, j]:.2f}', ha='center', va='center', fontsize=7,
              color='white' if dark else _INK)
  return image


def heat_map(matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str,
             axis_names: tuple[str, str] = ('', '')) -> bytes:
  """Draws one matrix.

  Args:
    matrix: [row, column] numbers; NaN cells stay empty.
    rows: [row] names.
    columns: [column] names.
    title: what the numbers are.
    axis_names: what the columns and the rows are.
  """
  width = min(14.0, 2.5 + 0.6 * len(columns) + 0.08 * max(map(len, rows)))
  figure, axes = _figure(width, min(14.0, 1.6 + 0.36 * len(rows) + 0.05 * max(map(len, columns))))
  image = _heat_map(axes[0, 0], matrix, rows, columns, _limits(matrix),
                    matrix.size <= _WRITTEN_CELLS)
  axes[0, 0].set_title(title, fontsize=10, color=_INK, loc='left')
  axes[0, 0].set_xlabel(axis_names[0], fontsize=8, color=_INK)
  axes[0, 0].set_ylabel(axis_names[1], fontsize=8, color=_INK)
  figure.colorbar(image, ax=axes[0, 0], shrink=0.8).ax.tick_params(labelsize=7)
  return _png(figure)


def mean_by_target(gates: Gates) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
  """Averages gate weights over the replicas of each target.

  Returns:
    Names [target] in the order of their first replica, and per stack [target, layer, source].
  """
  targets = tuple(dict.fromkeys(gates.targets))
  chosen = {target: [i for i, name in enumerate(gates.targets) if name == target]
            for target in targets}
  stacks = {name: np.stack([array[chosen[target]].mean(axis=0) for target in targets])
            for name, array in gates.stacks.items()}
  return targets, stacks


def target_source_matrix(gates: Gates) -> tuple[tuple[str, ...], np.ndarray]:
  """Mean gate weight per target and source.

  Returns:
    Names [target], and [target, source] means over replicas and over the layers of both stacks.
  """
  targets, stacks = mean_by_target(gates)
  return targets, np.concatenate(list(stacks.values()), axis=1).mean(axis=1)


def gates_by_layer(gates: Gates) -> bytes:
  """Draws for each target a heat map source x layer, encoder layers (E) before decoder layers (D).

  Colours are comparable between targets: one scale from 0 to the largest weight.
  """
  targets, stacks = mean_by_target(gates)
  joined = np.concatenate(list(stacks.values()), axis=1)
  names = [f'{stack[0].upper()}{layer}' for stack, array in stacks.items()
           for layer in range(array.shape[1])]
  columns = min(len(targets), max(1, 12 // max(4, len(names) // 2)))
  rows = math.ceil(len(targets) / columns)
  label = 0.07 * max(map(len, gates.sources))
  figure, axes = _figure(min(16.0, columns * (1.2 + label + 0.4 * len(names))),
                         rows * (0.9 + 0.3 * len(gates.sources)), rows, columns)
  limits = ('Blues', 0.0, float(np.nanmax(joined)) or 1.0)
  for i, panel in enumerate(axes.flat):
    if i >= len(targets):
      panel.set_axis_off()
      continue
    image = _heat_map(panel, joined[i].T, gates.sources, names, limits,
                      joined[i].size <= _WRITTEN_CELLS and len(names) <= 12)
    panel.set_title(targets[i], fontsize=9, color=_INK, loc='left')
  figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)
  return _png(figure)


def gates_by_target(gates: Gates) -> bytes:
  """Draws the mean gate weight of each source (columns) for each target (rows)."""
  targets, matrix = target_source_matrix(gates)
  return heat_map(matrix, targets, gates.sources, 'Mean gate weight over layers and replicas',
                  ('source', 'target'))


def correlation(data: Correlation) -> bytes:
  """Draws a task-correlation matrix."""
  return heat_map(data.matrix, data.rows, data.columns, 'Task correlation')


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


def _importance(name: str) -> tuple[int, str]:
  """Losses first, then scores, then other quantities, gates, and what only describes the run."""
  split, _, quantity = name.rpartition('/')
  if any(part in quantity for part in ('second', 'tokens', 'learning_rate')) or (
      quantity in ('weight', 'grad_norm')):
    return 4, name
  if quantity.startswith('moe_weight'):
    return 3, name
  if quantity.endswith('loss'):
    return 0, name
  return (2 if split == 'train' else 1), name


def drawn_and_left(names: Sequence[str]) -> tuple[list[str], list[str]]:
  """Splits metric names into those that learning curves show and those that find no panel."""
  ordered = sorted(names, key=_importance)
  return ordered[:_PANELS], ordered[_PANELS:]


def learning_curves(metrics: Sequence[Mapping[str, Any]]) -> bytes:
  """Draws one panel per metric against the step.

  Replicas that differ by their seed share a line, the median. With more groups than can be told
  apart all replicas are grey and their common median is drawn on top.

  Args:
    metrics: lines of a metrics file with at least one number.
  """
  curves = curves_of(metrics)
  names, _ = drawn_and_left(list(curves))
  columns = min(3, len(names))
  rows = math.ceil(len(names) / columns)
  figure, axes = _figure(4.4 * columns, 2.7 * rows + 0.4, rows, columns)
  groups = list(dict.fromkeys(group_of(name) for lines in curves.values() for name in lines))
  for panel, name in zip(axes.flat, names):
    _curve_panel(panel, name, curves[name], groups)
  for panel in axes.flat[len(names):]:
    panel.set_axis_off()
  if 1 < len(groups) <= _NAMED_GROUPS:
    handles, labels = max((panel.get_legend_handles_labels() for panel in axes.flat),
                          key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc='outside lower center', ncols=4, fontsize=8, frameon=False)
  return _png(figure)


def _curve_panel(panel: Any, name: str, lines: Mapping[str, np.ndarray],
                 groups: Sequence[str]) -> None:
  told_apart = len(groups) <= _NAMED_GROUPS
  members: dict[str, list[np.ndarray]] = {}
  for replica, line in lines.items():
    members.setdefault(group_of(replica) if told_apart else '', []).append(line)
  for group, listed in members.items():
    steps, middle = median_curve(listed)
    for line in () if told_apart else listed:
      panel.plot(line[:, 0], line[:, 1], color='#bbbbbb', linewidth=0.7)
    colour = _COLOURS[groups.index(group) if told_apart else 0]
    panel.plot(steps, middle, color=colour, label=group or None, linewidth=1.5,
               marker='o' if len(steps) < 3 else None, markersize=3)
  most = max(map(len, members.values()))
  title = f'{name} (median of {most})' if most > 1 else name
  panel.set_title(title, fontsize=9, color=_INK, loc='left')
  panel.set_xlabel('step', fontsize=8, color=_INK)
  panel.tick_params(labelsize=7, colors=_INK)
  panel.grid(color=_GRID, linewidth=0.6)
  panel.set_axisbelow(True)
  for side in ('top', 'right'):
    panel.spines[side].set_visible(False)


def median_curve(lines: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Median over curves at every step that occurs.

  Args:
    lines: arrays [point, 2] of steps and values.

  Returns:
    [step] steps and [step] medians of the values at that step.
  """
  joined = np.concatenate(lines)
  steps = np.unique(joined[:, 0])
  return steps, np.array([np.median(joined[joined[:, 0] == step, 1]) for step in steps])
