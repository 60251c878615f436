"""The report of a workdir: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from pemt_jax import __version__
from pemt_jax.errors import UserError
from pemt_jax.reports import files
from pemt_jax.reports import plots
from pemt_jax.reports import tables

_TEMPLATE = 'report.html'
_WHY = {
    'result.json': 'no final result: the stage has not ended',
    'metrics.jsonl': 'no metrics over time: no learning curves',
    'config.json': 'no resolved config',
    'environment.json': 'no description of the environment',
    'gates.npz': 'no gate weights: no gate heat maps',
    'correlation.npz': 'no task correlation: no matrix',
}


@dataclasses.dataclass(frozen=True)
class Figure:
  """A picture of the report, in base64, with the text that stands for it."""

  title: str
  png: str


@dataclasses.dataclass(frozen=True)
class Section:
  """What the report shows of one stage."""

  name: str
  tables: list[tables.Table]
  numbers: dict[str, Any]
  figures: list[Figure]
  config: str | None
  environment: str | None
  notes: list[str]


def write_report(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes `<workdir>/report/`: index.html, tables.md and tables.json.

  Args:
    workdir: folder of a run or of several stages; see `reports.files` for what is read.

  Returns:
    The path of index.html.

  Raises:
    UserError: the folder does not exist, holds no run, or holds a file that cannot be read.
  """
  root = pathlib.Path(workdir)
  sections = [section_of(stage) for stage in files.read_workdir(root)]
  folder = root / 'report'
  folder.mkdir(exist_ok=True)
  listed = [(section, table) for section in sections for table in section.tables]
  text = '\n'.join(f'## {_heading(section.name, table.title)}\n\n{tables.to_markdown(table)}'
                   for section, table in listed)
  data = [{'stage': section.name, **tables.to_json(table)} for section, table in listed]
  _write(folder / 'tables.md', text)
  _write(folder / 'tables.json', json.dumps(data, indent=1, ensure_ascii=False) + '\n')
  _write(folder / 'index.html', render(root.resolve().name, sections))
  return folder / 'index.html'


def section_of(stage: files.Stage) -> Section:
  """Turns what a stage folder holds into tables, figures and notes.

  Raises:
    UserError: `records` or `replicas` of result.json do not have the documented form.
  """
  result = stage.result if isinstance(stage.result, Mapping) else {}
  notes = [f'{part}: {_WHY[part]}.' for part in stage.missing]
  figures = []
  if stage.gates is not None:
    figures += [_figure('Gate weight, target x source', plots.gates_by_target(stage.gates)),
                _figure('Gate weight, source x layer', plots.gates_by_layer(stage.gates))]
  if stage.correlation is not None:
    figures.append(_figure('Task correlation', plots.correlation(stage.correlation)))
  if stage.metrics is not None:
    curves = plots.curves_of(stage.metrics)
    if curves:
      figures.append(_figure('Learning curves', plots.learning_curves(stage.metrics)))
    else:
      notes.append('metrics.jsonl: holds no number yet: no learning curves.')
    _, left = plots.drawn_and_left(list(curves))
    if left:
      notes.append(f'metrics.jsonl: no panel is left for {", ".join(left)}.')
  return Section(stage.name, result_tables(result, stage.name), other_numbers(result), figures,
                 _dumped(stage.config), _dumped(stage.environment), notes)


def result_tables(result: Mapping[str, Any], stage: str = '') -> list[tables.Table]:
  """Tables of a result: one per metric of `records`, then those of `replicas`.

  Args:
    result: content of result.json.
    stage: its folder, for error messages.

  Raises:
    UserError: an entry does not have the documented form.
  """
  names = {field.name for field in dataclasses.fields(tables.Record)}
  try:
    records = [tables.Record(**{name: row[name] for name in names & set(row)})
               for row in result.get('records', [])]
    found = tables.tables_of(records)
    numbers = {replica: flat_numbers(entry)
               for replica, entry in result.get('replicas', {}).items()}
  except (TypeError, AttributeError, KeyError) as error:
    raise UserError(f"File result.json of stage '{stage}' does not have the form that "
                    f'pemt_jax/reports/files.py describes ({error}).') from None
  return found + _replica_tables(numbers)


def _replica_tables(numbers: Mapping[str, Mapping[str, float]]) -> list[tables.Table]:
  """One table for the plain numbers and one for each object among the entries.

  Replicas that differ by their seed share a row.
  """
  groups: dict[str, dict[tuple[str, str], list[float]]] = {}
  for replica, entry in numbers.items():
    for path, value in entry.items():
      group, _, name = path.rpartition('/')
      values = groups.setdefault(group or 'replicas', {})
      values.setdefault((tables.group_of(replica), name), []).append(value)
  return [tables.Table(group, tuple(dict.fromkeys(row for row, _ in values)),
                       tuple(dict.fromkeys(column for _, column in values)),
                       {key: tables.cell_of(listed) for key, listed in values.items()},
                       corner='replica', one_unit=False) for group, values in groups.items()]


def other_numbers(result: Mapping[str, Any]) -> dict[str, Any]:
  """Numbers and words of a result outside of its tables, by path."""
  rest = {key: value for key, value in result.items() if key not in ('records', 'replicas')}
  return {path: value for path, value in _flat(rest).items()
          if isinstance(value, (int, float, str, bool))}


def flat_numbers(entry: Mapping[str, Any]) -> dict[str, float]:
  """Numbers of a nested object by '/'-joined path; truth values are no numbers."""
  return {path: value for path, value in _flat(entry).items()
          if isinstance(value, (int, float)) and not isinstance(value, bool)}


def _flat(entry: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in entry.items():
    nested = isinstance(value, Mapping)
    flat.update(_flat(value, f'{prefix}{key}/') if nested else {f'{prefix}{key}': value})
  return flat


def render(title: str, sections: list[Section]) -> str:
  """Fills the template.

  Args:
    title: name of the workdir.
    sections: one per stage.

  Returns:
    The whole HTML text.
  """
  import jinja2

  environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent), autoescape=True,
      trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
  environment.filters.update(rows=tables.text_rows, number=_number)
  environment.globals.update(heading=_heading, version=__version__)
  return environment.get_template(_TEMPLATE).render(title=title, sections=sections)


def _heading(stage: str, title: str) -> str:
  return ': '.join(part for part in (stage, title) if part) or 'result'


def _number(value: Any) -> str:
  if isinstance(value, float) and math.isfinite(value):
    return f'{value:.6g}'
  return str(value)


def _figure(title: str, png: bytes) -> Figure:
  return Figure(title, base64.b64encode(png).decode('ascii'))


def _dumped(value: Any) -> str | None:
  return None if value is None else json.dumps(value, indent=2, ensure_ascii=False)


def _write(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  partial = path.with_suffix(path.suffix + '.partial')
  partial.write_text(text, encoding='utf-8')
  os.replace(partial, path)
