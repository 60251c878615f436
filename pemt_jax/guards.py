"""What every reader of a file that others wrote checks first: sizes, names, types.

A reader never executes what it reads, and allocates no more than a stated multiple of the file's
size. Whatever is wrong with a file becomes a `UserError`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
import pathlib
import pickle
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn, TextIO

import numpy as np

from pemt_jax.errors import UserError

JSON_BYTES = 32 << 20  # of a card, config, index or result; rows have a line each and no bound
JSON_DEPTH = 64
_LONGEST_NAME, _LONGEST_PATH = 255, 4096  # bytes that file systems allow
FREE_BYTES, _RATIO = 64 << 20, 100  # what a packed file may unpack to: this, and a multiple
ZIP = b'PK\x03\x04'
_TYPES = {'BOOL', 'U8', 'I8', 'U16', 'I16', 'U32', 'I32', 'U64', 'I64', 'F16', 'BF16', 'F32', 'F64'}
# What wrong content raises in code that takes it apart.
WRONG = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError,
         OSError, RuntimeError, SyntaxError, TypeError, ValueError, pickle.UnpicklingError,
         re.error, struct.error, tokenize.TokenError, zipfile.BadZipFile, zipfile.LargeZipFile,
         zlib.error)


@contextlib.contextmanager
def reading(place: str | os.PathLike, remedy: str = 'give another one or make it again'
            ) -> Iterator[None]:
  """Around code that takes foreign content apart, whose mistakes show as errors of many types.

  Args:
    place: file or folder, for the message.
    remedy: end of the sentence.

  Raises:
    UserError: the code failed; the error is its cause.
  """
  try:
    yield
  except UserError:
    raise
  except OSError as error:
    raise UserError(f"'{error.filename or place}' cannot be read or written"
                    f' ({error.strerror or reason_of(error)}); check it.') from error
  except WRONG as error:
    raise UserError(f"'{place}' does not have the form that is read here ({reason_of(error)});"
                    f' {remedy}.') from error


def reason_of(error: BaseException) -> str:
  """The first line of an error's text, behind its type where the text alone may not tell enough."""
  lines, name = str(error).strip().splitlines(), type(error).__name__
  if not lines:
    return name
  plain = type(error) in (ValueError, RuntimeError)
  return lines[0].rstrip('.') if plain else f'{name}: {lines[0].rstrip(".")}'


def most_unpacked(size: int) -> int:
  """Bytes that a packed file of `size` bytes may unpack to."""
  return FREE_BYTES + _RATIO * size


def inside(folder: str | os.PathLike, name: Any, place: str | os.PathLike,
           root: str | os.PathLike | None = None) -> pathlib.Path:
  """The path that a file names relative to a folder.

  Links are followed to the same folder, and in a cache of the Hugging Face hub to its blobs.

  Args:
    folder: that the name is relative to.
    name: what the file says.
    place: the file that says it, for the message.
    root: folder that must not be left; default is `folder`.

  Raises:
    UserError: no name, or one that leads out of `root`.
  """
  root = pathlib.Path(folder if root is None else root)
  right = isinstance(name, str) and bool(name) and name.isprintable() and all(
      len(part.encode()) <= _LONGEST_NAME for part in name.split('/')) and len(name) < _LONGEST_PATH
  path = pathlib.Path(os.path.normpath(pathlib.Path(folder).absolute() / name)) if right else root
  if right and path.is_relative_to(os.path.normpath(root.absolute())):
    real, top = path.resolve(), root.resolve()
    cached = top.parent.name == 'snapshots' and real.is_relative_to(top.parents[1] / 'blobs')
    if real.is_relative_to(top) or cached:
      return path
  raise UserError(f"'{place}' names the path {name!r}, which leads out of '{root}'; put the file"
                  ' there and name it without a way up.')


def require_file(path: str | os.PathLike) -> None:
  """Checks that a path is a plain file: a pipe could be waited for, a device read for ever.

  Raises:
    UserError: it is not, or is absent.
  """
  if not os.path.isfile(path):
    state = 'is no plain file' if os.path.exists(path) else 'does not exist'
    raise UserError(f"'{path}' {state}; check the path.")


def read_text(path: str | os.PathLike, most: int = JSON_BYTES) -> str:
  """Reads a text file in UTF-8, with or without a byte order mark.

  Raises:
    UserError: it cannot be read, is too large or is no UTF-8.
  """
  require_file(path)
  try:
    with open(path, 'rb') as file:
      content = file.read(most + 1)
    text = content.decode('utf-8-sig')
  except OSError as error:
    raise UserError(f"'{path}' cannot be read ({error.strerror}); check the file.") from error
  except UnicodeDecodeError as error:
    raise UserError(f"'{path}' is no text in UTF-8 (byte {error.start}); convert the file."
                    ) from error
  if len(content) > most:
    raise UserError(f"'{path}' has more than {most} bytes, which no file of its kind needs; give"
                    ' another one.')
  return text


def parse_json(text: str, finite: bool = True) -> Any:
  """Parses JSON that may be hostile.

  Args:
    text: the whole text.
    finite: refuse NaN and Infinity, which are no JSON but which Python writes.

  Raises:
    ValueError: no JSON (a `json.JSONDecodeError`), a name twice in an object, too many levels or
      digits, or NaN; the text is a reason.
  """
  try:
    value = json.loads(text, object_pairs_hook=_object,
                       parse_constant=_no_number if finite else None)
  except RecursionError:
    raise ValueError(f'more than {JSON_DEPTH} levels') from None
  if text.count('[') + text.count('{') > JSON_DEPTH and _levels(value) > JSON_DEPTH:
    raise ValueError(f'more than {JSON_DEPTH} levels')
  return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in found if names.count(name) > 1)
    raise ValueError(f'{twice!r} stands twice in an object')
  return found


def _no_number(text: str) -> NoReturn:
  raise ValueError(f'{text} is no number')


def _levels(value: Any) -> int:
  count, level = 0, [value]
  while level:
    nested = [own for own in level if isinstance(own, dict | list)]
    level = [child for own in nested
             for child in (own.values() if isinstance(own, dict) else own)]
    count += bool(nested)
  return count


def read_json(path: str | os.PathLike, remedy: str = 'copy it again', finite: bool = False) -> Any:
  """Reads a JSON file of bounded size; see `parse_json`.

  Args:
    path: the file.
    remedy: end of the sentence where it is no JSON.
    finite: refuse NaN and Infinity.

  Raises:
    UserError: it cannot be read, is too large or is no JSON.
  """
  text = read_text(path)
  try:
    return parse_json(text, finite)
  except ValueError as error:
    raise UserError(f"'{path}' is not valid JSON ({error}); {remedy}.") from error


class _Bounded(io.RawIOBase):
  """What a gzip file unpacks to, up to `most_unpacked`."""

  def __init__(self, path: pathlib.Path):
    super().__init__()
    self._path, self._file = path, gzip.open(path, 'rb')
    self._left = self._most = most_unpacked(path.stat().st_size)

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    count = self._file.readinto(buffer)
    self._left -= count
    if self._left < 0:
      raise UserError(f"'{self._path}' unpacks to more than {self._most} bytes, {_RATIO} times its"
                      ' size; unpack it first if it is right.')
    return count

  def close(self) -> None:
    self._file.close()
    super().close()


def open_bytes(path: str | os.PathLike) -> BinaryIO:
  """Opens a file, unpacking one that ends with `.gz`; it must not unpack to absurdly much."""
  require_file(path)
  path = pathlib.Path(path)
  return io.BufferedReader(_Bounded(path), 1 << 20) if path.suffix == '.gz' else path.open('rb')


def open_text(path: str | os.PathLike, newline: str = '') -> TextIO:
  """`open_bytes` as text in UTF-8, with or without a byte order mark; `newline` as of `open`."""
  return io.TextIOWrapper(open_bytes(path), encoding='utf-8-sig', newline=newline)


def load_arrays(path: str | os.PathLike) -> Any:
  """`numpy.load` without pickles, after a check that the arrays are as large as the file says.

  Returns:
    The array of an `.npy` file; name -> array of an `.npz` file.

  Raises:
    ValueError: headers that promise more than the file holds, or anything that is no array.
  """
  require_file(path)
  path = pathlib.Path(path)
  size = path.stat().st_size
  try:
    with open(path, 'rb') as file:
      packed = file.read(len(ZIP)) == ZIP
      file.seek(0)
      if not packed:
        _check_header(file, size)
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    _check_archive(path, size)
    with np.load(path, allow_pickle=False) as arrays:
      return dict(arrays)
  except WRONG as error:
    raise ValueError(reason_of(error)) from error


def _check_archive(path: pathlib.Path, size: int) -> None:
  with zipfile.ZipFile(path) as archive:
    if sum(entry.file_size for entry in archive.infolist()) > most_unpacked(size):
      raise ValueError(f'its entries unpack to more than {_RATIO} times its size')
    for entry in archive.infolist():
      with archive.open(entry) as file:
        _check_header(file, entry.file_size)


def _check_header(file: Any, size: int) -> None:
  version = np.lib.format.read_magic(file)
  readers = {(1, 0): np.lib.format.read_array_header_1_0,
             (2, 0): np.lib.format.read_array_header_2_0}
  if version not in readers:
    raise ValueError(f'an array of format {version}')
  shape, _, dtype = readers[version](file)
  if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
    raise ValueError(f'an array {dtype} {list(shape)} in {size} bytes')


def open_safetensors(path: str | os.PathLike) -> Any:
  """Opens a safetensors file for NumPy; the library checks that offsets and shapes fit the file.

  Raises:
    UserError: it cannot be read, or has a type of number that NumPy does not have.
  """
  import safetensors

  require_file(path)
  try:
    file = safetensors.safe_open(str(path), framework='np')
    types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
  except (safetensors.SafetensorError, *WRONG) as error:
    raise UserError(f"'{path}' is not a readable safetensors file ({error}); "
                    'copy or download it again.') from error
  for name, kind in types.items():
    if kind not in _TYPES:
      raise UserError(f"'{path}' has '{name}' as {kind}; write it again as one of"
                      f" {', '.join(sorted(_TYPES))}.")
  return file
