"""Few-shot tuning of gym tasks: for each draw a grid of rates and batch sizes, the best on dev.

| below the workdir | content |
|---|---|
| `<task>/result.csv` | a row for each cell of the grid and draw, and the best one of each draw |
| `<task>/<prefix>_predictions.txt` | test predictions of the best cell of a draw |
| `<task>/<seeds>/` | the run of one program: its config, metrics and result |
| `summary.csv`, `result.json` | all tasks |

The replicas of a program share its batches' shapes: a batch with fewer rows gets rows of padding.
"""

from __future__ import annotations

import copy
import dataclasses
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections as mlc
import pandas as pd

from pemt_jax.data import gym_files, gym_table
from pemt_jax.data.gym import GYM_PREFIX
from pemt_jax.evaluation.postprocess import AVERAGE
from pemt_jax.experts import library, tree_files
from pemt_jax.reports import few_shot as tables
from pemt_jax.stages import task_moe_start
from pemt_jax.stages.backbone import Backbone, load_backbone
from pemt_jax.stages.few_shot_config import check_few_shot, set_shared, titles_of
from pemt_jax.stages.rows import ReplicaSpec, replica_specs
from pemt_jax.stages.run import StageResult, run_stage
from pemt_jax.training import lock, records

Prepare = Callable[[mlc.ConfigDict, str, pathlib.Path], mlc.ConfigDict]
_CELLS = 'cells.json'   # scores of a finished program
_EMPTY = 'n/a'          # stands for an empty prediction


@dataclasses.dataclass
class FewShotResult:
  """What few-shot tuning found.

  Attributes:
    config: see `few_shot_config`.
    results: task -> its table, see `reports.few_shot`; scores are fractions.
    seconds: wall-clock time.
  """

  config: mlc.ConfigDict
  results: dict[str, pd.DataFrame]
  seconds: float


def run_few_shot(config: mlc.ConfigDict, workdir: str | pathlib.Path,
                 prepare: Prepare | None = None) -> FewShotResult:
  """Tunes every task; the same command goes on behind the last finished program.

  Args:
    config: see `few_shot_config`.
    workdir: see the table above.
    prepare: (stage config of a task, its title, folder of the task) -> the config to run: what
      depends on the task, such as the expert that it starts from.

  Raises:
    UserError: values that do not fit, tasks or rows that cannot be found; see `run_stage`.
  """
  workdir = records.check_workdir(workdir)
  set_shared(config)
  check_few_shot(config)
  titles = titles_of(config)
  backbone = load_backbone(config.tuned, config.samples[0])
  if config.routed.expert:
    options = task_moe_start.StartOptions(**config.routed)
    prepare = task_moe_start.starter(options, backbone, _is_done)
  with lock.locked(workdir):
    return _run(config, titles, workdir, backbone, prepare)


def _run(config: mlc.ConfigDict, titles: Sequence[str], workdir: pathlib.Path, backbone: Backbone,
         prepare: Prepare | None) -> FewShotResult:
  """Tunes all tasks in a workdir that is this run's own."""
  began, results = time.monotonic(), {}
  for number, title in enumerate(titles, start=1):
    print(f'{title} ({number} of {len(titles)})', flush=True)
    results[title] = _tune(config, title, workdir / title, backbone, prepare)
    tables.summary_of(results).to_csv(workdir / 'summary.csv')
    if config.keep == 'nothing':
      shutil.rmtree(workdir / title / task_moe_start.START, ignore_errors=True)
  result = FewShotResult(config, results, time.monotonic() - began)
  tree_files.write_json(workdir / records.RESULT, {
      'records': _records(results), 'seconds': result.seconds})
  return result


def _tune(config: mlc.ConfigDict, title: str, folder: pathlib.Path, backbone: Backbone,
          prepare: Prepare | None) -> pd.DataFrame:
  """The table of one task; it is written anew behind each program."""
  cells = len(config.learning_rates) * len(config.batch_sizes)
  size = config.replicas // cells
  rows: list[tuple[Any, ...]] = []
  table = tables.result_table(rows)
  for first in range(0, len(config.samples), size):
    seeds = tuple(config.samples[first:first + size])
    own = stage_config(config, title, seeds, folder)
    if prepare is not None:
      own = prepare(own, title, folder)
    rows += _program(config, own, title, _place(folder, own), backbone)
    table = tables.result_table(rows)
    table.to_csv(folder / tables.RESULT, index=False)
  return table


def stage_config(config: mlc.ConfigDict, title: str, seeds: Sequence[int],
                 folder: pathlib.Path) -> mlc.ConfigDict:
  """The config of the stage that tunes a task on some of its draws.

  Args:
    config: see `few_shot_config`.
    title: published name of the task.
    seeds: of the draws.
    folder: of the task.
  """
  own = copy.deepcopy(config.tuned)
  with own.unlocked():
    own.tasks, own.seeds, own.few_shot_by_seed = (GYM_PREFIX + title,), tuple(seeds), True
    own.learning_rates = tuple(config.learning_rates)
    own.batch_sizes = tuple(config.batch_sizes)
    own.data.batch_size = config.batch_sizes[0]
    own.data.cache_dir = own.data.cache_dir or str(folder / 'cache')
  return own


def _place(folder: pathlib.Path, config: mlc.ConfigDict) -> pathlib.Path:
  """Folder of the run of one program."""
  return folder / '_'.join(map(str, config.seeds))


def _is_done(folder: pathlib.Path, config: mlc.ConfigDict) -> bool:
  return (_place(folder, config) / _CELLS).is_file()


def _program(config: mlc.ConfigDict, own: mlc.ConfigDict, title: str, place: pathlib.Path,
             backbone: Backbone) -> list[tuple[Any, ...]]:
  """Rows of the replicas of one program; those of a finished one are read."""
  done = place / _CELLS
  if done.is_file():
    records.write_config(place, own, resumes=True)  # Refuses other settings.
    return [tuple(row) for row in tree_files.read_json(done)]
  result = run_stage(own, place, backbone)
  specs = result.stage.specs
  rows = [_row(own, title, specs[name], values)
          for name, values in result.trained.results.items()]
  _write_predictions(result, rows, place.parent)
  if config.keep == 'nothing':
    for name in ('checkpoints', library.FOLDER):
      shutil.rmtree(place / name, ignore_errors=True)
  records.write_config(place, own, resumes=False)
  tree_files.write_json(done, [list(row) for row in rows])
  return rows


def _row(config: mlc.ConfigDict, title: str, spec: ReplicaSpec,
         values: dict[str, Any]) -> tuple[Any, ...]:
  rate = spec.learning_rate or config.train.learning_rate
  return (prefix_of(config, title, spec.seed), rate, spec.config.data.batch_size,
          values['best_value'] / 100.0, values['final_metrics'][AVERAGE] / 100.0)


def prefix_of(config: mlc.ConfigDict, title: str, seed: int) -> str:
  """Name of a draw: that of its files, or `<task>_<k>_<seed>`."""
  if config.data.source == 'crossfit':
    folder = gym_files.task_folder(config.data.root, title)
    return gym_files.choose_prefix(gym_files.prefixes(folder, title), config.data.prefix, seed,
                                   folder)
  entry = gym_table.entries()[title]
  by_label = entry.kind == 'classification' and config.data.few_shot_per_class
  return f'{title}_{by_label or config.data.few_shot or entry.shots}_{seed}'


def _write_predictions(result: StageResult, rows: Sequence[tuple[Any, ...]],
                       folder: pathlib.Path) -> None:
  """Writes the test predictions of the best cell of each draw, a line for each row."""
  best = tables.best_rows(tables.result_table(rows))
  names = {row[:3]: name for row, name in zip(rows, result.stage.specs, strict=True)}
  for prefix, rate, size in best[['prefix', 'lr', 'bsz']].itertuples(index=False):
    texts, _ = result.stage.evaluator.latest[names[prefix, rate, size], 'test']
    lines = [' '.join(text.split()) or _EMPTY for text in texts]
    (folder / f'{prefix}_predictions.txt').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def _records(results: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
  """Test scores of the best cells in percent, as reports read them."""
  return [{'task': title, 'method': 'few-shot tuning', 'metric': 'test score',
           'value': 100.0 * row.test_performance, 'replica': f'{title}-seed{seed}'}
          for title, table in results.items()
          for seed, row in enumerate(tables.best_rows(table).itertuples(index=False))]
