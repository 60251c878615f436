"""The stages of PEMT, evaluation, similarity and merging on 8 simulated devices."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest


def figures(run_python, folder, devices, *mesh):
  """What the whole way prints on some devices."""
  done = run_python('-W', 'ignore', '-m', 'tests.sharding.whole_way', folder, *mesh,
                    devices=devices, timeout=900)
  assert done.returncode == 0, done.stderr[-4000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_every_step_gives_the_figures_of_one_device(run_python, tmp_path):
  one = figures(run_python, tmp_path / 'one', 1)
  many = figures(run_python, tmp_path / 'many', 8, 'fsdp=2', 'tensor=2', 'replica=2')
  assert {'evaluated', 'similarity', 'fisher', 'search'} < one.keys()
  paths, values = zip(*jax.tree_util.tree_leaves_with_path(one))
  others = jax.tree.leaves(many)
  for path, value, other in zip(paths, values, others, strict=True):
    np.testing.assert_allclose(other, value, rtol=2e-4, atol=1e-5, err_msg=str(path))
