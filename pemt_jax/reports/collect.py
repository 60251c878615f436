"""Scores of many runs put together: mean and spread over seeds, whatever folders they lie in.

Two kinds of folders are read: runs of this library (see `files`), and those of the published
single-task scripts, `<task>/<experiment>/test_results.json` with entries `eval_<metric>`, which are
fractions. `seed42`, `sd_42` and their like in the name of a folder tell repetitions apart.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Sequence

from pemt_jax import guards
from pemt_jax.errors import UserError
from pemt_jax.reports import compare, files, latex, sections, tables
from pemt_jax.reports.tables import Record

PUBLISHED = 'test_results.json'
# Metrics whose values make up the published mean over GLUE.
GLUE_METRICS = ('accuracy', 'f1', 'matthews_correlation', 'pearson', 'spearmanr')
VALUES = 'all values'
_SEED = re.compile(r'[-_./]?\b(?:seed|sd)[-_=]?(\d+)', re.IGNORECASE)
_NOT_SCORES = ('loss', 'runtime', 'samples', 'steps', 'combined_score', 'epoch')


def without_seed(name: str) -> tuple[str, str]:
  """Splits a name such as `lora.sd_42.r8` into `lora.r8` and `seed42`; '' where there is none."""
  found = _SEED.search(name)
  if not found:
    return name, ''
  rest = name[:found.start()] + name[found.end():]
  return rest.strip('-_./') or name, f'seed{found[1]}'


def collect(root: str | pathlib.Path) -> list[Record]:
  """Returns what all runs below a folder scored.

  Args:
    root: folder of runs.

  Raises:
    UserError: there is no run, or a file cannot be read.
  """
  root = pathlib.Path(root)
  published = sorted(root.rglob(PUBLISHED)) if root.is_dir() else []
  records = [record for path in published for record in _published(path, root)]
  if published:
    return records
  for stage in files.read_workdir(root, '--runs'):
    records += _of_run(stage, stage.name or root.resolve().name)
  if not records:
    raise UserError(f"The runs below '{root}' have no scores yet; wait until one has ended.")
  return records


def _published(path: pathlib.Path, root: pathlib.Path) -> Iterable[Record]:
  parts = path.relative_to(root).parts[:-1]
  if len(parts) < 2:
    raise UserError(f"File '{path}' does not lie in <task>/<experiment>/ below '{root}'; give the "
                    'folder that holds the folders of the tasks.')
  method, seed = without_seed('/'.join(parts[1:]))
  found = files.read_json(path)
  for key, value in found.items() if isinstance(found, dict) else ():
    metric = key.removeprefix('eval_')
    if key != metric and not any(word in metric for word in _NOT_SCORES):
      yield Record(parts[0], method, 100.0 * float(value), metric, seed)


def _of_run(stage: files.Stage, name: str) -> list[Record]:
  """Records of a run, or the final metrics of its replicas."""
  method, seed = without_seed(name)
  result = stage.result if isinstance(stage.result, dict) else {}
  listed = sections.records_of(stage) if result.get('records') else [
      _by_task(record) for record in compare.score_records({name: stage})]
  return [Record(record.task, method if record.method == name else f'{method}: {record.method}',
                 record.value, record.metric, _repetition(record.replica, seed))
          for record in listed]


def _by_task(record: Record) -> Record:
  """A mixture's `<task>/<metric>` as a record of that task, named as replicas are."""
  task, _, metric = record.metric.rpartition('/')
  return dataclasses.replace(record, task=task.replace('/', '-') or record.task, metric=metric)


def _repetition(replica: str, seed: str) -> str:
  """Name of a repetition, equal for all tasks of a seed."""
  own = without_seed(replica)[1] or (replica if re.fullmatch(r'\d+', replica) else '')
  return '-'.join(filter(None, (own, seed)))


def value_table(records: Sequence[Record], metrics: Sequence[str] = GLUE_METRICS
                ) -> tables.Table | None:
  """One row for each task and metric; the last row is the mean over all of them.

  Args:
    records: scores.
    metrics: those that take part.

  Returns:
    None where no record has one of the metrics.
  """
  chosen = [Record(f'{record.task} {record.metric}', record.method, record.value, VALUES,
                   record.replica) for record in records if record.metric in metrics]
  return tables.tables_of(chosen)[0] if chosen else None


def write_tables(root: str | pathlib.Path, output: str | pathlib.Path,
                 metrics: Sequence[str] = GLUE_METRICS) -> list[tables.Table]:
  """Writes tables.md, tables.tex and tables.json, and returns the tables.

  The first table has all values of the metrics, the others one metric each, task x method.

  Args:
    root: see `collect`.
    output: folder, made where it is not there.
    metrics: of the first table.

  Raises:
    UserError: see `collect`.
  """
  output = pathlib.Path(output)
  with guards.reading(root):
    records = collect(root)
    first = value_table(records, metrics)
    found = [*([first] if first else []), *tables.tables_of(records)]
  output.mkdir(parents=True, exist_ok=True)
  markdown = [f'## {table.title}\n\n{tables.to_markdown(table, marked=True)}' for table in found]
  (output / 'tables.md').write_text('\n'.join(markdown), encoding='utf-8')
  (output / 'tables.tex').write_text(latex.document(found), encoding='utf-8')
  (output / 'tables.json').write_text(
      json.dumps([tables.to_json(table) for table in found], indent=1) + '\n', encoding='utf-8')
  return found
