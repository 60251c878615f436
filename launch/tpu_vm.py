"""Makes a TPU VM or pod, sets all its workers up, runs a command on them, or gives it back.

python launch/tpu_vm.py --action=run --name=NAME --zone=ZONE --command='python launch/train.py ...'

--dry_run prints what would be called, in a form that a shell reads, and calls nothing.
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax import clusters

ACTION = flags.DEFINE_enum('action', 'run', ['create', 'setup', 'run', 'delete'], 'What to do.')
NAME = flags.DEFINE_string('name', None, 'Name of the TPU.', required=True)
ZONE = flags.DEFINE_string('zone', None, 'Its zone.', required=True)
TYPE = flags.DEFINE_string('type', '', 'Accelerator type, such as v5litepod-16.')
VERSION = flags.DEFINE_string('version', '', 'Software version, such as v2-alpha-tpuv5-lite.')
PROJECT = flags.DEFINE_string('project', '', "Project; the default is gcloud's own.")
SPOT = flags.DEFINE_bool('spot', False, 'Make it a spot TPU, which may be taken away.')
REPOSITORY = flags.DEFINE_string('repository', '', 'What the workers git clone at --action=setup.')
FOLDER = flags.DEFINE_string('folder', 'pemt_jax', 'Folder of the repository on the workers.')
COMMAND = flags.DEFINE_string('command', '', 'What all workers run at --action=run.')
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print what would be called and call nothing.')


def main(_: list[str]) -> int:
  """Calls gcloud and returns its exit code."""
  tpu = clusters.TpuVm(NAME.value, ZONE.value, TYPE.value, VERSION.value, PROJECT.value,
                       FOLDER.value, SPOT.value)
  action = {'create': tpu.create, 'setup': lambda: tpu.setup(REPOSITORY.value),
            'run': lambda: tpu.run(COMMAND.value), 'delete': tpu.delete}[ACTION.value]
  return clusters.call(action(), dry_run=DRY_RUN.value)


if __name__ == '__main__':
  cli.run(main)
