"""Task vectors against the original program: embeddings of texts, Fisher information."""

from __future__ import annotations

import numpy as np
import pytest

SYSTEM = 'taskmoe'  # see `folder_of`


@pytest.mark.slow
@pytest.mark.parametrize('name', ['text_emb', 'finetuned_text_emb', 'fisher_adapter'])
def test_recorded_arrays_are_reproduced(name, folder_of, compared):
  found = compared(name)
  with np.load(folder_of(name) / 'outputs.npz') as recorded:
    assert {key for key, _, _ in found} == set(recorded)
  for key, value, expected in found:
    # Gradients of what a softmax does not see are rounding only.
    scale = max(np.abs(expected).max(), 1e-2)
    np.testing.assert_allclose(value, expected, rtol=0, atol=2e-5 * scale, err_msg=key)
