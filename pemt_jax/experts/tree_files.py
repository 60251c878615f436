"""Trees of arrays as folders: an Orbax checkpoint and a list of names, written in one move."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from pemt_jax import guards
from pemt_jax.errors import UserError
from pemt_jax.sharding import processes
from pemt_jax.trees import unflatten

MANIFEST = 'manifest.json'
ARRAYS = 'arrays'
CHECKSUMS = 'checksums.json'
_LEFTOVER = re.compile(r'\.(.+)\.(tmp|old)\.\d+')
_CHUNK_BYTES = 1 << 24
Description = dict[str, dict[str, Any]]


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns {'a/b/c': leaf} of any pytree; fields of named tuples and dataclasses are names too."""
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def storable_leaves(tree: Any) -> dict[str, Any]:
  """Returns `named_leaves` without arrays of size zero, which Orbax refuses to store."""
  return {name: leaf for name, leaf in named_leaves(tree).items() if np.size(leaf)}


def describe(tree: Any) -> Description:
  """Returns {name: {'shape': [...], 'dtype': name}} of a tree of arrays or shapes."""
  return {name: {'shape': list(np.shape(leaf)), 'dtype': str(np.dtype(leaf.dtype))}
          for name, leaf in sorted(named_leaves(tree).items())}


def check_form(description: Any, place: str | os.PathLike) -> None:
  """Checks that what a file holds is a `Description`.

  Raises:
    UserError: it is none.
  """
  with guards.reading(place):
    for name, entry in description.items():
      kind, shape = np.dtype(entry['dtype']), entry['shape']
      if set(entry) != {'shape', 'dtype'} or kind.hasobject or not all(name.split('/')):
        raise ValueError(f'{name!r} is {entry}')
      if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f'{name!r} has the shape {shape}')
    unflatten(dict.fromkeys(description))


def _check_size(description: Description, folder: pathlib.Path) -> None:
  """Refuses a manifest that promises absurdly more than the files below its folder hold."""
  held = sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())
  promised = sum(math.prod(entry['shape']) * np.dtype(entry['dtype']).itemsize
                 for entry in description.values())
  if promised > guards.most_unpacked(held):
    raise UserError(f'{folder / MANIFEST} promises arrays of {promised} bytes, but {folder} holds'
                    f' {held}; copy it again.')


def _check_stored(checkpointer: Any, place: pathlib.Path, expected: Any) -> None:
  """Orbax allocates what its own files say, which must be what the manifest says."""
  stored = named_leaves(checkpointer.metadata(place).item_metadata.tree)
  shapes = {name: tuple(entry.shape) for name, entry in stored.items()}
  if shapes != {name: leaf.shape for name, leaf in named_leaves(expected).items()}:
    raise ValueError('other shapes than in the manifest')


def check_description(found: Description, expected: Description, place: str | os.PathLike) -> None:
  """Compares the names, shapes and types of a file with those of a program.

  Raises:
    UserError: a name is missing, unexpected or has another shape or type; it names the file, the
      key, the expected and the found shape.
  """
  def show(entry):
    return f"{entry['dtype']} {entry['shape']}"

  remedy = 'use a checkpoint of the same config'
  for name in sorted(set(found) | set(expected)):
    if name not in found:
      raise UserError(f"{place} has no '{name}', expected {show(expected[name])}; {remedy}.")
    if name not in expected:
      raise UserError(f"{place} has '{name}' ({show(found[name])}), which is not expected; "
                      f'{remedy}.')
    if found[name] != expected[name]:
      raise UserError(f"{place} has '{name}' as {show(found[name])}, expected "
                      f'{show(expected[name])}; {remedy}.')


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes JSON in one move: a reader sees the old file or the new one."""
  with replacing(pathlib.Path(path)) as temporary, open(temporary, 'w', encoding='utf-8') as file:
    json.dump(value, file, indent=2, default=_plain)
    file.write('\n')
    file.flush()
    os.fsync(file.fileno())


def write_npz(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes named arrays as one .npz file in one move; its folder is made."""
  with replacing(pathlib.Path(path)) as temporary, open(temporary, 'wb') as file:
    np.savez(file, **arrays)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[str]:
  """Gives a temporary name beside `path`; the file takes its place at the end, if nothing fails."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.tmp.{os.getpid()}')
  try:
    yield str(temporary)
    os.replace(temporary, path)
  except OSError as error:
    error.filename = error.filename or str(path)
    raise
  finally:
    temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
  """JSON form of NumPy and JAX values and paths."""
  return value.tolist() if hasattr(value, 'tolist') else str(value)


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: the file is absent, too large or not JSON.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f'{path} does not exist; give the folder that holds {path.name}.')
  return guards.read_json(path, 'restore or remove it')


@contextlib.contextmanager
def replacing_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives an empty folder beside `folder` that takes its place at the end, if nothing fails."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  temporary = folder.with_name(f'.{folder.name}.tmp.{os.getpid()}')
  old = folder.with_name(f'.{folder.name}.old.{os.getpid()}')
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir()
  try:
    yield temporary
    if folder.exists():
      os.rename(folder, old)
    os.rename(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: pathlib.Path, stop: str) -> None:
  """Removes what killed processes have left of `replacing` and `replacing_folder`.

  A folder that was killed between its two moves gets its old place back.

  Args:
    folder: where nobody else writes; it is searched with the folders below it.
    stop: name of a file; another folder with such a file is left alone.
  """
  for place, folders, files in os.walk(folder):
    left = [name for name in (*folders, *files) if _LEFTOVER.fullmatch(name)]
    folders[:] = [name for name in folders
                  if name not in left and not os.path.exists(os.path.join(place, name, stop))]
    for name in left:
      path, (own, kind) = pathlib.Path(place, name), _LEFTOVER.fullmatch(name).groups()
      if kind == 'old' and not path.with_name(own).exists():
        os.rename(path, path.with_name(own))
      elif path.is_dir():
        shutil.rmtree(path)
      else:
        path.unlink()


def write_checksums(folder: pathlib.Path) -> None:
  """Writes the CRC-32 of every file below a folder to `checksums.json`."""
  files = sorted(path for path in folder.rglob('*') if path.is_file() and path.name != CHECKSUMS)
  write_json(folder / CHECKSUMS,
             {path.relative_to(folder).as_posix(): _checksum(path) for path in files})


def has_checksums(folder: pathlib.Path) -> bool:
  """Whether `damaged_file` can tell; folders of earlier versions have no list."""
  return (folder / CHECKSUMS).is_file()


def damaged_file(folder: pathlib.Path) -> str | None:
  """Returns the first file that is not what `write_checksums` has seen; None without a list."""
  if not has_checksums(folder):
    return None
  try:
    expected = guards.read_json(folder / CHECKSUMS)
    return next((name for name, value in expected.items()
                 if not (folder / name).is_file() or _checksum(folder / name) != value), None)
  except (OSError, ValueError, AttributeError):
    return CHECKSUMS


def _checksum(path: pathlib.Path) -> int:
  value = 0
  with open(path, 'rb') as file:
    while chunk := file.read(_CHUNK_BYTES):
      value = zlib.crc32(chunk, value)
  return value


@contextlib.contextmanager
def orbax_writes(folder: pathlib.Path) -> Iterator[None]:
  """Context in which a failed write of Orbax is the `OSError` that caused it."""
  try:
    yield
  except ValueError as error:
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code is None:
      raise
    number = int(code.group(1))
    raise OSError(number, os.strerror(number), str(folder)) from error


def _checkpointer() -> Any:
  """An Orbax checkpointer that this process uses alone, without waiting for others."""
  import orbax.checkpoint as ocp  # pylint: disable=g-import-not-at-top
  if processes.count() == 1:
    return ocp.PyTreeCheckpointer()
  own = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
      primary_host=own, active_processes={own}, barrier_sync_key_prefix=f'process{own}')
  return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
                          multiprocessing_options=alone)


def write_arrays(folder: pathlib.Path, tree: Any) -> None:
  """Writes a tree into an existing folder, not in one move."""
  # Of several processes, one that writes alone may give Orbax no arrays of its devices.
  as_it_is = jax.Array if processes.count() == 1 else ()
  flat = {name: leaf if isinstance(leaf, as_it_is) else np.asarray(leaf)
          for name, leaf in storable_leaves(tree).items()}
  if flat:
    with orbax_writes(folder), _checkpointer() as checkpointer:
      checkpointer.save((folder / ARRAYS).absolute(), unflatten(flat))
  write_json(folder / MANIFEST, describe(tree))
  write_checksums(folder)


def write_tree(folder: str | os.PathLike, tree: Any) -> None:
  """Writes a tree as a folder in one move; an existing folder of that name is replaced.

  Args:
    folder: target; its parents are made.
    tree: pytree of arrays; names may not contain '/'.
  """
  with replacing_folder(pathlib.Path(folder)) as temporary:
    write_arrays(temporary, tree)


def read_tree(folder: str | os.PathLike, expected: Any = None) -> dict[str, Any]:
  """Reads a folder of `write_tree` as nested dicts of NumPy arrays.

  Args:
    folder: what `write_tree` wrote.
    expected: None, or a tree of arrays or shapes whose names, shapes and types must be those found.

  Raises:
    UserError: the folder is absent, unreadable or has other names, shapes or types.
  """
  import orbax.checkpoint as ocp  # pylint: disable=g-import-not-at-top
  folder = pathlib.Path(folder)
  description = read_json(folder / MANIFEST)
  damaged = damaged_file(folder)
  if damaged:
    raise UserError(f'{folder / damaged} is not what was written; the tree is damaged, remove '
                    f'{folder} or copy it again.')
  if expected is not None:
    check_description(description, describe(expected), folder)
  check_form(description, folder / MANIFEST)
  _check_size(description, folder)
  leaves = {name: np.zeros(entry['shape'], np.dtype(entry['dtype']))
            for name, entry in description.items()}
  stored = unflatten(storable_leaves(unflatten(leaves)))
  if stored:
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
    try:
      with _checkpointer() as checkpointer:
        _check_stored(checkpointer, (folder / ARRAYS).absolute(), stored)
        found = checkpointer.restore((folder / ARRAYS).absolute(), item=stored,
                                     restore_args=as_numpy)
    except Exception as error:  # Orbax raises many types for one cause: the files are damaged.
      raise UserError(f'{folder} cannot be read ({type(error).__name__}); it is damaged, remove it '
                      'or copy it again.') from error
    leaves |= named_leaves(found)
  check_description(describe(unflatten(leaves)), description, folder)
  return unflatten(leaves)
