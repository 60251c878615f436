"""Result tables: mean and spread over replicas, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MISSING = '-'


@dataclasses.dataclass(frozen=True)
class Record:
  """One measured number.

  Attributes:
    task: what was measured on; the row of a table.
    method: what was measured; the column of a table.
    value: the number, in the unit of its metric.
    metric: name of the metric; each metric has a table of its own.
    replica: which of the repetitions (seed, draw) it is; repetitions are averaged.
  """

  task: str
  method: str
  value: float
  metric: str = ''
  replica: str = ''


@dataclasses.dataclass(frozen=True)
class Cell:
  """Mean of `count` repetitions and their sample standard deviation (None for one repetition)."""

  mean: float
  spread: float | None
  count: int


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows x columns of cells; a pair without a measurement has no cell.

  Attributes:
    title: name of the metric, or of what the table holds.
    rows: names.
    columns: names.
    cells: (row, column) -> cell.
    corner: what the rows are.
    one_unit: whether all columns hold the same metric and share their number of digits.
  """

  title: str
  rows: tuple[str, ...]
  columns: tuple[str, ...]
  cells: Mapping[tuple[str, str], Cell]
  corner: str = 'task'
  one_unit: bool = True


def cell_of(values: Sequence[float]) -> Cell:
  """Summarises repetitions.

  Args:
    values: at least one number; a NaN makes the mean NaN, so that a failed run stays visible.
  """
  numbers = [float(value) for value in values]
  finite = all(math.isfinite(number) for number in numbers)
  mean = math.fsum(numbers) / len(numbers) if finite else sum(numbers) / len(numbers)
  spread = None
  if len(numbers) > 1:
    spread = statistics.stdev(numbers) if finite else math.nan
  return Cell(mean, spread, len(numbers))


def group_of(replica: str) -> str:
  """Name of a replica without its seed: `rte-seed3` belongs to `rte`."""
  return re.sub(r'-seed\d+$', '', replica)


def tables_of(records: Iterable[Record], mean_row: str = 'mean') -> list[Table]:
  """One table per metric, task x method, rows and columns in the order of their first record.

  Args:
    records: the measurements.
    mean_row: name of the last row, the mean over tasks; '' leaves it out. It is there where a table
      has several tasks, and only for methods measured on all of them.
  """
  groups: dict[str, list[Record]] = {}
  for record in records:
    groups.setdefault(record.metric, []).append(record)
  return [_table(metric, group, mean_row) for metric, group in groups.items()]


def _table(metric: str, records: Sequence[Record], mean_row: str) -> Table:
  values: dict[tuple[str, str], dict[str, list[float]]] = {}
  for record in records:
    replicas = values.setdefault((record.task, record.method), {})
    replicas.setdefault(record.replica, []).append(record.value)
  cells = {key: cell_of([v for listed in replicas.values() for v in listed])
           for key, replicas in values.items()}
  rows = tuple(dict.fromkeys(task for task, _ in values))
  columns = tuple(dict.fromkeys(method for _, method in values))
  if mean_row and len(rows) > 1:
    for column in columns:
      tasks = [values.get((row, column)) for row in rows]
      if all(tasks):
        cells[mean_row, column] = _mean_over_tasks(tasks)
    rows = (*rows, mean_row)
  return Table(metric, rows, columns, cells)


def _mean_over_tasks(tasks: Sequence[Mapping[str, list[float]]]) -> Cell:
  """Mean over tasks, spread over the replicas that every task has; None where they differ."""
  names = list(tasks[0])
  if all(set(task) == set(names) for task in tasks):
    return cell_of([statistics.fmean(statistics.fmean(task[name]) for task in tasks)
                    for name in names])
  means = [statistics.fmean(v for listed in task.values() for v in listed) for task in tasks]
  return Cell(statistics.fmean(means), None, len(means))


def digits_for(cells: Iterable[Cell]) -> int:
  """Digits behind the point: none for whole numbers, 3 for fractions, 2 for larger numbers."""
  cells = list(cells)
  sizes = [abs(cell.mean) for cell in cells if math.isfinite(cell.mean)]
  if all(cell.count == 1 and cell.mean.is_integer() for cell in cells):
    return 0
  return 3 if max(sizes, default=0.0) <= 1.0 else 2


def cell_text(cell: Cell | None, digits: int = 2) -> str:
  """A cell as `mean ± spread`; `-` where nothing was measured."""
  if cell is None:
    return MISSING
  text = f'{cell.mean:.{digits}f}'
  return text if cell.spread is None else f'{text} ± {cell.spread:.{digits}f}'


def text_rows(table: Table) -> list[list[str]]:
  """All rows of a table as text, the head first."""
  columns = [[table.cells.get((row, column)) for row in table.rows] for column in table.columns]
  present = [[cell for cell in cells if cell is not None] for cells in columns]
  shared = digits_for(cell for cells in present for cell in cells)
  texts = [[cell_text(cell, shared if table.one_unit else digits_for(have)) for cell in cells]
           for cells, have in zip(columns, present)]
  return [[table.corner, *table.columns], *([row, *line] for row, *line in zip(table.rows, *texts))]


def to_markdown(table: Table) -> str:
  """A table as Markdown, columns aligned in the source too."""
  rows = [[text.replace('|', '\\|') for text in row] for row in text_rows(table)]
  widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
  rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]

  def line(row: list[str]) -> str:
    first, *rest = row
    padded = [first.ljust(widths[0]), *(text.rjust(w) for text, w in zip(rest, widths[1:]))]
    return f'| {" | ".join(padded)} |'

  return '\n'.join([line(rows[0]), line(rule), *(line(row) for row in rows[1:])]) + '\n'


def to_json(table: Table) -> dict[str, Any]:
  """A table as a JSON-able dict: rows of {name, cells: {column: {mean, spread, count}}}."""
  rows = []
  for row in table.rows:
    cells = {column: dataclasses.asdict(table.cells[row, column]) for column in table.columns
             if (row, column) in table.cells}
    rows.append({'name': row, 'cells': cells})
  return {'title': table.title, 'corner': table.corner, 'columns': list(table.columns),
          'rows': rows}
