"""Runs launch scripts in processes that are killed at moments that are given.

A request is one line of JSON on stdin, see `Request` and `forking`. Nothing of the library knows of
this script.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from benchmarks import forking

# Phases of a run: where the function stands, and its name there.
PHASES = {
    'build': ('pemt_jax.stages.run', 'build'),
    'restore': ('pemt_jax.training.run', 'Run.restore_or_start'),
    'step': ('pemt_jax.training.run', 'Run.update'),
    'metrics': ('pemt_jax.training.run', 'Run.log'),
    'evaluation': ('pemt_jax.training.run', 'Run.evaluate'),
    'best tree': ('pemt_jax.training.checkpoints', 'BestTrees.save'),
    'save': ('pemt_jax.training.checkpoints', 'RunCheckpoints.save'),
    'pruning': ('pemt_jax.training.run', 'Run._prune'),
    'last evaluation': ('pemt_jax.training.loop', 'finish'),
    'analysis': ('pemt_jax.stages.analysis', 'write'),
    'experts': ('pemt_jax.stages.run', 'save_experts')}


@dataclasses.dataclass(frozen=True)
class Moment:
  """When a process is killed.

  Attributes:
    phase: name out of `PHASES`; '' lets the process live.
    entry: which call of the function, from 1.
    delay: seconds after it was entered.
    member: index of the process, of several that run together.
  """

  phase: str = ''
  entry: int = 1
  delay: float = 0.0
  member: int = 0


@dataclasses.dataclass(frozen=True)
class Request:
  """One start of a script.

  Attributes:
    command: the script and its options.
    moment: when it is killed.
    order: file to which every batch that is drawn adds a line.
    seconds: file for the seconds of all phases, if it comes to its end.
    stdout: file for what it prints.
    stderr: file for what it prints there.
  """

  command: Sequence[str]
  moment: Moment
  order: str
  seconds: str
  stdout: str
  stderr: str


def _kill(delay: float) -> None:
  """Sends SIGKILL to this process: now, or by another process while this one works on."""
  if delay:
    subprocess.Popen(['sh', '-c', f'sleep {delay:.4f}; kill -9 {os.getpid()}'])
  else:
    os.kill(os.getpid(), 9)


def _watched(phase: str, moment: Moment, function: Callable[..., Any],
             seconds: dict[str, list[float]]) -> Callable[..., Any]:
  """A function that kills its process at the moment, and notes how long each call takes."""

  @functools.wraps(function)
  def call(*args, **kwargs):
    own = seconds.setdefault(phase, [])
    own.append(0.0)
    if phase == moment.phase and len(own) == moment.entry:
      _kill(moment.delay)
    began = time.perf_counter()
    try:
      return function(*args, **kwargs)
    finally:
      own[-1] = time.perf_counter() - began

  return call


def _replace(module: str, name: str, wrap: Callable[[Any], Any]) -> None:
  """Puts `wrap(function)` in the place of a function or method."""
  owner = importlib.import_module(module)
  *path, last = name.split('.')
  for part in path:
    owner = getattr(owner, part)
  setattr(owner, last, wrap(getattr(owner, last)))


def _noting(order: pathlib.Path) -> Callable[[Any], Any]:
  """Wraps `Run._draw` so that it writes step, replica and example ids of each batch."""

  def wrap(draw):
    def noted(run, name):
      batch = draw(run, name)
      with open(order, 'a', encoding='utf-8') as file:
        file.write(json.dumps([run.step, name, batch['example_ids'].tolist()]) + '\n')
      return batch
    return noted

  return wrap


def run(request: Request) -> int:
  """Runs the script as a shell would; returns its exit code unless the moment comes."""
  seconds: dict[str, list[float]] = {}
  for phase, (module, name) in PHASES.items():
    _replace(module, name, functools.partial(_watched, phase, request.moment, seconds=seconds))
  _replace('pemt_jax.training.run', 'Run._draw', _noting(pathlib.Path(request.order)))
  code = forking.run_script(request.command[0], request.command[1:])
  if not code:
    pathlib.Path(request.seconds).write_text(json.dumps(seconds), encoding='utf-8')
  return code


if __name__ == '__main__':
  forking.serve(lambda fields: run(Request(**fields | {'moment': Moment(**fields['moment'])})))
