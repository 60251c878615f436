"""What a run uses over all its starts: time that counted, repeated steps, operations."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from pemt_jax.experts import tree_files
from pemt_jax.sharding import processes

USAGE = 'usage.json'


@dataclasses.dataclass(frozen=True)
class Work:
  """What a run has done up to a step, without what was lost and made again.

  Attributes:
    step: updates made.
    seconds: of the phase `step`.
    flops: operations of matrix products in these seconds.
  """

  step: int = 0
  seconds: float = 0.0
  flops: float = 0.0


def logged_step(metrics: pathlib.Path) -> int:
  """Last step that a `metrics.jsonl` tells of; 0 without any."""
  lines = metrics.read_text(encoding='utf-8').splitlines() if metrics.exists() else []
  for line in reversed(lines):
    try:
      return json.loads(line)['step']
    except (ValueError, KeyError):
      continue
  return 0


class Usage:
  """The book of a run, written at its start, with each checkpoint and at its end."""

  def __init__(self, folder: pathlib.Path, clock: Mapping[str, float], peak: float = 0.0):
    """Opens the book; nothing is written before `begin`.

    Args:
      folder: of the run.
      clock: seconds by phase, which the run goes on to count.
      peak: operations per second of all devices at most; 0 if unknown.
    """
    self._path, self._clock, self._peak = folder / USAGE, clock, peak
    self._first_start, self._starts, self._lost = time.time(), 0, 0
    self._base, self._step, self._flops = Work(), 0, 0.0
    self._saved: dict[int, Work] = {}
    self._known: dict[Hashable, float] = {}  # shapes of a batch -> operations of its step
    self._each, self._recent = 0.0, 0.0  # operations of the last step, and since the last reading
    self._began, self._waited = clock.get('step', 0.0), clock.get('input', 0.0)

  def begin(self, step: int, seen: int) -> None:
    """A start that goes on behind `step`, where earlier ones are known to have made `seen` steps.
    """
    if self._path.exists():
      book = tree_files.read_json(self._path)
      self._first_start, self._starts = book['first_start'], book['starts']
      self._lost = book['lost_steps']
      self._saved = {work['step']: Work(**work) for work in book['saved']}
    self._starts += 1
    self._lost += max(seen - step, 0)
    self._base, self._step = self._saved.get(step, Work(step)), step
    self.write()

  def add(self, shapes: Hashable, count: Callable[[], float], timed: bool) -> None:
    """Counts a step.

    Args:
      shapes: of its batch.
      count: gives its operations; called once for each shapes.
      timed: whether its time is part of the phase `step`.
    """
    if shapes not in self._known:
      self._known[shapes] = count()
    self._each = self._known[shapes]
    self._step += 1
    self._recent += self._each
    self._flops += self._each if timed else 0.0

  def read(self, seconds: float) -> dict[str, float]:
    """Metrics of the `seconds` since the last reading; starts again."""
    waited, flops = self._clock.get('input', 0.0), self._recent
    share = (waited - self._waited) / seconds
    self._waited, self._recent = waited, 0.0
    return {'flops_per_second': flops / seconds, 'input_share': share}

  def save(self, step: int, kept: list[int]) -> None:
    """Remembers the work up to a checkpoint, and forgets earlier ones that are not `kept`."""
    self._saved = {old: work for old, work in self._saved.items() if old in kept}
    self._saved[step] = self._work()
    self.write()

  def _work(self) -> Work:
    return Work(self._step, self._base.seconds + self._clock.get('step', 0.0) - self._began,
                self._base.flops + self._flops)

  def write(self) -> None:
    """Writes `usage.json`."""
    if not self._starts or not processes.is_first():
      return
    work, wall = self._work(), time.time() - self._first_start
    tree_files.write_json(self._path, rates({
        'first_start': self._first_start, 'starts': self._starts, 'lost_steps': self._lost,
        'steps': work.step, 'step_seconds': work.seconds, 'wall_seconds': wall,
        'flops': work.flops, 'flops_per_step': self._each or None,
        'peak_flops_per_second': self._peak or None,
        'saved': [dataclasses.asdict(saved) for saved in self._saved.values()]}))


def rates(book: dict[str, Any]) -> dict[str, Any]:
  """A book with what follows from its sums: goodput, operations per second, utilisation."""
  wall, seconds, peak = book['wall_seconds'], book['step_seconds'], book['peak_flops_per_second']
  speed = book['flops'] / seconds if seconds else None
  return book | {'goodput': seconds / wall if wall else None, 'flops_per_second': speed,
                 'utilisation': speed / peak if speed and peak else None}


def combined(folders: list[pathlib.Path]) -> dict[str, Any]:
  """One book of several runs that followed each other, without their checkpoints; {} of none."""
  books = [tree_files.read_json(folder / USAGE) for folder in folders
           if (folder / USAGE).exists()]
  if not books:
    return {}
  first = min(book['first_start'] for book in books)
  last = max(book['first_start'] + book['wall_seconds'] for book in books)
  added = ('starts', 'lost_steps', 'steps', 'step_seconds', 'flops')
  joined = {**books[-1], 'first_start': first, 'wall_seconds': last - first,
            **{name: sum(book[name] for book in books) for name in added}}
  del joined['saved']
  return rates(joined)
