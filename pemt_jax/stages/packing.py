"""Experts with masks as small folders: bits in place of scores."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import jax

from pemt_jax.errors import UserError
from pemt_jax.experts.masked import score_axes
from pemt_jax.experts.packed import save_packed
from pemt_jax.stages.artefacts import open_expert
from pemt_jax.trees import flatten


def pack_expert(source: str | os.PathLike, target: str | os.PathLike,
                dtype: str = 'float32') -> pathlib.Path:
  """Writes an expert again, with one bit for each entry of its masks.

  Predictions stay the same under 'float32'; scores, which only further training needs, are lost.

  Args:
    source: folder of the expert.
    target: folder to write; one that is there is replaced.
    dtype: of its floats, 'float32' or 'bfloat16'.

  Returns:
    The folder.

  Raises:
    UserError: an expert without masks, an unknown dtype, or one that cannot be opened.
  """
  loaded = open_expert(source)
  plan, tuned = loaded.stage.method.plan, jax.tree.map(lambda leaf: leaf[0], loaded.tuned)
  if not any(score_axes(path, plan) for path in flatten(tuned)):
    raise UserError(f"expert '{loaded.card.name}' has no masks; only those of propetl have.")
  save_packed(target, tuned, dataclasses.replace(loaded.card), plan, dtype)
  return pathlib.Path(target)
