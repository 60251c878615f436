"""Kills a run again and again, starts it again, compares what it leaves with an undisturbed run.

python benchmarks/kills.py --kills=30 [--devices=8] [--processes=2] [--workdir=DIR]

Prints one line per kill and the number of kills per phase; ends with code 1 where anything that a
run leaves differs by a bit. A run is of seconds and on the CPU.
"""

from __future__ import annotations

import collections
import json
import pathlib
import random
import shutil
import sys
import tempfile
from typing import Any

from absl import flags, logging

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from benchmarks import kill_runs, machine
from pemt_jax import cli
from pemt_jax.errors import number

KILLS = flags.DEFINE_integer('kills', 30, 'Kills in all, at least 1.')
DEVICES = flags.DEFINE_enum('devices', '1', list(kill_runs.MESHES), 'Simulated CPU devices.')
PROCESSES = flags.DEFINE_integer('processes', 1, 'That run together; one of them is killed.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.')
WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of the runs; the default is a temporary one.')
OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures; none by default.')


def main(_: list[str]) -> int:
  """Kills until the number is reached and every run has ended; returns 1 after a difference."""
  logging.set_verbosity(logging.ERROR)  # Orbax warns of arrays that are read alone.
  number('--processes', PROCESSES.value, PROCESSES.value >= 1, 'of at least 1')
  number('--kills', KILLS.value, KILLS.value >= 1, 'of at least 1')
  with (tempfile.TemporaryDirectory() as temporary,
        kill_runs.Starters(DEVICES.value, PROCESSES.value) as starters):
    found = _kill(pathlib.Path(WORKDIR.value or temporary), starters)
  counts = collections.Counter(moment['phase'] for moment in found['kills'])
  print('\n| killed in | times |\n|---|---:|')
  for phase, times in sorted(counts.items()):
    print(f'| {phase} | {times} |')
  print(f"\n{len(found['kills'])} kills, {found['runs']} runs, {len(found['differences'])} "
        'differences')
  if OUTPUT.value:
    pathlib.Path(OUTPUT.value).write_text(json.dumps(found, indent=2) + '\n', encoding='utf-8')
  return int(bool(found['differences']))


def _kill(folder: pathlib.Path, starters: kill_runs.Starters) -> dict[str, Any]:
  """Makes the undisturbed run and the killed ones; returns the figures."""
  rng = random.Random(SEED.value)
  straight = kill_runs.KillableRun(folder / 'straight')
  straight.start(starters)
  found = {'machine': machine.describe(), 'devices': DEVICES.value,
           'processes': PROCESSES.value, 'runs': 0, 'kills': [], 'differences': []}
  while len(found['kills']) < KILLS.value:
    run = kill_runs.KillableRun(folder / f"run{found['runs']}")
    for moment in run.to_the_end(starters, straight.seconds, rng,
                                 KILLS.value - len(found['kills'])):
      found['kills'].append(moment)
      print('killed {delay:.3f} s after call {entry} of {phase}'.format(**moment), flush=True)
    found['runs'] += 1
    differences = kill_runs.differences(straight, run)
    found['differences'] += differences
    print('\n'.join(differences) or 'ended as the undisturbed run, bit for bit', flush=True)
    if not differences:
      shutil.rmtree(run.folder)
  return found


if __name__ == '__main__':
  cli.run(main)
