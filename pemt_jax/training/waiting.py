"""Tells what a run waits for where that takes long."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Iterator

PATIENCE = 60.0  # seconds until the first message; the time to the next one doubles
_waits: set[_Wait] = set()


class _Wait:
  """Something that has begun and not ended."""

  def __init__(self, what: str):
    self._what, self._began, self._patience = what, time.monotonic(), PATIENCE

  def tell(self) -> None:
    """Says it once patience is at its end."""
    seconds = time.monotonic() - self._began
    if seconds >= self._patience:
      self._patience *= 2
      logging.warning('Waiting for %s since %.0f s.', self._what, seconds)


@contextlib.contextmanager
def announced(what: str) -> Iterator[None]:
  """Context of something that may stall; a warning then says what it is, from another thread."""
  _watch()
  wait = _Wait(what)
  _waits.add(wait)
  try:
    yield
  finally:
    _waits.discard(wait)


@functools.cache
def _watch() -> threading.Thread:
  """The thread that looks at all waits, which ends with the process."""

  def look():
    while True:
      time.sleep(PATIENCE / 10)
      for wait in list(_waits):
        wait.tell()

  thread = threading.Thread(target=look, name='waiting', daemon=True)
  thread.start()
  return thread
