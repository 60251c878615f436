"""Blocks of a report on masks: overlaps as heat maps, tasks as a tree, density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pemt_jax.reports import pictures, plots, views
from pemt_jax.reports.files import MaskOverlaps
from pemt_jax.reports.views import Block

_ALL = 'all'


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
  """A square matrix with NaN in place of what a member has in common with itself."""
  return np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)


def tree_of(overlap: np.ndarray) -> np.ndarray:
  """Average linkage of members under the distance 1 - overlap.

  Args:
    overlap: [member, member], at least two members.

  Returns:
    [member - 1, 4] as `scipy.cluster.hierarchy.linkage` gives it.
  """
  from scipy.cluster import hierarchy
  from scipy.spatial import distance

  apart = 1.0 - (overlap + overlap.T) / 2.0
  np.fill_diagonal(apart, 0.0)
  return hierarchy.linkage(distance.squareform(np.maximum(apart, 0.0), checks=False), 'average')


def draw_matrix(matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str) -> str:
  """Draws a heat map [row, column] as an `<svg>` element."""
  with pictures.settings():
    width = 1.6 + (0.62 if len(columns) <= 14 else 0.3) * len(columns)
    height = 0.5 + (0.3 if len(rows) <= 14 else 0.2) * len(rows)
    width += 0.065 * max(map(len, rows))
    height += 0.055 * max(map(len, columns))
    figure, axes = pictures.axes_grid(min(width, pictures.WIDTH), min(height, 14.0))
    _fill(axes[0, 0], matrix, rows, columns)
    plots.colour_bar(figure, axes[0, 0].collections[0], axes)
    return pictures.to_svg(figure, title)


def _fill(panel: Any, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
  plots.heat_map(panel, matrix, plots.narrow_limits(matrix), matrix.size <= plots.WRITTEN_CELLS)
  plots.name_ticks(panel.yaxis, rows)
  plots.name_ticks(panel.xaxis, columns, rotation=40, ha='right', rotation_mode='anchor')


def draw_tree(overlap: np.ndarray, names: Sequence[str], expected: float, title: str) -> str:
  """Draws members as a tree by their overlap; a dashed line stands where chance would join them.

  Args:
    overlap: [member, member].
    names: [member].
    expected: overlap by chance.
    title: text that stands for the picture.
  """
  from scipy.cluster import hierarchy

  with pictures.settings():
    figure, axes = pictures.axes_grid(min(7.0, pictures.WIDTH), 0.8 + 0.26 * len(names))
    panel = axes[0, 0]
    hierarchy.dendrogram(tree_of(overlap), labels=list(names), orientation='right', ax=panel,
                         link_color_func=lambda _: pictures.COLOURS[0], leaf_font_size=8)
    panel.axvline(1.0 - expected, color=pictures.GRID, linestyle='--', linewidth=0.8)
    panel.set_xlabel('1 - overlap', fontsize=7.5)
    pictures.plain(panel, 'x')
    panel.tick_params(axis='y', length=0, labelsize=8)
    return pictures.to_svg(figure, title)


def blocks(found: MaskOverlaps) -> list[Block]:
  """What a report shows of masks: a table by matrix, then heat maps and the tree of tasks."""
  shown = [Block('Masks', 'table', _table(found))]
  chance = f'Two masks of this density have {found.expected:.2f} in common by chance.'
  for owner, members in found.members.items():
    if len(members) < 2:
      continue
    names, title = plots.short_names(members), f'Overlap of masks of {owner}s'
    matrix = off_diagonal(found.overlaps[owner][0])
    shown.append(Block(title, 'svg', draw_matrix(matrix, names, names, title),
                       f'Jaccard: entries that both keep over entries that one keeps. {chance}'))
    if owner != 'layer' and len(members) > 2:
      title = f'Tree of {owner}s'
      shown.append(Block(title, 'svg', draw_tree(found.overlaps[owner][0], names, found.expected,
                                                 title),
                         'Average linkage under 1 - overlap; dashed: where chance would join.'))
  shown += _against_layers(found)
  return shown + _by_matrix(found)


def _against_layers(found: MaskOverlaps) -> list[Block]:
  """Tasks against layers, and how much of the prototype each layer uses for each task."""
  shown = []
  if found.across is not None:
    title = 'Overlap of masks of tasks and of layers'
    drawn = draw_matrix(found.across[0].T, found.members['layer'],
                        plots.short_names(found.members['task']), title)
    shown.append(Block(title, 'svg', drawn, folded=True))
  if len(found.members) > 1:
    title = 'Share of the prototype in use'
    joined = found.joined
    drawn = draw_matrix(joined.matrix, joined.rows, plots.short_names(joined.columns), title)
    shown.append(Block(title, 'svg', drawn, 'Entries that the joined masks keep, in each layer for '
                       'each task.', folded=True))
  return shown


def _by_matrix(found: MaskOverlaps) -> list[Block]:
  """Overlaps of each matrix alone, where there are several."""
  shown = []
  for owner, members in found.members.items():
    for number, matrix in enumerate(found.matrices):
      if number == 0 or len(found.matrices) < 3 or len(members) < 2:
        continue
      title, names = f'Overlap of masks of {owner}s: {matrix}', plots.short_names(members)
      drawn = draw_matrix(off_diagonal(found.overlaps[owner][number]), names, names, title)
      shown.append(Block(title, 'svg', drawn, folded=True))
  return shown


def _table(found: MaskOverlaps) -> views.View:
  """Density and mean overlap of each owner's masks, by matrix."""
  head, rows = ['matrix'], [[name or _ALL] for name in found.matrices]
  for owner, members in found.members.items():
    head += [f'{owner} masks', f'density of {owner} masks', f'overlap of {owner} masks']
    for row, cells in zip(rows, _numbers(found, owner, len(members)), strict=True):
      row += cells
  caption = (f'Overlap: mean Jaccard over pairs; {found.expected:.3f} by chance. Means over the'
             ' replicas.')
  return views.plain_view(head, rows, caption)


def _numbers(found: MaskOverlaps, owner: str, count: int) -> list[list[str]]:
  cells = []
  for density, overlap in zip(found.densities[owner], found.overlaps[owner], strict=True):
    pairs = off_diagonal(overlap)
    pairs = pairs[np.isfinite(pairs)]
    cells.append([str(int(np.isfinite(density).sum()) if count else 0), _text(density),
                  _text(pairs)])
  return cells


def _text(values: np.ndarray) -> str:
  known = values[np.isfinite(values)]
  return f'{known.mean():.3f}' if known.size else '-'
