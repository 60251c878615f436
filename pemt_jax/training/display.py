"""Speed of a run, the seconds of its phases, and its line in the terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pemt_jax.sharding import processes


class Meter:
  """Steps and tokens since the last reading; the time of pauses does not count."""

  def __init__(self):
    self._steps = 0
    self._tokens: dict[str, int] = {}
    self._started = time.perf_counter()

  def add(self, tokens: Mapping[str, int]) -> None:
    """Counts one step with the non-padding tokens of each replica."""
    self._steps += 1
    for name, count in tokens.items():
      self._tokens[name] = self._tokens.get(name, 0) + count

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves the time inside out of the speed."""
    started = time.perf_counter()
    yield
    self._started += time.perf_counter() - started

  def read(self) -> tuple[float, float, dict[str, float]]:
    """Returns (seconds, steps per second, {replica: tokens per second}) and starts again."""
    now = time.perf_counter()
    seconds = max(now - self._started, 1e-9)
    speeds = {name: count / seconds for name, count in self._tokens.items()}
    steps = self._steps
    self._steps, self._tokens, self._started = 0, {}, now
    return seconds, steps / seconds, speeds


class Clock:
  """Wall-clock seconds by phase; phases do not nest, time outside of them is not counted."""

  def __init__(self, seconds: Mapping[str, float] | None = None):
    """Goes on from the seconds of earlier calls, if there are any."""
    self.seconds = dict(seconds or {})

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Counts the time inside to a phase."""
    started = time.perf_counter()
    try:
      yield
    finally:
      self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class Bar:
  """Progress bar with loss, steps/s, tokens/s and time left; silent where it should be."""

  def __init__(self, mode: str, step: int, total: int):
    """Opens the bar.

    Args:
      mode: 'auto' (only where stderr is a terminal), 'always' or 'never'. Of several processes the
        first one shows it.
      step: steps made before.
      total: steps of the longest replica.
    """
    import tqdm  # pylint: disable=g-import-not-at-top
    silent = (mode == 'never' or not processes.is_first()
              or (mode == 'auto' and not sys.stderr.isatty()))
    self._bar = tqdm.tqdm(total=total, initial=step, unit='step', disable=silent, smoothing=0.1,
                          dynamic_ncols=True)

  def advance(self) -> None:
    """Counts one step."""
    self._bar.update()

  def show(self, loss: float, tokens_per_second: float) -> None:
    """Shows the last figures."""
    self._bar.set_postfix_str(f'loss {loss:.4g}, {tokens_per_second:,.0f} tokens/s', refresh=False)

  def note(self, text: str) -> None:
    """Prints a line above the bar, where the bar is shown."""
    if not self._bar.disable:
      self._bar.write(text, file=sys.stderr)

  def close(self) -> None:
    """Leaves the bar as it is."""
    self._bar.close()

  def __enter__(self) -> Bar:
    return self

  def __exit__(self, *unused: Any) -> None:
    self.close()
