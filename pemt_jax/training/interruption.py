"""SIGTERM and SIGINT become a request to stop at the next step."""

from __future__ import annotations

import collections
import signal
import sys
import threading
from typing import Any

import jax

from pemt_jax.sharding import processes

_LAG = 2  # steps until the answers of all processes are read; by then they are there


class RunInterrupted(SystemExit):
  """A signal ended the run after its state was saved; the exit code is 128 + the signal.

  Making one prints its message to stderr, since an exit with a code prints nothing.
  """

  def __init__(self, signal_number: int, message: str):
    super().__init__(128 + signal_number)
    self.message = message
    print(message, file=sys.stderr)

  def __str__(self) -> str:
    return self.message


class Interruption:
  """Context in which the first SIGTERM or SIGINT only sets `signal_number`.

  A second signal acts as usual. Outside of the main thread, where handlers cannot be set, nothing
  is changed.
  """

  def __init__(self):
    self.signal_number: int | None = None
    self._previous: dict[int, Any] = {}
    self._asked: collections.deque[Any] = collections.deque()

  def agreed(self, step: Any = None) -> int | None:
    """The signal at which to stop now; every process calls this once per step.

    Where there are several, all get the same answer at the same step, `_LAG` steps after the first
    of them was signalled: the question is a part of the work that is sent to the devices.

    Args:
      step: an array that the step has made.
    """
    if processes.count() == 1:
      return self.signal_number
    # Programs for CPUs may overtake each other, and what they exchange would be mixed up.
    alone = jax.default_backend() == 'cpu'
    if alone:
      jax.block_until_ready(step)
    self._asked.append(processes.begin_maximum(self.signal_number or 0))
    if alone:
      jax.block_until_ready(self._asked[-1])
    return int(self._asked.popleft()) if len(self._asked) > _LAG else None

  def __enter__(self) -> Interruption:
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._request)
    return self

  def _request(self, number: int, frame: Any) -> None:
    del frame
    self.signal_number = number
    self.restore()

  def restore(self) -> None:
    """From here on signals act as usual."""
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}

  def __exit__(self, *unused: Any) -> None:
    self.restore()
