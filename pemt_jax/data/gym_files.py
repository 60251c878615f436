"""Pre-built folders of the few-shot gym: `<root>/<task>/`, in one of two forms.

`<prefix>_train.tsv`, `<prefix>_dev.tsv`, `<prefix>_test.tsv`: one line per row, an input and its
answers between tabs. The prefix is `<task>` or `<task>_<k>_<seed>`; a folder may hold several.

`fewshot.jsonl[.gz]` with the fields `seed`, `k`, `split` (train or dev), `input`, `output`,
`options`, and `test.jsonl[.gz]`: each (k, seed) in it stands for the prefix `<task>_<k>_<seed>`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from pemt_jax import guards
from pemt_jax.data import sources
from pemt_jax.errors import UserError

_PARTS = {'train': 'train', 'validation': 'dev', 'test': 'test'}
_SUFFIXES = ('.jsonl', '.jsonl.gz')
EVERY = '*'  # in place of a prefix: all draws of a task


def task_folder(root: str | pathlib.Path | None, title: str) -> pathlib.Path:
  """Returns the folder of a task.

  Args:
    root: folder of all tasks.
    title: published name of the task.

  Raises:
    UserError: there is no root or no such folder.
  """
  if root is None:
    raise UserError('data.root is not set; give the folder that holds <task>/<prefix>_train.tsv.')
  folder = pathlib.Path(root) / title
  if not folder.is_dir():
    raise UserError(f"task '{title}' has no folder {folder}; correct data.root or make the folder.")
  return folder


def prefixes(folder: pathlib.Path, title: str) -> tuple[str, ...]:
  """Returns the prefixes of a task's folder in sorted order: one data set draw each.

  Raises:
    UserError: see `sources.read_file`.
  """
  found = {path.name.removesuffix('.tsv').rpartition('_')[0] for path in folder.glob('*_*.tsv')}
  few_shot = _find(folder, 'fewshot')
  if few_shot is not None:
    found |= {_prefix(title, row) for row in sources.read_file(few_shot).rows}
  return tuple(sorted(found))


def _prefix(title: str, row: Any) -> str:
  return f"{title}_{row.get('k')}_{row.get('seed')}"


def _find(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
  return next((folder / f'{stem}{suffix}' for suffix in _SUFFIXES
               if (folder / f'{stem}{suffix}').is_file()), None)


def choose_prefix(found: Sequence[str], wanted: str, seed: int, folder: pathlib.Path) -> str:
  """Returns the prefix to read: the wanted one, the only one, or the one that ends in the seed.

  Raises:
    UserError: none of them fits.
  """
  fitting = [prefix for prefix in found if prefix == wanted or not wanted]
  if len(fitting) > 1:
    fitting = [prefix for prefix in fitting if prefix.rpartition('_')[2] == str(seed)]
  if len(fitting) != 1:
    asked = f"prefix '{wanted}'" if wanted else f'one prefix of seed {seed}'
    raise UserError(f"{folder} does not have {asked} (it has {', '.join(found) or 'none'}); name "
                    'one of them in data.prefix.')
  return fitting[0]


def read_prebuilt(title: str, split: str, root: str | pathlib.Path | None, wanted: str = '',
                  seed: int = 42, train_on_validation: bool = False) -> sources.RowTable:
  """Reads the rows of a pre-built split, each with `input`, `answers` and, if known, `options`.

  Args:
    title: published name of the task.
    split: 'train', 'validation' or 'test'.
    root: folder of all tasks.
    wanted: prefix; '' takes the only one, or the one of `seed`; `EVERY` takes the rows of all, for
      test those of the first, since the draws share their test rows.
    seed: see `choose_prefix`.
    train_on_validation: put the validation rows behind those of train.

  Raises:
    UserError: no such folder, prefix or file; a line without an answer.
  """
  folder = task_folder(root, title)
  found = prefixes(folder, title)
  chosen = found[:1 if split == 'test' else None] if wanted == EVERY and found else (
      choose_prefix(found, '' if wanted == EVERY else wanted, seed, folder),)
  more = ('validation',) if split == 'train' and train_on_validation else ()
  tables = [_read_draw(folder, title, part, prefix) for part in (split, *more)
            for prefix in chosen]
  if len(tables) == 1:
    return tables[0]
  origin = ', '.join(dict.fromkeys(table.origin for table in tables))
  return sources.RowTable([row for table in tables for row in table.rows], origin)


def _read_draw(folder: pathlib.Path, title: str, split: str, prefix: str) -> sources.RowTable:
  """Rows of one draw."""
  path = folder / f'{prefix}_{_PARTS[split]}.tsv'
  if path.is_file():
    return _read_lines(path)
  stored = _find(folder, 'test' if split == 'test' else 'fewshot')
  if stored is None:
    raise UserError(f"task '{title}' has no {path.name} in {folder}; add it or leave this split "
                    'out.')
  table = sources.read_file(stored)
  chosen = [i for i, row in enumerate(table.rows) if split == 'test' or (
      row.get('split') == _PARTS[split] and _prefix(title, row) == prefix)]
  for i in chosen:
    wrong = [name for name in ('input', 'output') if not isinstance(table.rows[i].get(name), str)]
    if wrong:
      raise UserError(f"{table.place(i)}: field '{wrong[0]}' is no text; fix the row or remove it.")
  rows = [{'input': table.rows[i]['input'], 'answers': [table.rows[i]['output']],
           'options': table.rows[i].get('options')} for i in chosen]
  numbers = chosen if table.numbers is None else [table.numbers[i] for i in chosen]
  return sources.RowTable(rows, table.origin, table.unit, numbers)


def _read_lines(path: pathlib.Path) -> sources.RowTable:
  rows, numbers = [], []
  with guards.reading(path), guards.open_text(path, newline='\n') as file:
    for number, line in enumerate(file, start=1):
      if not line.strip():
        continue
      text, *answers = line.strip().split('\t')
      if not answers:
        raise UserError(f'line {number} of {path} holds no answer behind a tab; fix the line or '
                        'remove it.')
      rows.append({'input': text, 'answers': answers})
      numbers.append(number)
  return sources.RowTable(rows, str(path), 'line', numbers)


def write_lines(path: str | pathlib.Path, lines: Sequence[tuple[str, Sequence[str]]]) -> None:
  """Writes (input, answers) pairs as a .tsv file that `read_prebuilt` reads."""
  text = ''.join('\t'.join((source, *answers)) + '\n' for source, answers in lines)
  pathlib.Path(path).write_text(text, encoding='utf-8', newline='\n')


def has_test(folder: pathlib.Path) -> bool:
  """Whether a task's folder holds test rows."""
  return _find(folder, 'test') is not None or any(folder.glob('*_test.tsv'))
