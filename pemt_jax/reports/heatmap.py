"""The published heat map of merge weights as a PNG file."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np

HEAT_MAP = 'hot_pic_all.png'
_INCHES = (6.4, 4.8)


def write_heat_map(path: str | os.PathLike, weights: np.ndarray, targets: Sequence[str],
                   sources: Sequence[str], dpi: int = 600) -> None:
  """Draws weights, targets from top to bottom and sources from left to right, in one move.

  Args:
    path: PNG file; its folder is made.
    weights: [target, source], 0 where a target leaves its own source out.
    targets: names of rows.
    sources: names of columns.
    dpi: dots per inch of a picture of 6.4 x 4.8 inches.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=_INCHES)
  axes = figure.add_subplot()
  image = axes.imshow(weights, cmap='coolwarm', origin='upper', aspect='auto')
  figure.colorbar(image)
  axes.set_xlabel('ckpt', fontsize=7)
  axes.set_ylabel('task', fontsize=7)
  axes.set_xticks(range(len(sources)), sources, fontsize=5, rotation=80, ha='right')
  axes.set_yticks(range(len(targets)), targets, fontsize=5)
  figure.subplots_adjust(top=0.99, bottom=0.24, left=0.24, right=0.99)
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    figure.savefig(temporary, format='png', dpi=dpi)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
