"""Launchers for other machines, as far as a dry run goes."""

from __future__ import annotations

import json
import shlex
import subprocess

import hypothesis
import pytest
from hypothesis import strategies as st

from pemt_jax import clusters
from pemt_jax.errors import UserError

ODD = "python launch/train.py --config.tasks=\"('rte',)\" --workdir='a b' --config.x='$HOME;\\'"
WORDS = shlex.split(ODD)

JOB = r"""#!/bin/bash
#SBATCH --job-name=run
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --time=1:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --partition=gpu

cd 'my runs'
export PEMT_COORDINATOR_ADDRESS=auto
srun --kill-on-bad-exit=1 COMMAND
code=$?
if [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""


def test_a_slurm_job_is_printed_as_it_would_be_submitted(command, tmp_path):
  done = command('slurm_job', '--dry_run', '--name=run', '--nodes=2', '--gpus_per_node=4',
                 '--time=1:00:00', '--folder=my runs', '--sbatch=--partition=gpu',
                 f'--command={ODD}')
  assert done == (0, JOB.replace('COMMAND', shlex.join(WORDS)), 'sbatch\n')
  (tmp_path / 'job.sh').write_text(done[1])
  assert subprocess.run(['bash', '-n', tmp_path / 'job.sh'], check=False).returncode == 0


def test_a_kubernetes_job_is_printed_as_it_would_be_applied(command):
  code, out, err = command(
      'kubernetes_job', '--dry_run', '--name=run', '--image=image', '--processes=4',
      '--resource=nvidia.com/gpu=8', '--node=pool=large', '--claim=runs', f'--command={ODD}')
  assert (code, err) == (0, 'kubectl apply -f -\n')
  service, job = json.loads(out)['items']
  assert service['spec']['clusterIP'] == 'None' and service['metadata'] == {'name': 'run'}
  spec = job['spec']
  assert (spec['completionMode'], spec['completions'], spec['parallelism']) == ('Indexed', 4, 4)
  pod = spec['template']['spec']
  assert pod['subdomain'] == 'run' and pod['nodeSelector'] == {'pool': 'large'}
  container, = pod['containers']
  assert container['command'] == WORDS
  assert container['resources'] == {'limits': {'nvidia.com/gpu': '8'}}
  assert container['volumeMounts'] == [{'name': 'runs', 'mountPath': '/runs'}]
  address, count, index = container['env']
  assert (address['value'], count['value']) == ('run-0.run:8476', '4')
  assert 'job-completion-index' in index['valueFrom']['fieldRef']['fieldPath']


GCLOUD = ['gcloud', 'compute', 'tpus', 'tpu-vm']


@pytest.mark.parametrize('options, expected', [
    (('--action=create', '--type=v5litepod-16', '--version=v2', '--spot', '--project=p'),
     ['create', 'pod', '--zone=z', '--project=p', '--accelerator-type=v5litepod-16',
      '--version=v2', '--spot']),
    (('--action=setup', '--repository=https://x/y'),
     ['ssh', 'pod', '--zone=z', '--worker=all', '--command=git clone https://x/y pemt_jax && '
      'cd pemt_jax && bash launch/setup.sh tpu']),
    ((f'--command={ODD}',),
     ['ssh', 'pod', '--zone=z', '--worker=all', '--command=cd pemt_jax && '
      f'PATH="$PWD/.venv/bin:$PATH" PEMT_COORDINATOR_ADDRESS=auto {shlex.join(WORDS)}']),
    (('--action=delete',), ['delete', 'pod', '--zone=z', '--quiet'])])
def test_a_tpu_is_asked_for_as_printed(command, options, expected):
  code, out, err = command('tpu_vm', '--dry_run', '--name=pod', '--zone=z', *options)
  assert (code, shlex.split(out), err) == (0, [*GCLOUD, *expected], '')


@hypothesis.given(st.lists(st.text(st.characters(codec='utf-8', exclude_characters='\0'),
                                   min_size=1), min_size=1))
def test_odd_words_reach_the_command_as_they_are(words):
  command = shlex.join(words)
  remote = clusters.TpuVm('pod', 'z').run(command)[-1].removeprefix('--command=')
  assert shlex.split(remote)[-len(words):] == words
  lines = shlex.split(clusters.SlurmJob('run').script(command), comments=True)
  start = lines.index('--kill-on-bad-exit=1') + 1
  assert lines[start:start + len(words)] == words
  pod = clusters.KubernetesJob('run', 'image').manifest(command)['items'][1]['spec']['template']
  assert pod['spec']['containers'][0]['command'] == words


@pytest.mark.parametrize('script, options, sentence', [
    ('slurm_job', ('--name=run',), 'Option --command is missing; add --command=VALUE to the '
     'command.'),
    ('slurm_job', ('--name=run', '--command=x', '--nodes=0'),
     '--nodes is 0; give a number of at least 1.'),
    ('slurm_job', ('--name=run', '--command=x', '--time=1 day'),
     "sbatch would get the option '--time=1 day'; write --name=value, without spaces."),
    ('slurm_job', ('--name=run', "--command=x 'y"),
     "--command \"x 'y\" cannot be read (No closing quotation); close every quotation."),
    ('kubernetes_job', ('--name=Run', '--image=i', '--command=x'),
     "--name is 'Run'; use small letters, digits and '-', a letter first, at most 52 of them."),
    ('kubernetes_job', ('--name=run', '--image=i', '--command=x', '--resource=gpu'),
     "--resource holds 'gpu'; write name=value."),
    ('tpu_vm', ('--name=pod',), 'Option --zone is missing; add --zone=VALUE to the command.'),
    ('tpu_vm', ('--name=pod', '--zone=z', '--action=create', '--type=v4-8'),
     'Option --version is missing; a TPU is made with --type and --version.'),
    ('tpu_vm', ('--name=pod', '--zone=z', '--action=setup'),
     'Option --repository is missing; give what the workers can git clone.'),
    ('tpu_vm', ('--name=pod', '--zone=z'), "--command is empty; give what to run, such as "
     "'python launch/train.py ...'."),
])
def test_mistakes_end_with_one_sentence(command, script, options, sentence):
  assert command(script, *options) == (2, '', f'{sentence}\n')


def test_a_program_that_is_not_installed_is_named():
  with pytest.raises(UserError, match='no-such-program is not installed here'):
    clusters.call(['no-such-program'])
  assert clusters.call(['sh', '-c', 'read x && exit "$x"'], '7\n') == 7
