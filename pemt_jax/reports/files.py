"""What a report reads from a workdir.

Every stage folder (the workdir itself or a folder below it) may hold:

`result.json`: an object.
  `records`, a list of {task, method, value, metric, replica} (the last two optional), becomes one
  table of task x method per metric, mean and spread over replicas.
  `replicas`, an object of one object per replica, becomes tables of replica x number, one for
  the plain numbers and one for each inner object; names that differ by their ending `-seed<n>`
  only are repetitions.
  `tables`, a list of {title, corner, columns, rows, caption} with rows {name, cells: {column: text
  or number}}, is shown as it is; `corner` and `caption` are optional.
  `figures`, a list of {file, title} of PNG files below the folder, is shown as it is.
  Other numbers are listed.
`metrics.jsonl`: one object per line: `step`, optionally `replica`, and numbers by metric name.
`config.json`, `environment.json`: objects, compared between runs and shown as they are.
`times.json`: seconds by phase of the loop.
`resources.json`, `parameters.json`: numbers: seconds and memory of the last call; sizes.
`gates.npz`: mean gate weights.
  `sources` [source] names; `replicas` [replica] names; `targets` [replica] names of target tasks
  (optional, default `replicas`); `encoder` and `decoder` [replica, layer, source] weights, either
  may be absent.
`load.npz`: the same of the share of tokens that each expert of a layer gets.
`correlation.npz`: `matrix` [row, column]; `rows` [row] names; `columns` [column] names (optional,
  default `rows`).
`routes.npz`: routes of tasks over experts, one row for each replica and task.
  `replicas`, `tasks`, `categories`, `groups` [row] names, the latter two of an ontology;
  `layers` [layer] names such as `encoder/0` and `routed` [layer], whether it has experts;
  `routes` and `routes_t1` [row, layer, expert] at the run's temperature and at 1; `temperatures`
  [row].
`routes/<step>.npz`: the same at every evaluation.
`masks.npz`: overlap (Jaccard) and density of masks.
  `replicas` [replica] names; `matrices` [matrix] names, the first '' for all together; for each
  owner out of `task`, `language`, `layer` that has masks its name with the names [member],
  `<owner>_overlap` [replica, matrix, member, member], `<owner>_density` [replica, matrix, member];
  `task_layer_overlap` [replica, matrix, task, layer] (optional); `joined` [replica, row, column]
  share of entries that a layer uses for a task, `joined_rows`, `joined_columns` their names;
  `expected` [replica] overlap by chance.

A run that trained its replicas one by one has `metrics.jsonl` and `times.json` in each folder of
`replicas/`; they are read as those of the run.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from pemt_jax import guards
from pemt_jax.errors import UserError
from pemt_jax.reports.arrays import check_shape, names_of, read_arrays
from pemt_jax.reports.route_files import ROUTE_STEPS, ROUTES, Routes, read_route_steps, read_routes

PARTS = ('result.json', 'metrics.jsonl', 'config.json', 'environment.json')
EXTRAS = ('gates.npz', 'load.npz', 'correlation.npz', 'masks.npz', ROUTES, 'times.json',
          'resources.json', 'parameters.json')
MASK_OWNERS = ('task', 'language', 'layer')
# Folders that hold arrays or written reports, never a stage.
_NO_STAGE = {'experts', 'checkpoint', 'checkpoints', 'best', 'report', 'tensorboard', 'cache',
             'predictions', 'sources', 'backbone', ROUTE_STEPS}
_ONE_BY_ONE = 'replicas'
_PNG = b'\x89PNG\r\n\x1a\n'


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


@dataclasses.dataclass(frozen=True)
class MaskOverlaps:
  """Overlaps and densities of masks, means over replicas; see `masks.npz` above.

  `across` is [matrix, task, layer] or None; `joined` has the names of its rows and columns.
  """

  matrices: tuple[str, ...]
  members: dict[str, tuple[str, ...]]
  overlaps: dict[str, np.ndarray]
  densities: dict[str, np.ndarray]
  across: np.ndarray | None
  joined: Correlation
  expected: float


@dataclasses.dataclass
class Stage:
  """What one stage folder holds; a part that is absent is None and named in `missing`.

  `routes` maps replicas to their best routes, `route_steps` to those of all evaluations by step;
  `figures` holds the titles and the content of the PNG files that result.json names.
  """

  name: str
  result: Any = None
  metrics: list[dict[str, Any]] | None = None
  config: Any = None
  environment: Any = None
  gates: Gates | None = None
  load: Gates | None = None
  correlation: Correlation | None = None
  masks: MaskOverlaps | None = None
  routes: dict[str, Routes] | None = None
  route_steps: dict[str, dict[int, Routes]] = dataclasses.field(default_factory=dict)
  times: Any = None
  resources: Any = None
  parameters: Any = None
  figures: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)
  missing: list[str] = dataclasses.field(default_factory=list)


def read_workdir(workdir: str | os.PathLike[str], option: str = '--workdir') -> list[Stage]:
  """Reads all stages of a workdir, in the order of their folder names.

  Args:
    workdir: the folder.
    option: of the command that gives it, for messages.

  Raises:
    UserError: the folder does not exist, holds no run, or holds a file that cannot be read.
  """
  root = pathlib.Path(workdir)
  if not root.is_dir():
    raise UserError(f"Folder '{root}' given by {option} does not exist; give the folder of a run.")
  stages = [read_stage(folder, root) for folder in _stage_folders(root)]
  if not stages:
    raise UserError(f"Folder '{root}' given by {option} holds no run (no result.json and no "
                    'metrics.jsonl below it); give the --workdir of launch/train.py.')
  return stages


def _stage_folders(root: pathlib.Path) -> list[pathlib.Path]:
  found = []
  for folder, inner, names in os.walk(root):
    inner[:] = sorted(name for name in inner if name not in _NO_STAGE and name[0] != '.')
    parts = _replica_folders(pathlib.Path(folder)) if 'config.json' in names else []
    if parts:
      inner.remove(_ONE_BY_ONE)
    if parts or {'result.json', 'metrics.jsonl'} & set(names):
      found.append(pathlib.Path(folder))
  return found


def _replica_folders(folder: pathlib.Path) -> list[pathlib.Path]:
  """Folders of replicas that were trained one by one."""
  return sorted(path.parent for path in folder.glob(f'{_ONE_BY_ONE}/*/metrics.jsonl'))


def read_stage(folder: pathlib.Path, root: pathlib.Path) -> Stage:
  """Reads one stage folder below `root`.

  Raises:
    UserError: a file is there but cannot be read.
  """
  name = str(folder.relative_to(root))
  stage = Stage(name='' if name == '.' else name)
  readers = {**dict.fromkeys(PARTS + EXTRAS, read_json), 'metrics.jsonl': read_metrics,
             'gates.npz': read_gates, 'load.npz': read_gates, 'correlation.npz': read_correlation,
             'masks.npz': read_masks, ROUTES: read_routes}
  for part, reader in readers.items():
    path = folder / part
    if path.exists():
      setattr(stage, part.split('.')[0], reader(path))
    else:
      stage.missing.append(part)
  stage.route_steps = read_route_steps([folder, *_replica_folders(folder)])
  _read_one_by_one(stage, _replica_folders(folder))
  _read_figures(stage, folder)
  return stage


def _read_one_by_one(stage: Stage, folders: list[pathlib.Path]) -> None:
  """Joins metrics and adds seconds of replicas that were trained one by one."""
  if not folders or stage.metrics is not None:
    return
  stage.metrics = [row for folder in folders for row in read_metrics(folder / 'metrics.jsonl')]
  stage.missing.remove('metrics.jsonl')
  for path in (folder / 'times.json' for folder in folders):
    for phase, seconds in (read_json(path) if path.exists() else {}).items():
      stage.times = stage.times or {}
      stage.times[phase] = stage.times.get(phase, 0.0) + seconds
  if stage.times and 'times.json' in stage.missing:
    stage.missing.remove('times.json')


def _read_figures(stage: Stage, folder: pathlib.Path) -> None:
  """Reads the figures that result.json names; those that are no PNG below the folder are missing.
  """
  listed = stage.result.get('figures', []) if isinstance(stage.result, dict) else []
  for entry in listed if isinstance(listed, list) else []:
    name = str(entry.get('file', '')) if isinstance(entry, dict) else str(entry)
    path = (folder / name).resolve()
    content = b''
    if path.is_relative_to(folder.resolve()) and path.is_file():
      content = path.read_bytes()
    if content.startswith(_PNG):
      stage.figures.append((str(entry.get('title', name)), content))
    else:
      stage.missing.append(name)


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: the file is not JSON, or too large.
  """
  return guards.read_json(path, 'run its stage again')


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads a metrics file; a last line that an interruption cut short is left out.

  Raises:
    UserError: another line is no JSON object with a `step`.
  """
  lines = guards.read_text(path, path.stat().st_size).split('\n')
  rows = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = guards.parse_json(line, finite=False)
    except ValueError:
      if number == len(lines):
        break
      row = None
    if not isinstance(row, dict) or 'step' not in row:
      raise UserError(f"Line {number} of '{path}' is no JSON object with a step; "
                      'remove the line or run the stage again.')
    rows.append(row)
  return rows


def read_gates(path: pathlib.Path) -> Gates:
  """Reads `gates.npz` (see the module's docstring).

  Raises:
    UserError: an array is missing or misshaped.
  """
  arrays = read_arrays(path, ('sources', 'replicas'))
  sources, replicas = names_of(arrays['sources']), names_of(arrays['replicas'])
  targets = names_of(arrays.get('targets', arrays['replicas']))
  stacks = {name: arrays[name] for name in ('encoder', 'decoder') if name in arrays}
  if not stacks:
    raise UserError(f"File '{path}' lacks the arrays 'encoder' and 'decoder'; it needs one of "
                    'them.')
  for name, array in stacks.items():
    check_shape(path, name, array, (len(replicas), None, len(sources)))
  check_shape(path, 'targets', np.asarray(targets), (len(replicas),))
  return Gates(sources, targets, stacks)


def read_correlation(path: pathlib.Path) -> Correlation:
  """Reads `correlation.npz` (see the module's docstring).

  Raises:
    UserError: an array is missing or misshaped.
  """
  arrays = read_arrays(path, ('matrix', 'rows'))
  rows = names_of(arrays['rows'])
  columns = names_of(arrays.get('columns', arrays['rows']))
  check_shape(path, 'matrix', arrays['matrix'], (len(rows), len(columns)))
  return Correlation(rows, columns, arrays['matrix'])


def read_masks(path: pathlib.Path) -> MaskOverlaps:
  """Reads `masks.npz` (see the module's docstring); means over replicas.

  Raises:
    UserError: an array is missing or misshaped.
  """
  arrays = read_arrays(path, ('replicas', 'matrices', 'joined', 'joined_rows', 'joined_columns',
                              'expected'))
  matrices, count = names_of(arrays['matrices']), len(arrays['replicas'])
  members = {owner: names_of(arrays[owner]) for owner in MASK_OWNERS if owner in arrays}

  def mean(name, *shape):
    if name not in arrays:
      raise UserError(f"File '{path}' lacks the array '{name}'; it has {', '.join(arrays)}.")
    check_shape(path, name, arrays[name], (count, *shape))
    return arrays[name].mean(axis=0)

  sizes = {owner: len(names) for owner, names in members.items()}
  overlaps = {owner: mean(f'{owner}_overlap', len(matrices), size, size)
              for owner, size in sizes.items()}
  densities = {owner: mean(f'{owner}_density', len(matrices), size)
               for owner, size in sizes.items()}
  across = (mean('task_layer_overlap', len(matrices), sizes.get('task'), sizes.get('layer'))
            if 'task_layer_overlap' in arrays else None)
  names = [names_of(arrays[f'joined_{axis}']) for axis in ('rows', 'columns')]
  joined = Correlation(*names, mean('joined', *map(len, names)))
  return MaskOverlaps(matrices, members, overlaps, densities, across, joined,
                      float(arrays['expected'].mean()))


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
