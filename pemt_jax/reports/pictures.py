"""Pictures as inline SVG that takes its colours of ink and grid from the page around it."""

from __future__ import annotations

import hashlib
import io
import re
from typing import Any

import numpy as np

WIDTH = 10.2  # inches, the column of the page
COLOURS = ('#3b7dd8', '#e07b28', '#2f9e6e', '#b455b0', '#a98a1c', '#d64558', '#2aa5b8', '#8a7f78',
           '#7a6ff0', '#86a82a')
# Placeholders of colours that the page decides; see `to_svg`.
INK, GRID = '#0a0b0c', '#0d0e0f'
_PAGE_COLOURS = {INK: 'currentColor', GRID: 'var(--grid)'}
_SETTINGS = {'svg.fonttype': 'none', 'svg.hashsalt': 'report', 'font.family': 'sans-serif',
             'font.sans-serif': ['DejaVu Sans'], 'font.size': 8, 'axes.edgecolor': INK,
             'axes.labelcolor': INK, 'text.color': INK, 'xtick.color': INK, 'ytick.color': INK,
             'axes.facecolor': 'none', 'figure.facecolor': 'none', 'axes.linewidth': 0.5,
             'text.parse_math': False}  # a dollar in a name is a dollar


def settings() -> Any:
  """Context in which figures of a report are made and written."""
  import matplotlib

  return matplotlib.rc_context(_SETTINGS)


def axes_grid(width: float, height: float, rows: int = 1,
              columns: int = 1) -> tuple[Any, np.ndarray]:
  """A figure of `width` x `height` inches and its axes [row, column]."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout='constrained')
  return figure, figure.subplots(rows, columns, squeeze=False)


def plain(axes: Any, grid: str = 'both') -> None:
  """Takes away what a panel does not need; `grid` is 'x', 'y', 'both' or ''."""
  for side in ('top', 'right', *(('left',) if grid == 'x' else ())):
    axes.spines[side].set_visible(False)
  axes.tick_params(labelsize=7, length=2, width=0.5)
  if grid:
    axes.grid(color=GRID, linewidth=0.6, axis=grid)
  axes.set_axisbelow(True)


def to_svg(figure: Any, title: str) -> str:
  """Writes a figure as an `<svg>` element.

  Ids are made unique to the picture, so that several pictures can stand in one page.

  Args:
    figure: a matplotlib figure.
    title: text that stands for the picture.
  """
  buffer = io.StringIO()
  figure.savefig(buffer, format='svg', metadata={'Date': None}, transparent=True)
  text = buffer.getvalue()
  text = text[text.index('<svg'):]
  text = re.sub(r'<metadata>.*?</metadata>\s*', '', text, flags=re.S)
  text = re.sub(r'\s*<style type="text/css">.*?</style>', '', text, flags=re.S)
  prefix = f'p{hashlib.sha256(text.encode()).hexdigest()[:8]}-'
  used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
  text = re.sub(r' id="([^"]+)"',
                lambda found: f' id="{prefix}{found[1]}"' if found[1] in used else '', text)
  text = re.sub(r'(href="#|url\(#)', lambda found: found[1] + prefix, text)
  for placeholder, colour in _PAGE_COLOURS.items():
    text = text.replace(placeholder, colour)
  text = text.replace("'DejaVu Sans', sans-serif", 'inherit').replace("'DejaVu Sans'", 'inherit')
  label = title.replace('&', '&amp;').replace('"', '&quot;').replace('<', '&lt;')
  wide = ' class="wide"' if figure.get_figwidth() == WIDTH else ''
  return text.replace('<svg ', f'<svg role="img" aria-label="{label}"{wide} ', 1)
