"""Tables as LaTeX, for the package `booktabs`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pemt_jax.reports import tables

_SPECIAL = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
            '±': r'$\pm$', '≈': r'$\approx$', '≥': r'$\geq$', '≤': r'$\leq$', '–': '--'}
_PLAIN = '&%$#_{}'


def escaped(text: str) -> str:
  """Text with the characters that mean something to LaTeX written out."""
  return ''.join(f'\\{char}' if char in _PLAIN else _SPECIAL.get(char, char)
                 for char in ' '.join(text.split()))


def to_latex(table: tables.Table, marked: bool = True, flipped: bool = False) -> str:
  """A table of measurements: mean with its standard deviation as index, the best of a row bold.

  Args:
    table: the table.
    marked: whether marks of `tables.marks_of` are shown.
    flipped: whether columns become rows, as in a table of one line per method.
  """
  marks = tables.marks_of(table) if marked else {}
  rows = [[escaped(text) for text in (table.corner, *table.columns)]]
  for name, line in zip(table.rows, tables.text_rows(table)[1:], strict=True):
    cells = [_cell(text, marks.get((name, column)))
             for text, column in zip(line[1:], table.columns, strict=True)]
    rows.append([escaped(name), *cells])
  if flipped:
    rows = [list(column) for column in zip(*rows, strict=True)]
    rows[0][0] = ''
  return tabular(rows)


def _cell(text: str, mark: str | None) -> str:
  mean, plus, spread = text.partition(' ± ')
  if text == tables.MISSING:
    return '--'
  number = mean if not plus else f'{mean}_{{\\pm {spread}}}'
  number = re.sub(r'\bnan\b', r'\\mathrm{nan}', number)
  if mark == tables.BEST:
    return f'$\\mathbf{{{number}}}$'
  return f'${number}$' + (r'\,$\approx$' if mark == tables.LIKE_BEST else '')


def tabular(rows: Sequence[Sequence[str]]) -> str:
  """Rows of LaTeX text, the head first, as a `tabular`; numbers stand on the right."""
  columns = 'l' + 'r' * (len(rows[0]) - 1)
  lines = [' & '.join(row) + r' \\' for row in rows]
  return '\n'.join([f'\\begin{{tabular}}{{{columns}}}', r'\toprule', lines[0], r'\midrule',
                    *lines[1:], r'\bottomrule', r'\end{tabular}']) + '\n'


def document(found: Sequence[tables.Table], flipped: bool = False) -> str:
  """Several tables one after the other, each behind a comment with its title."""
  return '\n'.join(f'% {escaped(table.title)}\n{to_latex(table, flipped=flipped)}'
                   for table in found)
