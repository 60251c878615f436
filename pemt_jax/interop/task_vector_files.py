"""Folders of task vectors as the task-level mixture of experts keeps them (Ye et al. 2022).

`id2task.json` is {"0": name, ...}; `task_vecs.npy` is [task, width].
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

from pemt_jax import guards
from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.experts.task_vectors import TaskVectors
from pemt_jax.interop import files

NAMES, VECTORS = 'id2task.json', 'task_vecs.npy'


def _names(path: pathlib.Path) -> tuple[str, ...]:
  found = tree_files.read_json(path)
  if not isinstance(found, dict):
    raise UserError(f"'{path}' holds no object that numbers its tasks; give one such as"
                    ' {"0": "glue-rte", "1": "glue-sst2"}.')
  ids = [str(i) for i in range(len(found))]
  if set(found) != set(ids):
    raise UserError(f"'{path}' does not number its tasks from 0 to {len(found) - 1}; give an object"
                    ' such as {"0": "glue-rte", "1": "glue-sst2"}.')
  names = tuple(found[i] for i in ids)
  twice = [name for name in names if not isinstance(name, str) or names.count(name) > 1]
  if twice:
    raise UserError(f"'{path}' names {json.dumps(twice[0])} twice or not as a text; give each task"
                    ' a name of its own.')
  return names


def _vectors(path: pathlib.Path) -> np.ndarray:
  if not path.is_file():
    raise UserError(f"'{path.parent}' has no {path.name}; give a folder with {NAMES} and"
                    f' {VECTORS}.')
  try:
    found = guards.load_arrays(path)
  except (OSError, ValueError) as error:
    raise UserError(f"'{path}' is no array file ({error}); write it with numpy.save.") from error
  if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != 'f':
    raise UserError(f"'{path}' is no matrix of floating numbers; give one row for each task.")
  if not np.all(np.isfinite(found)):
    row = int(np.argwhere(~np.isfinite(found))[0][0])
    raise UserError(f"'{path}' has a number that is not finite in row {row}; compute it again.")
  return found.astype(np.float32)


def read_task_vectors(folder: str | pathlib.Path) -> TaskVectors:
  """Reads a folder of task vectors.

  Raises:
    UserError: a file is missing, or its content is not what the layout says.
  """
  folder = pathlib.Path(folder)
  vectors, names = _vectors(folder / VECTORS), _names(folder / NAMES)
  if len(names) != len(vectors):
    raise UserError(f"'{folder}' names {len(names)} tasks in {NAMES} and has {len(vectors)} rows in"
                    f' {VECTORS}; give one row for each task.')
  return TaskVectors(names, vectors)


def write_task_vectors(folder: str | pathlib.Path, vectors: TaskVectors) -> None:
  """Writes a folder of task vectors; each file in one move."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  tree_files.write_json(folder / NAMES, {str(i): name for i, name in enumerate(vectors.names)})
  with files.replacing(folder / VECTORS) as temporary, open(temporary, 'wb') as file:
    np.save(file, np.asarray(vectors.vectors, np.float32))
