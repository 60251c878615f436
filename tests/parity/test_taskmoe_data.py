"""Data and scores of the task-level mixture against the original program."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.parity import cases
from pemt_jax.models.layers import Compute

SYSTEM = 'taskmoe'  # see `folder_of`


@pytest.mark.parametrize('name', ['metrics', 'kshot_sampling', 'collect_arg'])
def test_recorded_texts_are_reproduced(name, folder_of):
  folder = folder_of(name)
  kind, found = cases.compute(folder, json.loads((folder / 'case.json').read_text()), Compute())
  expected = json.loads((folder / 'outputs.json').read_text())
  assert kind == 'json'
  if name == 'metrics':
    assert found == pytest.approx(expected, abs=1e-12)
  else:
    assert found == expected


@pytest.mark.parametrize('name', ['data_pipeline', 'label_smoothing'])
def test_recorded_arrays_are_reproduced(name, folder_of):
  folder = folder_of(name)
  _, found = cases.compute(folder, json.loads((folder / 'case.json').read_text()), Compute())
  with np.load(folder / 'outputs.npz') as expected:
    assert set(found) == set(expected)
    for key, value in found.items():
      assert value.dtype == expected[key].dtype
      np.testing.assert_allclose(value, expected[key], rtol=1e-6, atol=2e-7, err_msg=key)
