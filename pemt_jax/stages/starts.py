"""Experts that training starts from: merged deltas, or experts of other tasks."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.experts.library import CARD, FOLDER, check_backbone, load_expert
from pemt_jax.models.segments import join_shapes
from pemt_jax.stages.prompts import left_pad, prompt_place
from pemt_jax.trees import Tree, flatten, unflatten

WITHOUT = 'without_'  # a merge that leaves a task out carries the task's name behind this


def start_folder(start: str, task: str) -> pathlib.Path:
  """Folder of the expert that a task starts from.

  Args:
    start: folder of an expert, or a folder or run with one `without_<task>` for each task.
    task: canonical name.

  Raises:
    UserError: no expert there.
  """
  folder, name = pathlib.Path(start), WITHOUT + task.replace('/', '-')
  for place in (folder, folder / name, folder / FOLDER / name):
    if (place / CARD).is_file():
      return place
  raise UserError(f"config.starts holds '{start}', which is neither an expert nor a folder with an"
                  f" expert '{name}'; give a folder that launch/merge.py or a stage wrote.")


def start_values(folder: pathlib.Path, backbone: tuple[str, str], shapes: Tree,
                 adapt: Callable[[Tree, Tree], Tree] | None = None,
                 only: Sequence[str] = ()) -> tuple[Tree, Tree]:
  """Values of the expert as the first (tuned, constants) of a run.

  Args:
    folder: of the expert.
    backbone: name and hash of the backbone in use.
    shapes: tuned shapes of the run, canonical or cut into segments; prompts may be padded.
    adapt: see `Method.adapt_start`.
    only: patterns of the whole paths of the leaves to take; () takes all.

  Returns:
    Canonical trees of NumPy arrays.

  Raises:
    UserError: an expert of another backbone, of other places or of other sizes; a pattern that no
      leaf has.
  """
  tuned, constants, card = _load(folder)
  check_backbone(card, *backbone)
  expected = flatten(join_shapes(shapes))
  if adapt is not None:
    tuned = adapt(tuned, unflatten(expected))
  flat, state = flatten(tuned), flatten(constants)
  place = prompt_place(flat)
  table = f'{place}/table'
  if table in flat and len(flat[table]) <= getattr(expected.get(table), 'shape', (0,))[0]:
    flat[table], state[f'{place}/mask'] = left_pad(flat[table], expected[table].shape[0])
  flat = {path: np.asarray(leaf, np.float32) for path, leaf in flat.items()}
  for pattern in only:
    if not any(re.fullmatch(pattern, path) for path in flat | state):
      raise UserError(f"config.start_only has '{pattern}', which no leaf of '{folder}' has; correct"
                      ' it.')
  if only:
    flat, state, expected = (_chosen(leaves, only) for leaves in (flat, state, expected))
  tree_files.check_description(tree_files.describe(unflatten(flat)),
                               tree_files.describe(unflatten(expected)), folder)
  return unflatten(flat), unflatten(state)


def _chosen(leaves: dict[str, Any], patterns: Sequence[str]) -> dict[str, Any]:
  return {path: leaf for path, leaf in leaves.items()
          if any(re.fullmatch(pattern, path) for pattern in patterns)}


@functools.lru_cache(maxsize=64)
def _load(folder: pathlib.Path):
  return load_expert(folder)
