"""Pictures of gates, correlations and seconds; each comes back as an `<svg>` element."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pemt_jax.reports import pictures
from pemt_jax.reports.files import Correlation, Gates
from pemt_jax.reports.tables import Table, cell_of, group_of

WRITTEN_CELLS = 200  # most cells of a heat map that carry their number
_OUTER = 'time outside of the loop'
PHASES = {'input': '#2aa5b8', 'compilation': '#a98a1c', 'step': '#3b7dd8', 'evaluation': '#b455b0',
          'checkpoint': '#8a7f78', _OUTER: '#c9c4bf'}


def _limits(matrix: np.ndarray) -> tuple[str, float, float]:
  """Colour map and its range: around zero where signs differ, from zero where they do not."""
  finite = matrix[np.isfinite(matrix)]
  low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
  if low < 0:
    bound = max(-low, high)
    return 'RdBu_r', -bound, bound
  return 'Blues', 0.0, high or 1.0


def narrow_limits(matrix: np.ndarray) -> tuple[str, float, float]:
  """As `_limits`, but a range that begins near the smallest number if all are far from zero."""
  colours, low, high = _limits(matrix)
  if low < 0 or not np.isfinite(matrix).any():
    return colours, low, high
  return colours, max(0.0, min(float(np.nanmin(matrix)), high - 0.2) - 0.05), high


def heat_map(axes: Any, matrix: np.ndarray, limits: tuple[str, float, float],
              written: bool, start: float = 0.0) -> Any:
  """Draws a matrix with row 0 at the top, its left side at `start`; NaN cells stay empty."""
  colours, low, high = limits
  across, down = (np.arange(size + 1) for size in matrix.shape[::-1])
  image = axes.pcolormesh(across + start, down, np.ma.masked_invalid(matrix), cmap=colours,
                          vmin=low, vmax=high, edgecolors='face', linewidth=0.2)
  axes.set_ylim(matrix.shape[0], 0)
  axes.tick_params(length=0, labelsize=7.5)
  for side in axes.spines.values():
    side.set_visible(False)
  middle = 0.65 * high if low < 0 else low + 0.55 * (high - low)
  for i, j in np.ndindex(*matrix.shape) if written else ():
    if math.isfinite(matrix[i, j]):
      axes.text(start + j + 0.5, i + 0.5, f'{matrix[i, j]:.2f}', ha='center', va='center',
                fontsize=7, color='#ffffff' if abs(matrix[i, j]) > middle else '#222222')
  return image


def name_ticks(axis: Any, names: Sequence[str], **options: Any) -> None:
  """Writes the names of rows or columns in the middle of their cells."""
  axis.set_ticks(np.arange(len(names)) + 0.5, names, **options)


def correlation(data: Correlation) -> str:
  """Draws a task-correlation matrix; replicas of a task share a row and a column."""
  rows, columns, matrix = grouped_correlation(data)
  with pictures.settings():
    width = 1.6 + 0.62 * len(columns) + 0.065 * max(map(len, rows))
    height = 0.5 + 0.3 * len(rows) + 0.055 * max(map(len, columns))
    figure, axes = pictures.axes_grid(min(width, pictures.WIDTH), min(height, 14.0))
    panel = axes[0, 0]
    image = heat_map(panel, matrix, narrow_limits(matrix), matrix.size <= WRITTEN_CELLS)
    name_ticks(panel.yaxis, rows)
    name_ticks(panel.xaxis, columns, rotation=40, ha='right', rotation_mode='anchor')
    colour_bar(figure, image, axes)
    return pictures.to_svg(figure, 'Task correlation')


def colour_bar(figure: Any, image: Any, axes: Any) -> None:
  """Puts the scale of an image beside its axes."""
  aspect = max(15.0, 7.0 * figure.get_figheight())
  bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=aspect, pad=0.01)
  bar.ax.tick_params(labelsize=7, length=2)
  bar.outline.set_visible(False)


def grouped_correlation(data: Correlation) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
  """Averages a correlation matrix over replicas that differ by their seed.

  A replica's correlation with itself is left out where its task has several replicas.

  Returns:
    Names of rows, names of columns, and the matrix [row, column].
  """
  rows, columns = ([group_of(name) for name in names] for names in (data.rows, data.columns))
  matrix = np.array(data.matrix, float)
  own = np.array(data.rows)[:, None] == np.array(data.columns)
  many = np.array([rows.count(name) > 1 for name in rows])
  matrix[own & many[:, None]] = np.nan
  heads = tuple(dict.fromkeys(rows)), tuple(dict.fromkeys(columns))
  joined = np.full((len(heads[0]), len(heads[1])), np.nan)
  for i, j in np.ndindex(*joined.shape):
    block = matrix[np.ix_(np.array(rows) == heads[0][i], np.array(columns) == heads[1][j])]
    known = block[np.isfinite(block)]
    joined[i, j] = known.mean() if known.size else np.nan
  return *heads, joined


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


def gate_table(gates: Gates) -> Table:
  """Mean gate weight of each source (columns) for each target (rows), spread over replicas.

  A replica's weight is the mean over the layers of both stacks.
  """
  weights = np.concatenate(list(gates.stacks.values()), axis=1).mean(axis=1)
  targets = tuple(dict.fromkeys(gates.targets))
  sources = short_names(gates.sources)
  cells = {(target, source): cell_of([float(weights[i, j]) for i, name in enumerate(gates.targets)
                                      if name == target])
           for target in targets for j, source in enumerate(sources)}
  return Table('mean gate weight', targets, sources, cells, corner='target')


def short_names(names: Sequence[str]) -> tuple[str, ...]:
  """Names without the folder that they all begin with: `playground/omen` becomes `omen`."""
  folders = {name.rpartition('/')[0] for name in names}
  shared = folders.pop() if len(folders) == 1 else ''
  return tuple(name[len(shared):].removeprefix('/') for name in names)


def gates_by_layer(gates: Gates, what: str = 'Gate weight of each source') -> str:
  """Draws one panel per target, source x layer, the encoder left of the decoder.

  Args:
    gates: what is drawn.
    what: it is, for readers without the picture.
  """
  targets, stacks = mean_by_target(gates)
  sources = short_names(gates.sources)
  layers = sum(array.shape[1] for array in stacks.values())
  columns = max(1, min(len(targets), 4, 40 // layers))
  rows = math.ceil(len(targets) / columns)
  high = max(float(np.nanmax(array)) for array in stacks.values()) or 1.0
  with pictures.settings():
    figure, axes = pictures.axes_grid(pictures.WIDTH, rows * (0.75 + 0.24 * len(sources)),
                                      rows, columns)
    figure.get_layout_engine().set(wspace=0.06, hspace=0.04)
    for i, panel in enumerate(axes.flat):
      panel.set_visible(i < len(targets))
      if i < len(targets):
        own = {name: array[i].T for name, array in stacks.items()}
        image = _draw_stacks(panel, own, high, layers * columns <= 34)
        name_ticks(panel.yaxis, sources if i % columns == 0 else [''] * len(sources))
        panel.set_title(short_names(targets)[i], fontsize=8.5, loc='left', pad=16)
    colour_bar(figure, image, axes)
    return pictures.to_svg(figure, f'{what} (rows) in each layer (columns), one panel per target')


def _draw_stacks(panel: Any, stacks: Mapping[str, np.ndarray], high: float, written: bool) -> Any:
  """Draws [source, layer] weights of both stacks side by side, with a gap between them."""
  start, ticks, names = 0.0, [], []
  for name, matrix in stacks.items():
    image = heat_map(panel, matrix, ('Blues', 0.0, high), written, start)
    count = matrix.shape[1]
    panel.text(start + count / 2, -0.15, name, ha='center', va='bottom', fontsize=7)
    ticks += [start + i + 0.5 for i in range(count)]
    names += [str(i + 1) for i in range(count)]
    start += count + 0.02 * count + 0.12
  panel.set_xticks(ticks, names)
  return image


def seconds_of_phases(times: Mapping[str, float], total: float | None) -> dict[str, float]:
  """Seconds by phase in the order of `PHASES`, with what a run spent outside of the loop.

  Args:
    times: content of times.json.
    total: seconds of the whole run, or None where they are not known.
  """
  known = {name: float(times[name]) for name in PHASES if name in times}
  known |= {name: float(value) for name, value in times.items() if name not in known}
  rest = (total or 0.0) - math.fsum(known.values())
  return known | ({_OUTER: rest} if rest > 0 else {})


def time_bars(runs: Mapping[str, Mapping[str, float]]) -> str:
  """Draws one stacked bar per run: seconds by phase.

  Args:
    runs: run -> seconds by phase.
  """
  longest = max(math.fsum(seconds.values()) for seconds in runs.values())
  unit, name = (60.0, 'minutes') if longest > 300 else (1.0, 'seconds')
  phases = dict.fromkeys(phase for seconds in runs.values() for phase in seconds)
  phases = [*(p for p in PHASES if p in phases), *(p for p in phases if p not in PHASES)]
  with pictures.settings():
    figure, axes = pictures.axes_grid(pictures.WIDTH, 0.85 + 0.33 * len(runs))
    panel = axes[0, 0]
    starts = np.zeros(len(runs))
    for phase in phases:
      widths = np.array([seconds.get(phase, 0.0) for seconds in runs.values()]) / unit
      panel.barh(range(len(runs)), widths, 0.62, starts, label=phase,
                 color=PHASES.get(phase, '#555555'))
      starts += widths
    panel.set_yticks(range(len(runs)), list(runs))
    panel.invert_yaxis()
    panel.set_xlabel(name, fontsize=7.5)
    pictures.plain(panel, 'x')
    panel.tick_params(axis='y', length=0, labelsize=8)
    figure.legend(loc='outside upper left', ncols=len(phases), fontsize=8, frameon=False)
    return pictures.to_svg(figure, f'{name.capitalize()} of each run by phase')
