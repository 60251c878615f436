"""The command that makes task vectors."""

from __future__ import annotations

import numpy as np

from pemt_jax.interop.task_vector_files import read_task_vectors


def test_vectors_of_the_gym_are_written_and_mistakes_end_with_one_sentence(command, workdir):
  arguments = ('--config=configs/task_moe/vectors.py', f'--output={workdir / "vectors"}')
  code, stdout, stderr = command('task_vectors', *arguments, '--kind=random', '--width=8',
                                 '--stddev=0.02', '--seed=1')
  assert (code, stderr) == (0, '')
  assert stdout == f'160 tasks, 8 numbers each: {workdir / "vectors"}\n'
  found = read_task_vectors(workdir / 'vectors')
  assert len(found.names) == 160 and 'crossfit/glue-rte' in found.names
  assert 0.015 < np.std(found.vectors) < 0.025
  code, _, stderr = command('task_vectors', *arguments, '--kind=fisher', '--width=200')
  assert code == 2
  assert stderr == ('width is 200, but 160 tasks have only 160 principal components; give at most'
                    ' 160, or 0 to keep all numbers.\n')
