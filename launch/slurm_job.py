"""Submits a command as a Slurm job, one process per GPU, or per node without GPUs.

python launch/slurm_job.py --name=NAME --nodes=2 --gpus_per_node=8 --command='python ...'

--dry_run prints the batch script and submits nothing. A run that the time limit has stopped is
put into the queue again and resumes.
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax import clusters

NAME = flags.DEFINE_string('name', None, 'Name of the job.', required=True)
COMMAND = flags.DEFINE_string('command', None, 'What every process runs.', required=True)
NODES = flags.DEFINE_integer('nodes', 1, 'Machines.')
GPUS = flags.DEFINE_integer('gpus_per_node', 0, 'GPUs of each machine; 0 for CPU machines.')
CPUS = flags.DEFINE_integer('cpus_per_process', 0, "Cores of each process; 0 is Slurm's default.")
TIME = flags.DEFINE_string('time', '', "Limit in Slurm's form; the default is the partition's.")
FOLDER = flags.DEFINE_string('folder', '', 'Where the command runs; the default is here.')
OUTPUT = flags.DEFINE_string('output', '%x-%j.log', 'File of what is printed.')
GRACE = flags.DEFINE_integer('grace', 120, 'Seconds before the limit at which a run is stopped.')
SBATCH = flags.DEFINE_multi_string('sbatch', [], 'One more option, such as --partition=gpu.')
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the script and submit nothing.')


def main(_: list[str]) -> int:
  """Calls sbatch and returns its exit code."""
  job = clusters.SlurmJob(NAME.value, NODES.value, GPUS.value, CPUS.value, TIME.value,
                          FOLDER.value, OUTPUT.value, GRACE.value, SBATCH.value)
  return clusters.call(['sbatch'], job.script(COMMAND.value), dry_run=DRY_RUN.value)


if __name__ == '__main__':
  cli.run(main)
