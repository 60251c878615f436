"""The heat map of merge weights."""

from __future__ import annotations

import matplotlib.image
import numpy as np

from pemt_jax.reports.heatmap import HEAT_MAP, write_heat_map


def test_the_picture_shows_large_weights_in_red_and_small_ones_in_blue(tmp_path):
  path = tmp_path / 'new' / HEAT_MAP
  weights = np.array([[0.0, 1.0], [0.0, 1.0]])
  write_heat_map(path, weights, ['first', 'second'], ['a', 'b'], dpi=100)
  pixels = matplotlib.image.imread(path)
  assert pixels.shape[:2] == (480, 640)
  red, _, blue = pixels[150, 200, :3]
  assert blue > 0.6 > red  # left column
  red, _, blue = pixels[150, 400, :3]
  assert red > 0.6 > blue
  assert [file.name for file in path.parent.iterdir()] == [HEAT_MAP]
