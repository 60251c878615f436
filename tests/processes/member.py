"""Runs cases alone or as one of several processes; a program.

python -m tests.processes.member --base=DIR --workdir=DIR --cases=NAMES [--coordinator_address=..]
"""

from __future__ import annotations

import os
import pathlib
import signal

import jax
from absl import flags

from pemt_jax import cli
from pemt_jax.sharding import processes

BASE = flags.DEFINE_string('base', None, 'Folder of the shared runs.', required=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder with a folder per case.', required=True)
NAMES = flags.DEFINE_list('cases', [], 'Cases to run one after the other.')
STOP = flags.DEFINE_integer('stop', 0, 'Step after which the last process gets SIGTERM.')
DIE = flags.DEFINE_integer('die', 0, 'Step after which the last process dies.')
cli.define_process_flags()


def main(_: list[str]) -> None:
  """Runs every case into a folder of its own."""
  from tests.processes.cases import CASES
  if processes.count() == 1 or jax.process_index() == processes.count() - 1:
    _disturb()
  for name in NAMES.value:
    CASES[name](pathlib.Path(BASE.value), pathlib.Path(WORKDIR.value) / name)


def _disturb() -> None:
  """Lets a step of the training loop stop or end this process."""
  from pemt_jax.training.run import Run
  update = Run.update

  def disturbed(run: Run):
    metrics = update(run)
    if run.step == STOP.value:
      os.kill(os.getpid(), signal.SIGTERM)
    if run.step == DIE.value:
      os.kill(os.getpid(), signal.SIGKILL)
    return metrics

  Run.update = disturbed


if __name__ == '__main__':
  cli.run(main, processes.as_member)
