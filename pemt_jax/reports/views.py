"""What a page shows: tables of text, pictures, texts and lists, in sections."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pemt_jax.errors import UserError
from pemt_jax.reports import significance, tables

_BEST = 'Bold: best mean of the row.'
_TESTED = (f'{tables.LIKE_SIGN}: not significantly different from it (paired t-test over replicas, '
           'p ≥ 0.05, not corrected for several comparisons).')
_LEFT = 'Cells that share fewer than two replicas with the best are not tested.'
_UNTESTED = 'No cell shares two replicas with the best of its row, so that nothing is tested.'
_SPREAD = 'Mean ± sample standard deviation over replicas.'
_INTERVAL = 'In brackets: 95 % confidence interval of the mean, from three replicas on.'
_GAP = f'{tables.MISSING}: not measured.'


@dataclasses.dataclass(frozen=True)
class Entry:
  """One cell: its text, a smaller line below it, and a mark of `tables.marks_of` or ''."""

  text: str
  below: str = ''
  mark: str = ''


@dataclasses.dataclass(frozen=True)
class View:
  """A table of text.

  Attributes:
    head: names of the columns.
    rows: the first entry is the name of the row.
    caption: words below the table.
    words: whether the entries are words, which stand on the left, and not numbers.
  """

  head: tuple[str, ...]
  rows: list[list[Entry]]
  caption: str = ''
  words: bool = False


@dataclasses.dataclass(frozen=True)
class Block:
  """One part of a section.

  Attributes:
    title: its heading.
    kind: 'table' (content: `View`), 'svg' (an element), 'png' or 'gif' (base64), 'text', 'list' (of
      str) or 'facts' (pairs of name and text).
    content: see `kind`.
    caption: words below it.
    folded: whether it is closed until the reader opens it.
  """

  title: str
  kind: str
  content: Any
  caption: str = ''
  folded: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading and its blocks."""

  title: str
  blocks: list[Block]


def interval_text(pair: tuple[float, float] | None, digits: int, sign: str = '') -> str:
  """An interval as `[low, high]`, or '' for None; `sign` is '+' to write plus signs."""
  return '' if pair is None else f'[{pair[0]:{sign}.{digits}f}, {pair[1]:{sign}.{digits}f}]'


def of_table(table: tables.Table, tested: bool = True, intervals: bool = True) -> View:
  """A result table with marks, intervals and a caption that says what they mean.

  Args:
    table: the table.
    tested: whether the caption speaks of significance.
    intervals: whether cells show their confidence interval.
  """
  marks = tables.marks_of(table)
  digits = tables.column_digits(table)
  head, *lines = tables.text_rows(table)
  rows = []
  for row, line in zip(table.rows, lines):
    entries = [Entry(row)]
    for column, text, places in zip(table.columns, line[1:], digits):
      cell = table.cells.get((row, column))
      below = interval_text(cell.interval, places) if cell and intervals else ''
      entries.append(Entry(text, below, marks.get((row, column), '')))
    rows.append(entries)
  shown = any(entry.below for line in rows for entry in line)
  return View(tuple(head), rows, _caption(table, marks, tested, shown))


def _caption(table: tables.Table, marks: Mapping[tuple[str, str], str], tested: bool,
             intervals: bool) -> str:
  cells = table.cells.values()
  words = [_BEST] if marks else []
  if marks and tested:
    pairs = differences(table)
    others = sum(row in {key[0] for key in marks} for row, _ in table.cells) - len(
        {row for row, _ in marks})
    words.append(_TESTED if pairs else _UNTESTED)
    words += [_LEFT] if pairs and len(pairs.rows) < others else []
  words += [_SPREAD] if any(cell.spread is not None for cell in cells) else []
  words += [_INTERVAL] if intervals else []
  words += [_GAP] if len(table.cells) < len(table.rows) * len(table.columns) else []
  return ' '.join(words)


def differences(table: tables.Table) -> View | None:
  """Each column of a row against its best one, over the replicas that both have.

  Returns:
    Rows of row, column, difference, 95 % interval, p and number of pairs; None without a pair.
  """
  marks, rows = tables.marks_of(table), []
  for row in table.rows:
    best = next((c for c in table.columns if marks.get((row, c)) == tables.BEST), None)
    for column in table.columns if best else ():
      test = significance.paired(table.values.get((row, column), {}),
                                 table.values.get((row, best), {}))
      if column != best and test is not None:
        places = tables.digits_for([table.cells[row, best], table.cells[row, column]])
        rows.append([Entry(text) for text in (
            row, best, column, f'{test.difference:+.{places}f}',
            interval_text(test.interval, places, '+') or tables.MISSING, f'{test.p:.3f}',
            str(test.count))])
  if not rows:
    return None
  return View((table.corner, 'best', 'other', 'other minus best', '95 % interval', 'p', 'pairs'),
              rows, 'Paired t-test over the replicas that both columns have.')


def of_study(entry: Mapping[str, Any]) -> View:
  """A table of `tables` in result.json, shown as it is.

  Args:
    entry: {columns, rows: [{name, cells: {column: text or number}}]}, and optionally corner and
      caption.

  Raises:
    KeyError, TypeError, AttributeError: it does not have this form.
  """
  columns = tuple(map(str, entry['columns']))
  rows = [[Entry(str(row['name'])), *(Entry(plain_text(row['cells'].get(column, tables.MISSING)))
                                      for column in columns)] for row in entry['rows']]
  return View((str(entry.get('corner', '')), *columns), rows, str(entry.get('caption', '')))


def plain_view(head: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = '',
               words: bool = False) -> View:
  """A table of any values; see `View` for the arguments."""
  entries = [[Entry(plain_text(value)) for value in row] for row in rows]
  return View(tuple(head), entries, caption, words)


def plain_text(value: Any) -> str:
  """A value as text: floats in six digits, lists by commas, `-` for None."""
  if value is None:
    return tables.MISSING
  if isinstance(value, float) and math.isfinite(value):
    return f'{value:.6g}'
  if isinstance(value, (list, tuple)):
    return ', '.join(map(plain_text, value)) or '(empty)'
  return str(value) if value != '' else "''"


def to_markdown(view: View) -> str:
  """A table of text as Markdown, with its caption."""
  rows = [list(view.head), *([entry.text for entry in row] for row in view.rows)]
  return tables.aligned(rows) + (f'\n{view.caption}\n' if view.caption else '')


def study_tables(result: Mapping[str, Any], stage: str) -> list[tuple[str, View]]:
  """Titles and tables of `tables` in result.json.

  Raises:
    UserError: one of them does not have the form of `of_study`.
  """
  try:
    return [(str(entry['title']), of_study(entry)) for entry in result.get('tables', [])]
  except (KeyError, TypeError, AttributeError) as error:
    raise UserError(f"An entry of 'tables' in result.json of stage '{stage}' does not have the "
                    f'form that pemt_jax/reports/files.py describes ({error!r}).') from None
