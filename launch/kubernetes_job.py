"""Applies a command as an indexed Kubernetes job, one pod per process.

python launch/kubernetes_job.py --name=NAME --image=IMAGE --processes=4 --command='python ...'

--dry_run prints the manifest (JSON, which kubectl reads) and applies nothing.
"""

from __future__ import annotations

import json
import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax import clusters

NAME = flags.DEFINE_string('name', None, 'Name of the job.', required=True)
IMAGE = flags.DEFINE_string('image', None, 'Container image with the repository.', required=True)
COMMAND = flags.DEFINE_string('command', None, 'What every pod runs.', required=True)
PROCESSES = flags.DEFINE_integer('processes', 1, 'Number of pods.')
NAMESPACE = flags.DEFINE_string('namespace', '', "Namespace; the default is the context's.")
RESOURCES = flags.DEFINE_multi_string('resource', [], 'Limit of a pod: nvidia.com/gpu=8.')
NODES = flags.DEFINE_multi_string('node', [], 'Label of the nodes, as name=value.')
CLAIM = flags.DEFINE_string('claim', '', 'Volume claim for runs that all pods can write.')
MOUNT = flags.DEFINE_string('mount', '/runs', 'Where the claim is mounted.')
TPU = flags.DEFINE_bool('tpu', False, 'Pods on TPU nodes, which know each other.')
PORT = flags.DEFINE_integer('port', 8476, 'Port of the coordinator.')
RESTARTS = flags.DEFINE_integer('restarts', 10, 'Times that a pod may start again.')
GRACE = flags.DEFINE_integer('grace', 120, 'Seconds in which a run may save when a pod is ended.')
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the manifest and apply nothing.')


def main(_: list[str]) -> int:
  """Calls kubectl and returns its exit code."""
  job = clusters.KubernetesJob(
      NAME.value, IMAGE.value, PROCESSES.value, NAMESPACE.value,
      clusters.pairs_of('resource', RESOURCES.value), clusters.pairs_of('node', NODES.value),
      CLAIM.value, MOUNT.value, TPU.value, PORT.value, RESTARTS.value, GRACE.value)
  text = json.dumps(job.manifest(COMMAND.value), indent=2) + '\n'
  return clusters.call(['kubectl', 'apply', '-f', '-'], text, dry_run=DRY_RUN.value)


if __name__ == '__main__':
  cli.run(main)
