"""Commands, scripts and manifests that start one program as several processes on other machines.

What is started finds its coordinator, number and index by variables of the environment, see
`cli.run`; JAX finds them itself on TPU pods and under Slurm.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pemt_jax.errors import UserError

ADDRESS, COUNT, INDEX = 'PEMT_COORDINATOR_ADDRESS', 'PEMT_PROCESS_COUNT', 'PEMT_PROCESS_INDEX'
# Exit codes: a mistake that another start repeats, and a run that a signal has ended.
MISTAKE, STOPPED = 2, 143


def call(command: Sequence[str], text: str = '', dry_run: bool = False) -> int:
  """Calls a program and returns its exit code.

  Args:
    command: the program and its arguments; no shell reads them.
    text: what it reads.
    dry_run: print what it would read, and the command (to stderr where there is something to
      read), instead.

  Raises:
    UserError: the program is not installed.
  """
  if dry_run:
    print(text, end='')
    print(shlex.join(command), file=sys.stderr if text else sys.stdout)
    return 0
  try:
    return subprocess.run(command, input=text or None, text=True, check=False).returncode
  except FileNotFoundError as error:
    raise UserError(f'{command[0]} is not installed here; install it, or look at what would be '
                    'called with --dry_run.') from error


def words_of(command: str) -> list[str]:
  """The words of a command as a shell reads them.

  Raises:
    UserError: an empty command, or an open quotation.
  """
  try:
    found = shlex.split(command)
  except ValueError as error:
    raise UserError(f'--command {command!r} cannot be read ({error}); close every quotation.'
                    ) from error
  if not found:
    raise UserError("--command is empty; give what to run, such as 'python launch/train.py ...'.")
  return found


def _named(name: str) -> str:
  if not re.fullmatch(r'[a-z]([-a-z0-9]{0,50}[a-z0-9])?', name):
    raise UserError(f"--name is '{name}'; use small letters, digits and '-', a letter first, at "
                    'most 52 of them.')
  return name


@dataclasses.dataclass(frozen=True)
class TpuVm:
  """A TPU VM or pod of Google Cloud, all workers of which run the same command.

  Attributes:
    name: of the TPU.
    zone: where it is.
    kind: accelerator type, such as v5litepod-16.
    version: of its software, such as v2-alpha-tpuv5-lite.
    project: of the cloud; '' is gcloud's own.
    folder: of the repository on the workers, below the home folder.
    spot: whether it may be taken away.
  """

  name: str
  zone: str
  kind: str = ''
  version: str = ''
  project: str = ''
  folder: str = 'pemt_jax'
  spot: bool = False

  def _gcloud(self, verb: str, *more: str) -> list[str]:
    project = [f'--project={self.project}'] if self.project else []
    return ['gcloud', 'compute', 'tpus', 'tpu-vm', verb, _named(self.name), f'--zone={self.zone}',
            *project, *more]

  def _on_all(self, text: str) -> list[str]:
    return self._gcloud('ssh', '--worker=all', f'--command={text}')

  def create(self) -> list[str]:
    """The command that makes it.

    Raises:
      UserError: neither type nor version.
    """
    for option, value in (('type', self.kind), ('version', self.version)):
      if not value:
        raise UserError(f'Option --{option} is missing; a TPU is made with --type and --version.')
    spot = ['--spot'] if self.spot else []
    return self._gcloud('create', f'--accelerator-type={self.kind}', f'--version={self.version}',
                        *spot)

  def setup(self, repository: str) -> list[str]:
    """The command that brings the repository to all workers and installs what it needs.

    Raises:
      UserError: no repository.
    """
    if not repository:
      raise UserError('Option --repository is missing; give what the workers can git clone.')
    folder = shlex.quote(self.folder)
    return self._on_all(f'git clone {shlex.quote(repository)} {folder} && cd {folder} && '
                        'bash launch/setup.sh tpu')

  def run(self, command: str) -> list[str]:
    """The command that runs another one on all workers, in the environment of the repository."""
    return self._on_all(f'cd {shlex.quote(self.folder)} && PATH="$PWD/.venv/bin:$PATH" '
                        f'{ADDRESS}=auto {shlex.join(words_of(command))}')

  def delete(self) -> list[str]:
    """The command that gives it back."""
    return self._gcloud('delete', '--quiet')


@dataclasses.dataclass(frozen=True)
class SlurmJob:
  """A job for `sbatch`; one process per GPU, or per node without GPUs.

  Attributes:
    name: of the job.
    nodes: machines.
    gpus_per_node: 0 for CPU nodes.
    cpus_per_process: cores of each process; 0 leaves them to Slurm.
    time: limit, in Slurm's form; '' is the partition's.
    folder: where the command runs; '' is where sbatch was called.
    output: file of what is printed; Slurm puts the job's number for %j.
    grace: seconds before the limit in which the run is told to save and stop.
    options: more options of sbatch, such as --partition=gpu.
  """

  name: str
  nodes: int = 1
  gpus_per_node: int = 0
  cpus_per_process: int = 0
  time: str = ''
  folder: str = ''
  output: str = '%x-%j.log'
  grace: int = 120
  options: Sequence[str] = ()

  def script(self, command: str) -> str:
    """The batch script; a run that Slurm's signal has ended is put into the queue again.

    Raises:
      UserError: numbers out of range, options that are none.
    """
    for field, bound in (('nodes', 1), ('gpus_per_node', 0), ('cpus_per_process', 0),
                         ('grace', 1)):
      _at_least(field, getattr(self, field), bound)
    given = {'job-name': _named(self.name), 'nodes': self.nodes,
             'ntasks-per-node': self.gpus_per_node or 1, 'gpus-per-node': self.gpus_per_node,
             'cpus-per-task': self.cpus_per_process, 'time': self.time, 'output': self.output,
             'open-mode': 'append', 'signal': f'TERM@{self.grace}'}
    options = [*(f'--{name}={value}' for name, value in given.items() if value), '--requeue',
               *self.options]
    for option in options:
      if not re.fullmatch(r'--[a-z][-a-z]*(=\S+)?', option):
        raise UserError(f"sbatch would get the option '{option}'; write --name=value, without "
                        'spaces.')
    folder = [f'cd {shlex.quote(self.folder)}'] if self.folder else []
    return '\n'.join([
        '#!/bin/bash', *(f'#SBATCH {option}' for option in options), '', *folder,
        f'export {ADDRESS}=auto',
        f'srun --kill-on-bad-exit=1 {shlex.join(words_of(command))}', 'code=$?',
        f'if [ "$code" -eq {STOPPED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi', 'exit "$code"',
        ''])


@dataclasses.dataclass(frozen=True)
class KubernetesJob:
  """An indexed job with a service by which its pods find the first of them.

  Attributes:
    name: of the job and the service.
    image: container image with the repository and its environment.
    processes: pods.
    namespace: '' is the one of the context.
    resources: of each pod, such as {'nvidia.com/gpu': '8'}.
    node_selector: labels of the nodes.
    claim: persistent volume claim with room for runs that all pods can write; '' mounts none.
    mount: where the claim is mounted.
    automatic: whether JAX finds the processes itself, as on TPU nodes.
    port: of the coordinator.
    restarts: times that a pod may start again.
    grace: seconds in which a run may save when its pod is ended.
  """

  name: str
  image: str
  processes: int = 1
  namespace: str = ''
  resources: Mapping[str, str] = dataclasses.field(default_factory=dict)
  node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict)
  claim: str = ''
  mount: str = '/runs'
  automatic: bool = False
  port: int = 8476
  restarts: int = 10
  grace: int = 120

  def manifest(self, command: str) -> dict[str, Any]:
    """The manifest as kubectl reads it, in plain JSON values.

    Raises:
      UserError: numbers out of range or a name that cannot be one.
    """
    for field, bound in (('processes', 1), ('restarts', 0), ('grace', 1), ('port', 1)):
      _at_least(field, getattr(self, field), bound)
    about = {'name': _named(self.name)} | (
        {'namespace': self.namespace} if self.namespace else {})
    service = {'apiVersion': 'v1', 'kind': 'Service', 'metadata': about,
               'spec': {'clusterIP': 'None', 'publishNotReadyAddresses': True,
                        'selector': {'job-name': self.name}}}
    job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': about, 'spec': {
        'completionMode': 'Indexed', 'completions': self.processes,
        'parallelism': self.processes, 'backoffLimit': self.restarts * self.processes,
        # Another start would repeat a mistake; a pod that the cluster takes away is no failure.
        'podFailurePolicy': {'rules': [
            {'action': 'FailJob', 'onExitCodes': {'operator': 'In', 'values': [MISTAKE]}},
            {'action': 'Ignore', 'onPodConditions': [{'type': 'DisruptionTarget'}]}]},
        'template': {'spec': self._pod(command)}}}
    return {'apiVersion': 'v1', 'kind': 'List', 'items': [service, job]}

  def _pod(self, command: str) -> dict[str, Any]:
    container = {'name': 'main', 'image': self.image, 'command': words_of(command),
                 'env': self._environment()}
    if self.resources:
      container['resources'] = {'limits': dict(self.resources)}
    pod = {'restartPolicy': 'Never', 'subdomain': self.name,
           'terminationGracePeriodSeconds': self.grace, 'containers': [container]}
    if self.node_selector:
      pod['nodeSelector'] = dict(self.node_selector)
    if self.claim:
      container['volumeMounts'] = [{'name': 'runs', 'mountPath': self.mount}]
      pod['volumes'] = [{'name': 'runs', 'persistentVolumeClaim': {'claimName': self.claim}}]
    return pod

  def _environment(self) -> list[dict[str, Any]]:
    if self.automatic:
      return [{'name': ADDRESS, 'value': 'auto'}]
    path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [{'name': ADDRESS, 'value': f'{self.name}-0.{self.name}:{self.port}'},
            {'name': COUNT, 'value': str(self.processes)},
            {'name': INDEX, 'valueFrom': {'fieldRef': {'fieldPath': path}}}]


def _at_least(field: str, value: int, bound: int) -> None:
  if value < bound:
    raise UserError(f'--{field} is {value}; give a number of at least {bound}.')


def pairs_of(option: str, texts: Sequence[str]) -> dict[str, str]:
  """Reads `name=value` texts.

  Raises:
    UserError: a text of another form.
  """
  found = {}
  for text in texts:
    name, sign, value = text.partition('=')
    if not (name and sign and value):
      raise UserError(f"--{option} holds '{text}'; write name=value.")
    found[name] = value
  return found
