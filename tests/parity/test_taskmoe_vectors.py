"""Task vectors against the original program: embeddings of texts, Fisher information."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.parity import cases

SYSTEM = 'taskmoe'  # see `folder_of`


@pytest.mark.slow
@pytest.mark.parametrize('name', ['text_emb', 'finetuned_text_emb', 'fisher_adapter'])
def test_recorded_arrays_are_reproduced(name, folder_of):
  folder = folder_of(name)
  case = json.loads((folder / 'case.json').read_text())
  _, found = cases.compute(folder, case, cases.Compute())
  with np.load(folder / 'outputs.npz') as expected:
    assert found.keys() == set(expected)
    for key, value in found.items():
      assert value.dtype == expected[key].dtype and value.shape == expected[key].shape, key
      # Gradients of what a softmax does not see are rounding only.
      scale = max(np.abs(expected[key]).max(), 1e-2)
      np.testing.assert_allclose(value, expected[key], rtol=0, atol=2e-5 * scale, err_msg=key)
