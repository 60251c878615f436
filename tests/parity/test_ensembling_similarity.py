"""Similarities and module importance against the original program."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.parity import ensembling_similarity as parity

OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in (
    'similarity_lora', 'similarity_prefix')] + ['importance_GraNd', 'importance_block_cosine']


def check(folder):
  found = parity.compute(folder)
  wanted = json.loads((folder / 'case.json').read_text())['arrays']
  with np.load(folder / 'outputs.npz') as expected:
    assert found.keys() == set(expected.files)
    for name, value in expected.items():
      assert found[name].dtype == wanted[name]['dtype'] and found[name].shape == value.shape, name
      rtol = 1e-3 if 'importance_GraNd' in folder.name else 1e-4  # gradients, 24 blocks deep
      np.testing.assert_allclose(found[name], value, rtol=rtol, atol=3e-5, err_msg=name)


def test_recorded_similarities_are_reproduced(golden_root):
  check(golden_root / 'ensembling' / 'similarity_adapter')


@pytest.mark.parametrize('name', OTHERS)
def test_further_recorded_arrays_are_reproduced(name, shared_root):
  check(shared_root / 'golden' / 'ensembling' / name)
