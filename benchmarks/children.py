"""Starts worker processes, asks them, and takes turns between them."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.options import Options

REPO = pathlib.Path(__file__).resolve().parents[1]


def _environment(cache: str) -> dict[str, str]:
  environment = dict(os.environ, JAX_PLATFORMS=os.environ.get('JAX_PLATFORMS', 'cpu'),
                     HF_HUB_OFFLINE='1',
                     TOKENIZERS_PARALLELISM='false', PYTHONPATH=str(REPO))
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  if cache:
    environment |= {'JAX_COMPILATION_CACHE_DIR': cache,
                    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1'}
  return environment


class Child:
  """A worker process; use it in a `with` statement.

  Attributes:
    first: what the worker reports after its first step, with `seconds`, the wall time from the
      start of the process to that report.
  """

  def __init__(self, name: str, options: Options, cache: str = ''):
    command = [sys.executable, '-m', 'benchmarks.worker', name,
               json.dumps(dataclasses.asdict(options))]
    start = time.perf_counter()
    self._process = subprocess.Popen(command, cwd=REPO, env=_environment(cache), text=True,
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    self.first = self._answer()
    self.first['seconds'] = time.perf_counter() - start

  def _answer(self) -> Any:
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f'the worker ended with code {self._process.wait()}')
    return json.loads(line)

  def ask(self, do: str, **arguments: Any) -> Any:
    """Has the worker do something and returns its answer.

    Raises:
      RuntimeError: the worker has ended.
    """
    self._process.stdin.write(json.dumps({'do': do, **arguments}) + '\n')
    self._process.stdin.flush()
    return self._answer()

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()

  def __enter__(self) -> Child:
    return self

  def __exit__(self, *unused: Any) -> None:
    self.close()


def make_weights(name: str, folder: pathlib.Path) -> str:
  """Makes random weights of a published size once; returns their folder."""
  target = folder / name
  if not (target / 'config.json').exists():
    subprocess.run([sys.executable, '-m', 'benchmarks.worker', 'weights', str(target), name],
                   cwd=REPO, env=_environment(''), check=True)
  return str(target)


def take_turns(children: Mapping[str, Child], rounds: int, counts: Mapping[str, int] | None = None
               ) -> dict[str, dict[str, list[Any]]]:
  """Runs the children one after the other, A-B-A-B; one more turn for each comes first, unmeasured.

  Args:
    children: by name.
    rounds: measured turns of each.
    counts: steps of a turn by name; 1 if absent. A sample is the sum over the turn.

  Returns:
    name -> `seconds` and `cpu_seconds` of each turn, and `values`, those of the unmeasured turn
    included.
  """
  found = {name: {'seconds': [], 'cpu_seconds': [], 'values': []} for name in children}
  for turn in range(rounds + 1):
    for name, child in children.items():
      answer = child.ask('run', count=(counts or {}).get(name, 1))
      found[name]['values'] += answer['values']
      for kind in ('seconds', 'cpu_seconds') if turn else ():
        found[name][kind].append(sum(answer[kind]))
  return found


def summary(samples: Sequence[float]) -> dict[str, float]:
  """Median, least, largest and the quartiles of samples (equal to the median for fewer than 2)."""
  median = statistics.median(samples)
  low, _, high = statistics.quantiles(samples, n=4, method='inclusive') if len(samples) > 1 else (
      median, median, median)
  return {'median': median, 'least': min(samples), 'largest': max(samples),
          'quartile_1': low, 'quartile_3': high}


def ratio(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
  """Ratio of the medians, and the summary of the ratios of neighbouring turns."""
  turns = [a / b for a, b in zip(first, second, strict=True)]
  return {'of_medians': statistics.median(first) / statistics.median(second),
          'of_turns': summary(turns)}


def largest_difference(first: Sequence[float], second: Sequence[float]) -> float:
  """Largest relative difference of two sequences of losses."""
  return max(abs(a - b) / max(abs(a), abs(b), 1e-30) for a, b in zip(first, second, strict=True))
