"""The lock of a workdir: one run at a time writes there."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pathlib
import socket
import threading
from collections.abc import Iterator

from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.sharding import processes
from pemt_jax.training import records

LOCK = '.lock'
_held: dict[pathlib.Path, int] = {}  # workdir -> thread of this process that holds it


@contextlib.contextmanager
def locked(workdir: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Makes a workdir and holds its lock, which the kernel gives back however the process ends.

  A thread that holds the lock may enter again. The first of several processes holds it for all.

  Args:
    workdir: folder of a run.

  Yields:
    The workdir.

  Raises:
    UserError: another run holds the lock; see also `records.open_workdir`.
  """
  folder = records.open_workdir(workdir)
  place, thread = folder.resolve(), threading.get_ident()
  if _held.get(place) == thread or not processes.is_first():
    yield folder
    return
  with open(folder / LOCK, 'a+', encoding='utf-8') as file:
    _take(file, folder)
    tree_files.remove_leftovers(folder, LOCK)
    _held[place] = thread
    try:
      yield folder
    finally:
      del _held[place]


def _take(file, folder: pathlib.Path) -> None:
  """Locks the file and writes into it who did."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    raise UserError(f'The workdir {folder} is in use by {file.read() or "another process"}; wait '
                    'for its end or choose another workdir.') from None
  except OSError as error:
    logging.warning('The workdir %s cannot be locked (%s); make sure that no other run writes '
                    'there.', folder, error.strerror)
  file.truncate(0)
  file.write(f'process {os.getpid()} on {socket.gethostname()}')
  file.flush()
