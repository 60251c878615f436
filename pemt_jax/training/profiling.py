"""A trace of some steps by JAX's profiler."""

from __future__ import annotations

import logging
import re
from typing import Any

import jax

from pemt_jax.errors import UserError


def steps_of(text: str) -> tuple[int, int]:
  """First and last traced step of `10:15`; step 1 is the first one of a call.

  Raises:
    UserError: another form, or no step.
  """
  match = re.fullmatch(r'(\d+):(\d+)', text)
  first, last = map(int, match.groups()) if match else (0, 0)
  if not 1 <= first <= last:
    raise UserError(f"config.train.profile_steps is '{text}'; give the first and the last step of a"
                    " trace, such as '10:15'.")
  return first, last


class Trace:
  """Traces the steps of a run; the only wait for the device is at the last traced step."""

  def __init__(self, folder: str, steps: str):
    """Prepares a trace.

    Args:
      folder: where it is written; '' traces nothing.
      steps: see `steps_of`.

    Raises:
      UserError: see `steps_of`.
    """
    self._folder, self._step, self._runs = folder, 0, False
    self._first, self._last = steps_of(steps)

  def before(self) -> None:
    """Call it in front of each step."""
    self._step += 1
    if self._folder and self._step == self._first:
      jax.profiler.start_trace(self._folder)
      self._runs = True

  def after(self, result: Any) -> None:
    """Call it behind each step with an array that the step makes."""
    if self._runs and self._step == self._last:
      jax.block_until_ready(result)
      self._stop()

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    self._runs = False

  def __enter__(self) -> Trace:
    return self

  def __exit__(self, *unused: Any) -> None:
    if self._runs:
      self._stop()
    elif self._folder and self._step < self._first:
      logging.warning('No trace was written to %s: this call made %d steps, and the trace starts at'
                      ' step %d; lower --profile_steps.', self._folder, self._step, self._first)
