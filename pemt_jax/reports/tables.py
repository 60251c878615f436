"""Result tables: mean and spread over replicas, the best of each row, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pemt_jax.reports import significance

MISSING = '-'
BEST, LIKE_BEST = 'best', 'like best'
LIKE_SIGN = '≈'
_LOWER = ('loss', 'perplexity', 'nats', 'error', 'seconds', 'bytes')


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
  """Mean of `count` repetitions and their sample standard deviation (None for one repetition).

  `interval` is the 95 % confidence interval of the mean, None below three repetitions.
  """

  mean: float
  spread: float | None
  count: int
  interval: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows x columns of cells; a pair without a measurement has no cell.

  Attributes:
    title: name of the metric, or of what the table holds.
    rows: names.
    columns: names.
    cells: (row, column) -> cell.
    corner: what the rows are.
    one_unit: whether all columns hold the same metric: they share their number of digits and have
      a best one.
    values: (row, column) -> value by replica, for paired tests; may lack pairs.
  """

  title: str
  rows: tuple[str, ...]
  columns: tuple[str, ...]
  cells: Mapping[tuple[str, str], Cell]
  corner: str = 'task'
  one_unit: bool = True
  values: Mapping[tuple[str, str], Mapping[str, float]] = dataclasses.field(default_factory=dict)


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
  return Cell(mean, spread, len(numbers), significance.interval(numbers))


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
  listed: dict[tuple[str, str], dict[str, list[float]]] = {}
  for record in records:
    replicas = listed.setdefault((record.task, record.method), {})
    replicas.setdefault(record.replica, []).append(record.value)
  cells = {key: cell_of([v for found in replicas.values() for v in found])
           for key, replicas in listed.items()}
  values = {key: {name: statistics.fmean(found) for name, found in replicas.items()}
            for key, replicas in listed.items()}
  rows = tuple(dict.fromkeys(task for task, _ in listed))
  columns = tuple(dict.fromkeys(method for _, method in listed))
  if mean_row and len(rows) > 1:
    for column in columns:
      tasks = [values.get((row, column)) for row in rows]
      if all(tasks):
        shared = values[mean_row, column] = over_tasks(tasks)
        cells[mean_row, column] = cell_of(list(shared.values())) if shared else Cell(
            statistics.fmean(map(_mean, tasks)), None, len(tasks))
    rows = (*rows, mean_row)
  return Table(metric, rows, columns, cells, values=values)


def _mean(values: Mapping[str, float]) -> float:
  return statistics.fmean(values.values())


def over_tasks(tasks: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Mean over tasks for each repetition that every task has.

  Args:
    tasks: value by replica of each task. Replicas of several tasks belong together if they have the
      same name, or else the same ending `-seed<n>`.

  Returns:
    Mean by name or ending; empty where the tasks do not have the same repetitions.
  """
  for key in (str, _ending):
    named = [{key(name): value for name, value in task.items()} for task in tasks]
    whole = all(len(new) == len(old) for new, old in zip(named, tasks))
    known = whole and (key is str or '' not in named[0])
    if known and all(set(new) == set(named[0]) for new in named):
      return {name: statistics.fmean(new[name] for new in named) for name in named[0]}
  return {}


def _ending(replica: str) -> str:
  return replica[len(group_of(replica)):]


def lower_is_better(metric: str) -> bool:
  """Whether a metric of this name is better where it is smaller, such as a loss."""
  return any(word in metric.lower() for word in _LOWER)


def marks_of(table: Table) -> dict[tuple[str, str], str]:
  """Marks `BEST` the best mean of each row, and `LIKE_BEST` what does not differ from it.

  A cell does not differ where a paired t-test over the shared replicas gives p >= 0.05. A cell with
  fewer than two shared replicas has no mark, and neither has a row of one cell.
  """
  sign = -1 if lower_is_better(table.title) else 1
  marks = {}
  for row in table.rows if table.one_unit else ():
    means = {column: sign * table.cells[row, column].mean for column in table.columns
             if (row, column) in table.cells and math.isfinite(table.cells[row, column].mean)}
    best = max(means, key=means.get) if len(means) > 1 else None
    for column in means if best is not None else ():
      test = significance.paired(table.values.get((row, best), {}),
                                 table.values.get((row, column), {}))
      if means[column] == means[best]:
        marks[row, column] = BEST
      elif test is not None and test.p >= significance.LEVEL:
        marks[row, column] = LIKE_BEST
  return marks


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


def column_digits(table: Table) -> list[int]:
  """Digits behind the point of each column; the same for all where they share their unit."""
  present = [[table.cells[row, column] for row in table.rows if (row, column) in table.cells]
             for column in table.columns]
  if table.one_unit:
    return [digits_for(cell for cells in present for cell in cells)] * len(present)
  return [digits_for(cells) for cells in present]


def text_rows(table: Table) -> list[list[str]]:
  """All rows of a table as text, the head first."""
  digits = column_digits(table)
  lines = [[row, *(cell_text(table.cells.get((row, column)), places)
                   for column, places in zip(table.columns, digits))] for row in table.rows]
  return [[table.corner, *table.columns], *lines]


def to_markdown(table: Table, marked: bool = False) -> str:
  """A table as Markdown, columns aligned in the source too.

  Args:
    table: the table.
    marked: whether the best cell of a row is bold and those like it carry a sign (`marks_of`).
  """
  rows = text_rows(table)
  marks = marks_of(table) if marked else {}
  for line, row in zip(rows[1:], table.rows):
    for i, column in enumerate(table.columns, 1):
      forms = {BEST: f'**{line[i]}**', LIKE_BEST: f'{line[i]} {LIKE_SIGN}'}
      line[i] = forms.get(marks.get((row, column)), line[i])
  return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
  """Rows of text, the head first, as a Markdown table."""
  rows = [[' '.join(text.replace('|', '\\|').split()) for text in row] for row in rows]
  widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
  rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]

  def line(row: list[str]) -> str:
    first, *rest = row
    padded = [first.ljust(widths[0]), *(text.rjust(w) for text, w in zip(rest, widths[1:]))]
    return f'| {" | ".join(padded)} |'

  return '\n'.join([line(rows[0]), line(rule), *(line(row) for row in rows[1:])]) + '\n'


def to_json(table: Table) -> dict[str, Any]:
  """A table as a JSON-able dict: rows of {name, cells: {column: {mean, spread, count, interval}}}.

  A cell with a mark of `marks_of` has it as `mark`.
  """
  rows, marks = [], marks_of(table)
  for row in table.rows:
    cells = {column: dataclasses.asdict(table.cells[row, column]) for column in table.columns
             if (row, column) in table.cells}
    for column, cell in cells.items():
      cell.update({'mark': marks[row, column]} if (row, column) in marks else {})
    rows.append({'name': row, 'cells': cells})
  return {'title': table.title, 'corner': table.corner, 'columns': list(table.columns),
          'rows': rows}
