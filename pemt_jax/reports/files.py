"""What a report reads from a workdir.

Every stage folder (the workdir itself or a folder below it) may hold:

`result.json`: an object. Its entry `records`, a list of {task, method, value, metric, replica}
  (the last two optional), becomes tables of task x method, mean and spread over replicas. Its entry
  `replicas`, an object of one object per replica, becomes tables of replica x number, one for
  the plain numbers and one for each inner object; names that differ by their ending `-seed<n>`
  only are repetitions. Other numbers are listed.
`metrics.jsonl`: one object per line: `step`, optionally `replica`, and numbers by metric name.
`config.json`, `environment.json`: objects, shown as they are.
`gates.npz`: mean gate weights.
  `sources` [source] names; `replicas` [replica] names; `targets` [replica] names of target tasks
  (optional, default `replicas`); `encoder` and `decoder` [replica, layer, source] weights, either
  may be absent.
`correlation.npz`: `matrix` [row, column]; `rows` [row] names; `columns` [column] names (optional,
  default `rows`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from pemt_jax.errors import UserError

PARTS = ('result.json', 'metrics.jsonl', 'config.json', 'environment.json')
EXTRAS = ('gates.npz', 'correlation.npz')
# Folders that hold arrays or written reports, never a stage.
_NO_STAGE = {'experts', 'checkpoint', 'checkpoints', 'best', 'report', 'tensorboard', 'cache'}


@dataclasses.dataclass(frozen=True)
class Gates:
  """Mean gate weights of many runs; `stacks` maps encoder and decoder to [replica, layer, source].
  """

  sources: tuple[str, ...]
  targets: tuple[str, ...]
  stacks: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Correlation:
  """A matrix [row, column] with the names of its rows and columns."""

  rows: tuple[str, ...]
  columns: tuple[str, ...]
  matrix: np.ndarray


@dataclasses.dataclass
class Stage:
  """What one stage folder holds; a part that is absent is None and named in `missing`."""

  name: str
  result: Any = None
  metrics: list[dict[str, Any]] | None = None
  config: Any = None
  environment: Any = None
  gates: Gates | None = None
  correlation: Correlation | None = None
  missing: list[str] = dataclasses.field(default_factory=list)


def read_workdir(workdir: str | os.PathLike[str]) -> list[Stage]:
  """Reads all stages of a workdir, in the order of their folder names.

  Raises:
    UserError: the folder does not exist, holds no run, or holds a file that cannot be read.
  """
  root = pathlib.Path(workdir)
  if not root.is_dir():
    raise UserError(f"Folder '{root}' given by --workdir does not exist; give the folder of a run.")
  stages = [read_stage(folder, root) for folder in _stage_folders(root)]
  if not stages:
    raise UserError(f"Folder '{root}' given by --workdir holds no run (no result.json and no "
                    'metrics.jsonl below it); give the --workdir of launch/train.py.')
  return stages


def _stage_folders(root: pathlib.Path) -> list[pathlib.Path]:
  found = []
  for folder, inner, names in os.walk(root):
    inner[:] = sorted(name for name in inner if name not in _NO_STAGE and name[0] != '.')
    if {'result.json', 'metrics.jsonl'} & set(names):
      found.append(pathlib.Path(folder))
  return found


def read_stage(folder: pathlib.Path, root: pathlib.Path) -> Stage:
  """Reads one stage folder below `root`.

  Raises:
    UserError: a file is there but cannot be read.
  """
  name = str(folder.relative_to(root))
  stage = Stage(name='' if name == '.' else name)
  readers = {'result.json': read_json, 'metrics.jsonl': read_metrics, 'config.json': read_json,
             'environment.json': read_json, 'gates.npz': read_gates,
             'correlation.npz': read_correlation}
  for part, reader in readers.items():
    path = folder / part
    if path.exists():
      setattr(stage, part.split('.')[0], reader(path))
    else:
      stage.missing.append(part)
  return stage


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: the file is not JSON.
  """
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise UserError(f"File '{path}' is not JSON ({error}); run its stage again.") from None


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads a metrics file; a last line that an interruption cut short is left out.

  Raises:
    UserError: another line is no JSON object with a `step`.
  """
  lines = path.read_text(encoding='utf-8').split('\n')
  rows = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError:
      if number == len(lines):
        break
      row = None
    if not isinstance(row, dict) or 'step' not in row:
      raise UserError(f"Line {number} of '{path}' is no JSON object with a step; "
                      'remove the line or run the stage again.')
    rows.append(row)
  return rows


def _arrays(path: pathlib.Path, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as archive:
      arrays = dict(archive)
  except (ValueError, OSError) as error:
    raise UserError(f"File '{path}' holds no plain arrays ({error}); write it again.") from None
  for name in needed:
    if name not in arrays:
      raise UserError(f"File '{path}' lacks the array '{name}'; it has {', '.join(arrays)}.")
  return arrays


def _check(path: pathlib.Path, name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> None:
  fits = len(shape) == array.ndim and all(
      want in (None, have) for want, have in zip(shape, array.shape))
  if not fits:
    wanted = ', '.join('any' if size is None else str(size) for size in shape)
    raise UserError(f"Array '{name}' of '{path}' has shape {list(array.shape)}; "
                    f'it must have [{wanted}].')


def _names(array: np.ndarray) -> tuple[str, ...]:
  return tuple(str(name) for name in np.ravel(array))


def read_gates(path: pathlib.Path) -> Gates:
  """Reads `gates.npz` (see the module's docstring).

  Raises:
    UserError: an array is missing or misshaped.
  """
  arrays = _arrays(path, ('sources', 'replicas'))
  sources, replicas = _names(arrays['sources']), _names(arrays['replicas'])
  targets = _names(arrays.get('targets', arrays['replicas']))
  stacks = {name: arrays[name] for name in ('encoder', 'decoder') if name in arrays}
  if not stacks:
    raise UserError(f"File '{path}' lacks the arrays 'encoder' and 'decoder'; it needs one of "
                    'them.')
  for name, array in stacks.items():
    _check(path, name, array, (len(replicas), None, len(sources)))
  _check(path, 'targets', np.asarray(targets), (len(replicas),))
  return Gates(sources, targets, stacks)


def read_correlation(path: pathlib.Path) -> Correlation:
  """Reads `correlation.npz` (see the module's docstring).

  Raises:
    UserError: an array is missing or misshaped.
  """
  arrays = _arrays(path, ('matrix', 'rows'))
  rows = _names(arrays['rows'])
  columns = _names(arrays.get('columns', arrays['rows']))
  _check(path, 'matrix', arrays['matrix'], (len(rows), len(columns)))
  return Correlation(rows, columns, arrays['matrix'])


def save_gates(path: str | os.PathLike[str], gates: Gates, replicas: list[str]) -> None:
  """Writes `gates.npz` for a report.

  Args:
    path: the file.
    gates: weights, sources and target of each replica.
    replicas: [replica] names.
  """
  np.savez(path, sources=list(gates.sources), targets=list(gates.targets), replicas=replicas,
           **gates.stacks)


def save_correlation(path: str | os.PathLike[str], correlation: Correlation) -> None:
  """Writes `correlation.npz` for a report."""
  np.savez(path, rows=list(correlation.rows), columns=list(correlation.columns),
           matrix=correlation.matrix)
