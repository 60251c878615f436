"""Feeds damaged files to every reader and reports what must not happen.

python benchmarks/fuzz.py --seconds=300 [--cases=expert,packed] [--first_seed=0]

Each reader gets a damaged copy of a whole input, again and again. It may answer or refuse with a
`UserError`. A crash, another exception, a started program, a connection, a file written elsewhere,
more memory or more time than `benchmarks.fuzzing` allows is reported with the seed that leads to
it, and ends the command with code 1. The readers run in a child process, which is replaced when it
hangs or dies.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
import time

from absl import flags

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from pemt_jax import cli
from pemt_jax.errors import one_of

SECONDS_OF_RUN = flags.DEFINE_float('seconds', 300.0, 'Time for all cases together.', 1.0)
NAMES = flags.DEFINE_list('cases', [], 'Readers; the default is all of them.')
FIRST = flags.DEFINE_integer('first_seed', 0, 'Seed of the first round; each round adds one.', 0)
SHOW = flags.DEFINE_bool('show', False, 'Print every outcome, with its damage and its reason.')
CHILD = flags.DEFINE_string('child', '', 'For the child process: folder of the inputs.')
_START = 120.0  # seconds for a child to load libraries and to write whole inputs


def child(root: pathlib.Path, names: list[str], seed: int) -> None:
  """Reads damaged inputs until it is ended; prints a line before and after each."""
  from benchmarks import fuzzing
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  for name in names:
    fuzzing.prepare(root, name)
  fuzzing.limit_memory()
  watch = fuzzing.Watch()
  print('ready', file=answers, flush=True)
  while True:
    for name in names:
      print(json.dumps([name, seed]), file=answers, flush=True)
      outcome = fuzzing.attempt(root, name, seed, watch)
      print(json.dumps([outcome.kind, outcome.damage, outcome.reason]), file=answers, flush=True)
    seed += 1


class Readers:
  """The child process."""

  def __init__(self, root: pathlib.Path, names: list[str], seed: int):
    command = [sys.executable, __file__, f'--child={root}', f"--cases={','.join(names)}",
               f'--first_seed={seed}']
    self._process = subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        bufsize=0,
        env=dict(os.environ, JAX_PLATFORMS='cpu', HF_HUB_OFFLINE='1', PYTHONPATH=str(REPO)))

  def line(self, seconds: float) -> bytes:
    """The next line; empty where the child died or says nothing for so long."""
    ready, _, _ = select.select([self._process.stdout], [], [], seconds)
    return self._process.stdout.readline() if ready else b''

  def end(self) -> str:
    """Ends the child; tells how it was."""
    try:
      code = self._process.wait(1.0)
    except subprocess.TimeoutExpired:
      code = None
    self._process.kill()
    self._process.wait()
    return 'hung' if code is None else f'died with code {code}'


def run(root: pathlib.Path, names: list[str], seed: int, end: float
        ) -> tuple[dict[str, collections.Counter], list[str]]:
  """Counts outcomes by reader until a time; returns them and what must not happen."""
  counts = {name: collections.Counter() for name in names}
  broken: list[str] = []
  while time.monotonic() < end:
    readers = Readers(root, names, seed)
    if readers.line(_START) != b'ready\n':
      raise RuntimeError(f'the readers cannot start: {readers.end()}')
    while time.monotonic() < end:
      name, seed = json.loads(readers.line(10.0) or f'["start", {seed}]')
      answer = readers.line(30.0)
      kind, damage, reason = json.loads(answer) if answer else ('broken', '', readers.end())
      counts[name][kind] += 1
      if SHOW.value or kind == 'broken':
        print(f'{kind}: --cases={name} --first_seed={seed} ({damage}): {reason}', flush=True)
      if kind == 'broken':
        broken.append(f'{name} {seed}')
      if not answer:
        seed += 1
        break
    readers.end()
  return counts, broken


def main(_: list[str]) -> int:
  """Runs the readers and prints a table."""
  from benchmarks.readers import CASES
  names = NAMES.value or list(CASES)
  for name in names:
    one_of('--cases', name, CASES)
  if CHILD.value:
    child(pathlib.Path(CHILD.value), names, FIRST.value)
  start = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    counts, broken = run(pathlib.Path(folder), names, FIRST.value, start + SECONDS_OF_RUN.value)
  print('| reader | inputs | read | refused | broken |\n|---|---|---|---|---|')
  for name, own in counts.items():
    print(f"| {name} | {own.total()} | {own['read']} | {own['refused']} | {own['broken']} |")
  total = sum((own.total() for own in counts.values()))
  print(f'{total} damaged inputs in {time.monotonic() - start:.0f} s, {len(broken)} broken.')
  return 1 if broken else 0


if __name__ == '__main__':
  cli.run(main)
