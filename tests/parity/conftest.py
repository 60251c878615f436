"""Where recorded cases lie, and what is computed beside what was recorded."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from pemt_jax.models.layers import Compute
from pemt_jax.parity import cases


@pytest.fixture
def folder_of(golden_root: pathlib.Path,
              request: pytest.FixtureRequest) -> Callable[[str], pathlib.Path]:
  """Folder of a case of the module's SYSTEM, of the repository or else of the shared place."""
  def find(name):
    place = pathlib.Path(request.module.SYSTEM) / name
    if (golden_root / place).is_dir():
      return golden_root / place
    return request.getfixturevalue('shared_root') / 'golden' / place

  return find


@pytest.fixture
def compared(folder_of: Callable[[str], pathlib.Path]
             ) -> Callable[[str], list[tuple[str, np.ndarray, np.ndarray]]]:
  """(array's name, computed, recorded) of a case; types and shapes are those that were recorded.

  All that the case requires is there.
  """
  def compute(name):
    folder = folder_of(name)
    case = json.loads((folder / 'case.json').read_text())
    kind, found = cases.compute(folder, case, Compute())
    assert kind == 'npz'
    assert {key for key, array in case['arrays'].items() if array['required']} <= found.keys()
    with np.load(folder / 'outputs.npz') as recorded:
      pairs = [(key, value, recorded[key]) for key, value in found.items()]
    for key, value, expected in pairs:
      assert (value.dtype, value.shape) == (expected.dtype, expected.shape), key
    return pairs

  return compute
