"""Where rows come from: local files, Hugging Face `datasets`, TFDS folders.

Every reader returns a `RowTable`, which remembers where each row stood, so that a bad row can be
named by file and line.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pemt_jax import guards
from pemt_jax.data.tasks_base import Task
from pemt_jax.data.templates import Row, RowError
from pemt_jax.errors import UserError

SUFFIXES = ('.jsonl', '.jsonl.gz', '.json', '.tsv', '.tsv.gz', '.csv', '.csv.gz', '.parquet')

_PARQUET_ROWS = 1024  # unpacked at once
_SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')
# Builders of these families register only once their module is imported.
_TFDS_MODULES = {
    'glue': 'text.glue', 'super_glue': 'text.super_glue', 'mrqa': 'text.mrqa', 'drop': 'text.drop',
    'snli': 'text.snli', 'multi_nli': 'text.multi_nli', 'winogrande': 'text.winogrande',
    'yelp_polarity_reviews': 'text.yelp_polarity'}


@dataclasses.dataclass(frozen=True)
class RowTable:
  """Rows of one data set split.

  Attributes:
    rows: field -> value mappings.
    origin: file, or data set name with its split.
    unit: 'line' for text files, 'row' elsewhere.
    numbers: number of each row within `origin`, counted from 1; None when it is position + 1.
  """

  rows: Sequence[Row]
  origin: str
  unit: str = 'row'
  numbers: Sequence[int] | None = None

  def place(self, index: int) -> str:
    """Returns where row `index` stands, as in `line 17 of train.jsonl`."""
    number = index + 1 if self.numbers is None else self.numbers[index]
    return f'{self.unit} {number} of {self.origin}'

  @contextlib.contextmanager
  def reading(self, index: int) -> Iterator[None]:
    """Around a template that takes row `index` apart.

    Raises:
      UserError: the row does not fit; it names the place.
    """
    try:
      yield
    except UserError:
      raise
    except RowError as error:
      raise UserError(f'{self.place(index)}: {error}.') from error
    except guards.WRONG as error:
      raise UserError(f'{self.place(index)}: the row does not have the form of the task '
                      f'({guards.reason_of(error)}); fix the row or remove it.') from error


def read_file(path: str | pathlib.Path) -> RowTable:
  """Reads a .jsonl, .json, .tsv, .csv (each also .gz) or .parquet file.

  TSV is read without quotes, as GLUE writes it; CSV with quotes; both need a header line. A .json
  file holds a list of objects, or one object a line.

  Raises:
    UserError: the file is absent, of another kind, or holds something that is no row.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"there is no file '{path}'; correct the path in data.files.")
  stem = path.name.removesuffix('.gz')
  readers = {'.jsonl': _read_json_lines, '.json': _read_json, '.tsv': _read_separated,
             '.csv': _read_separated, '.parquet': _read_parquet}
  suffix = pathlib.PurePath(stem).suffix
  if suffix not in readers:
    raise UserError(f"file '{path}' is of no known kind; give one of {', '.join(SUFFIXES)}.")
  try:
    return readers[suffix](path)
  except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
    raise UserError(f"file '{path}' cannot be read ({error}); make it again or remove "
                    'it.') from error


def _read_json_lines(path: pathlib.Path) -> RowTable:
  rows, numbers = [], []
  with guards.open_text(path) as file:
    for number, line in enumerate(file, start=1):
      if line.strip():
        rows.append(_decode(line, path, number))
        numbers.append(number)
  return RowTable(rows, str(path), 'line', numbers)


def _reason(error: ValueError) -> str:
  if isinstance(error, json.JSONDecodeError):
    return f"{error.msg.removesuffix(' at')} at column {error.colno}"
  return str(error)


def _decode(line: str, path: pathlib.Path, number: int) -> Row:
  try:
    row = guards.parse_json(line)
  except ValueError as error:
    raise UserError(f'line {number} of {path} is not JSON ({_reason(error)}); fix the line or '
                    'remove it.') from error
  _check_row(row, line, f'line {number} of {path}', 'line')
  return row


def _check_row(row: Any, text: str, place: str, unit: str) -> None:
  """Refuses what is no object, and half characters, which JSON can spell but no file can hold."""
  if not isinstance(row, dict):
    raise UserError(f'{place} holds a {type(row).__name__} where an object with named fields is '
                    f'expected; fix the {unit} or remove it.')
  if _SURROGATE.search(text):
    try:
      json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
      raise UserError(f'{place} holds {error.object[error.start]!r}, half of a character; fix the '
                      f'{unit} or remove it.') from error


def _read_json(path: pathlib.Path) -> RowTable:
  with guards.open_text(path) as file:
    text = file.read()
  if not text.lstrip().startswith('['):
    return _read_json_lines(path)
  try:
    rows = guards.parse_json(text)
  except json.JSONDecodeError as error:
    raise UserError(f'line {error.lineno} of {path} is not JSON ({_reason(error)}); fix the line.'
                    ) from error
  except ValueError as error:
    raise UserError(f'{path} is not JSON ({_reason(error)}); fix the file.') from error
  spelled = text if _SURROGATE.search(text) else ''
  for number, row in enumerate(rows, start=1):
    _check_row(row, spelled, f'row {number} of {path}', 'row')
  return RowTable(rows, str(path))


def _read_separated(path: pathlib.Path) -> RowTable:
  tabs = path.name.removesuffix('.gz').endswith('.tsv')
  quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
  csv.field_size_limit(2**27)
  rows, numbers = [], []
  with guards.open_text(path) as file:
    reader = csv.reader(file, delimiter='\t' if tabs else ',', quoting=quoting)
    for number, values in _numbered_lines(reader):
      if not rows and not numbers:
        header, numbers = values, [number]
        _check_header(header, path)
      elif len(values) != len(header):
        raise UserError(f'line {number} of {path} has {len(values)} columns where the header names '
                        f'{len(header)}; fix the line or remove it.')
      else:
        rows.append(dict(zip(header, values, strict=True)))
        numbers.append(number)
  return RowTable(rows, str(path), 'line', numbers[1:])


def _check_header(header: Sequence[str], path: pathlib.Path) -> None:
  twice = [name for name in header if header.count(name) > 1]
  if twice:
    raise UserError(f"the header of {path} names the column '{twice[0]}' twice; give each column a "
                    'name of its own.')


def _numbered_lines(reader: Any) -> Iterator[tuple[int, list[str]]]:
  """Yields the first line number and the values of each row; a quoted row may span lines."""
  before = 0
  for values in reader:
    if values:
      yield before + 1, values
    before = reader.line_num


def _read_parquet(path: pathlib.Path) -> RowTable:
  import pyarrow
  import pyarrow.parquet
  rows = []
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      _check_header(file.schema_arrow.names, path)
      for batch in _bounded(file.iter_batches(_PARQUET_ROWS, use_threads=False), path):
        rows += batch.to_pylist()
  except UserError:
    raise
  except (pyarrow.ArrowException, *guards.WRONG) as error:
    raise UserError(f"file '{path}' cannot be read ({guards.reason_of(error)}); make it again or "
                    'remove it.') from error
  return RowTable(rows, str(path))


def _bounded(batches: Iterator[Any], path: pathlib.Path) -> Iterator[Any]:
  """Yields batches until they are more than the file can rightly unpack to."""
  left = guards.most_unpacked(path.stat().st_size)
  for batch in batches:
    left -= batch.nbytes + batch.num_rows  # a column of nulls has no bytes
    if left < 0:
      raise UserError(f"file '{path}' unpacks to far more than its size; write it again as JSONL"
                      ' if it is right.')
    yield batch


def read_local(task: Task, split: str, root: str | pathlib.Path | None) -> RowTable:
  """Reads `<root>/<folder>/<split>.<suffix>` from the first of the task's folders that has it.

  Args:
    task: the task; its `folders` are tried in order.
    split: data set split, which is the file's name.
    root: local root.

  Raises:
    UserError: no root, or no such file in any folder.
  """
  if root is None:
    raise UserError('data.root is not set; give the folder that holds '
                    "<benchmark>/<task>/<split>.jsonl, or choose data.source='hf'.")
  root = pathlib.Path(root)
  if not root.is_dir():
    raise UserError(f"data.root '{root}' is not a folder; correct the path.")
  for folder in task.folders:
    for suffix in SUFFIXES:
      path = root / folder / f'{split}{suffix}'
      if path.is_file():
        return read_file(path)
  if not any((root / folder).is_dir() for folder in task.folders):
    raise UserError(f"task '{task.name}' has no data below {root}: there is no folder "
                    f"{' or '.join(task.folders)}; put {split}.jsonl there or choose another "
                    'data.source.')
  looked = ', '.join(f'{folder} ({_content(root / folder)})' for folder in task.folders)
  raise UserError(f"task '{task.name}' has no split '{split}' below {root}: looked in {looked}; "
                  f'add {split}.jsonl there, name another split in data.split_names, or choose '
                  'another data.split_rule or data.source.')


def _content(folder: pathlib.Path) -> str:
  if not folder.is_dir():
    return 'absent'
  names = {path.name.removesuffix(suffix) for path in folder.iterdir() for suffix in SUFFIXES
           if path.name.endswith(suffix)}
  return f"holds {', '.join(sorted(names))}" if names else 'holds no rows'


def read_hf(task: Task, split: str) -> RowTable:
  """Reads a split with Hugging Face `datasets`.

  Data sets that the hub keeps as a loading script are read from its converted parquet branch.

  Raises:
    UserError: the task has no such data set, or it cannot be loaded.
  """
  import datasets
  if task.hf is None:
    raise UserError(f"task '{task.name}' names no Hugging Face data set; "
                    "choose data.source='local'.")
  path, config = task.hf_splits.get(split, task.hf)
  arguments = (path,) if config is None else (path, config)
  try:
    try:
      table = datasets.load_dataset(*arguments, split=split)
    except RuntimeError as error:
      if 'script' not in str(error):
        raise
      table = datasets.load_dataset(*arguments, split=split, revision='refs/convert/parquet')
  except Exception as error:  # Hub, file system and parser errors share no base class.
    reason = str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'
    raise UserError(f"task '{task.name}': split '{split}' of Hugging Face data set "
                    f"'{'/'.join(arguments)}' cannot be loaded ({type(error).__name__}: "
                    f"{reason.rstrip('.')}); check the network, or set data.source='local' and "
                    'data.root.') from error
  return RowTable(table.to_list(), f"{'/'.join(arguments)}, split {split}")


def read_tfds(task: Task, split: str, root: str | pathlib.Path | None) -> RowTable:
  """Reads a split of a TFDS folder in array_record format, without TensorFlow.

  A data set that is not prepared below `root` is prepared there, as far as that can be done without
  TensorFlow.

  Args:
    task: the task; its `tfds_row` renames the fields.
    split: TFDS split.
    root: TFDS data folder; None takes the library's default.

  Raises:
    UserError: the task has no TFDS name, the folder holds tfrecord files or lacks the split, or the
      data set can be neither found nor prepared.
  """
  import tensorflow_datasets as tfds
  if task.tfds is None:
    raise UserError(f"task '{task.name}' has no TFDS data set; choose data.source='local' or 'hf'.")
  base = pathlib.Path(root or tfds.core.constants.DATA_DIR).expanduser()
  folder = _tfds_folder(base / task.tfds) or _prepare_tfds(task, base)
  _require_array_record(folder)
  builder = tfds.builder_from_directory(folder)
  if split not in builder.info.splits:
    raise UserError(f"TFDS folder '{folder}' has no split '{split}' (it has "
                    f"{', '.join(builder.info.splits)}); name one of them in data.split_names.")
  source = builder.as_data_source(split)
  rows = [_plain(source[i]) for i in range(len(source))]
  if task.tfds_row is not None:
    rows = [task.tfds_row(row) for row in rows]
  return RowTable(rows, f'{folder}, split {split}')


def _tfds_folder(base: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder of the newest version below `base`, with or without a config level."""
  found = [path.parent for pattern in ('*/dataset_info.json', '*/*/dataset_info.json')
           for path in base.glob(pattern)]
  newest = max(found, key=lambda path: [int(part) for part in re.findall(r'\d+', path.name)],
               default=None)
  return newest


def _require_array_record(folder: pathlib.Path) -> None:
  info = json.loads((folder / 'dataset_info.json').read_text())
  kind = info.get('fileFormat') or 'tfrecord'
  if kind != 'array_record':
    raise UserError(f"TFDS folder '{folder}' holds {kind} files, which need TensorFlow; prepare "
                    "the data set with file_format='array_record'.")


def _prepare_tfds(task: Task, base: pathlib.Path) -> pathlib.Path:
  import importlib

  import tensorflow_datasets as tfds
  try:
    module = _TFDS_MODULES.get(task.tfds.split('/')[0])
    if module is not None:
      importlib.import_module(f'tensorflow_datasets.{module}')
    builder = tfds.builder(task.tfds, data_dir=base, file_format='array_record')
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)
  except Exception as error:  # Download, import and parser errors share no base class.
    reason = str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'
    raise UserError(f"task '{task.name}': TFDS data set '{task.tfds}' is not below {base} and "
                    f"cannot be prepared ({type(error).__name__}: {reason.rstrip('.')}); prepare "
                    "it there with file_format='array_record', or choose another "
                    'data.source.') from error


def _plain(value: Any) -> Any:
  """Returns bytes as text and arrays as lists, through any nesting."""
  if isinstance(value, bytes):
    return value.decode('utf-8')
  if isinstance(value, np.ndarray):
    return _plain(value.tolist())
  if isinstance(value, np.generic):
    return _plain(value.item())
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  return value
