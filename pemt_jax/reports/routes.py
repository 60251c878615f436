"""Pictures of routes: clustered heat maps of tasks over experts, and their way through training.

Columns are tasks, under colours of the two levels of their ontology; rows are experts by layer
(Ye et al. 2022, figures of their section 6).
"""

from __future__ import annotations

import base64
import io
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pemt_jax.errors import one_of
from pemt_jax.reports import pictures, plots
from pemt_jax.reports.route_files import Routes
from pemt_jax.reports.views import Block

ORDERS = ('clusters', 'ontology')
WHICH = ('now', 'at_one')  # routes at the run's temperature, or at 1
_VECTOR_CELLS = 1500       # above, cells are stored as pixels
_SECONDS = 0.2             # that the animation shows each step, as published
_CAPTION = ('Columns: tasks. Rows: stack/layer/expert, from the input to the output. White 0, dark '
            'blue 1. ')


def expert_names(routes: Routes) -> tuple[str, ...]:
  """Names of all experts, layer by layer: `encoder/0/2` is the third one of the first layer."""
  return tuple(f'{layer}/{expert}' for layer in routes.layers
               for expert in range(routes.now.shape[-1]))


def matrix_of(routes: Routes, which: str = 'now') -> np.ndarray:
  """Routes [task, layer * expert]; `which` is one of `WHICH`."""
  one_of('the routes', which, WHICH)
  weights = getattr(routes, which)
  return weights.reshape(len(weights), -1)


def linkage_of(matrix: np.ndarray) -> np.ndarray:
  """Average linkage of the rows of a matrix [row, number] under the Euclidean distance."""
  from scipy.cluster import hierarchy

  return hierarchy.linkage(matrix, 'average', optimal_ordering=True)


def ontology_order(routes: Routes) -> list[int]:
  """Places of the tasks by category, group and name."""
  keys = list(zip(routes.categories, routes.groups, routes.tasks, strict=True))
  return sorted(range(len(keys)), key=keys.__getitem__)


class Picture:
  """A heat map of routes that can show other routes of the same tasks.

  Attributes:
    figure: the matplotlib figure.
  """

  def __init__(self, routes: Routes, order: str = 'clusters', which: str = 'now'):
    """Draws; call it inside of `pictures.settings()`.

    Args:
      routes: of at least one task.
      order: of the tasks, one of `ORDERS`; clusters have their tree above.
      which: see `matrix_of`.
    """
    one_of('the order of tasks', order, ORDERS)
    matrix = matrix_of(routes, which)
    tasks, rows = matrix.shape
    tree = linkage_of(matrix) if order == 'clusters' and tasks > 2 else None
    self.figure, panels = _panels(rows, routes, tree is not None)
    self._which, self._order = which, ontology_order(routes)
    if tree is not None:
      self._order = _draw_tree(panels.pop(0), tree)
    own = routes.categories, routes.groups
    for panel, names, title in zip(panels, own, ('category', 'group'), strict=False):
      _draw_strip(panel, [names[i] for i in self._order], title)
    self._panel = panels[-1]
    chosen = matrix[self._order].T
    self._image = plots.heat_map(self._panel, chosen, ('Blues', 0.0, 1.0), False)
    self._image.set_rasterized(chosen.size > _VECTOR_CELLS)
    names = plots.short_names(routes.tasks)
    plots.name_ticks(self._panel.xaxis, [names[i] for i in self._order], rotation=90)
    plots.name_ticks(self._panel.yaxis, expert_names(routes))
    for line in range(0, rows + 1, matrix.shape[1] // len(routes.layers)):
      self._panel.axhline(line, color=pictures.GRID, linewidth=0.6)
    self._panel.tick_params(labelsize=6)

  def show(self, routes: Routes, title: str) -> None:
    """Puts other routes of the same tasks into the picture."""
    self._image.set_array(matrix_of(routes, self._which)[self._order].T)
    self.figure.suptitle(title, fontsize=8, x=0.01, ha='left')


def _panels(rows: int, routes: Routes, tree: bool) -> tuple[Any, list[Any]]:
  """A figure with panels below each other: the tree, two strips, the heat map."""
  from matplotlib.figure import Figure

  heights = [*([0.5] if tree else []), 0.1, 0.1, 0.11 * rows]
  names = 0.055 * max(map(len, plots.short_names(routes.tasks)))
  legends = 0.13 * (len(set(routes.categories)) + len(set(routes.groups)) + 4)
  width = 3.0 + 0.11 * len(routes.tasks)
  figure = Figure(figsize=(max(width, 4.0), max(sum(heights) + names, legends) + 0.4),
                  layout='constrained')
  figure.get_layout_engine().set(h_pad=0.01, hspace=0.0)
  axes = figure.subplots(len(heights), 1, squeeze=False,
                         gridspec_kw={'height_ratios': heights})[:, 0]
  return figure, list(axes)


def _draw_tree(panel: Any, tree: np.ndarray) -> list[int]:
  """Draws the tree of the tasks; returns their places in its order."""
  from scipy.cluster import hierarchy

  found = hierarchy.dendrogram(tree, ax=panel, no_labels=True,
                               link_color_func=lambda _: pictures.COLOURS[0])
  for lines in panel.collections:
    lines.set_linewidth(0.8)
  panel.set_xlim(0, 10 * len(found['leaves']))  # a leaf is ten units wide
  panel.set_axis_off()
  return found['leaves']


def _draw_strip(panel: Any, names: Sequence[str], title: str) -> None:
  """Draws the level of an ontology as a row of colours, with its legend at the right."""
  import matplotlib
  from matplotlib.patches import Patch

  levels = sorted(set(names))
  palette = (pictures.COLOURS if title == 'category' else
             [*matplotlib.colormaps['tab20'].colors, *matplotlib.colormaps['tab20b'].colors])
  colours = {level: palette[i % len(palette)] for i, level in enumerate(levels)}
  for place, name in enumerate(names):
    panel.axvspan(place, place + 1, color=colours[name], linewidth=0)
  panel.set_xlim(0, len(names))
  panel.set_axis_off()
  panel.figure.legend(
      handles=[Patch(color=colour, label=level) for level, colour in colours.items()],
      title=title, loc='outside right upper' if title == 'category' else 'outside right lower',
      fontsize=6, title_fontsize=7, frameon=False, handlelength=0.9, alignment='left')


def draw_routes(routes: Routes, order: str = 'clusters', which: str = 'now') -> str:
  """Draws a heat map as an `<svg>` element; see `Picture` for the arguments."""
  with pictures.settings():
    return pictures.to_svg(Picture(routes, order, which).figure, 'Routes of tasks over experts')


def routes_png(routes: Routes, order: str = 'clusters', which: str = 'now') -> bytes:
  """Draws a heat map as the content of a PNG file; see `Picture` for the arguments."""
  buffer = io.BytesIO()
  with pictures.settings():
    Picture(routes, order, which).figure.savefig(buffer, format='png', dpi=150, facecolor='white')
  return buffer.getvalue()


def routes_gif(steps: Mapping[int, Routes], order: str = 'clusters', which: str = 'now',
               seconds: float = _SECONDS) -> bytes:
  """Draws the routes of all steps as the content of a GIF file without end.

  Args:
    steps: step -> routes of the same tasks, at least one; tasks stand in the order of the last.
    order: see `Picture`.
    which: see `Picture`.
    seconds: that each step is shown.
  """
  from matplotlib.animation import PillowWriter
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  with pictures.settings(), tempfile.TemporaryDirectory() as folder:
    picture, path = Picture(list(steps.values())[-1], order, which), pathlib.Path(folder) / 'a.gif'
    picture.figure.set_facecolor('white')
    FigureCanvasAgg(picture.figure)
    writer = PillowWriter(fps=1.0 / seconds)
    with writer.saving(picture.figure, str(path), dpi=80):
      for step, routes in steps.items():
        picture.show(routes, f'step {step}, temperature {routes.temperature:.4g}')
        writer.grab_frame()
    return path.read_bytes()


def blocks(best: Mapping[str, Routes] | None,
           steps: Mapping[str, Mapping[int, Routes]]) -> list[Block]:
  """What a report shows of routes: a heat map of each replica, and the way of the first one.

  Args:
    best: replica -> routes of its best step.
    steps: replica -> step -> routes.
  """
  shown = []
  several = {replica: own for replica, own in (best or {}).items() if len(own.tasks) > 1}
  for replica, routes in several.items():
    title = 'Routes of tasks' + (f': {replica}' if len(several) > 1 else '')
    caption = f'{_CAPTION}Best step, temperature {routes.temperature:.4g}.'
    shown.append(Block(title, 'svg', draw_routes(routes), caption, folded=len(shown) > 0))
  moving = next((steps[replica] for replica in several if len(steps.get(replica, ())) > 1), None)
  if moving:
    content = base64.b64encode(routes_gif(moving)).decode('ascii')
    shown.append(Block('Routes over training', 'gif', content,
                       f'{_CAPTION}All evaluations; tasks in the order of the last.', folded=True))
  return shown
