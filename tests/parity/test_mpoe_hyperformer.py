"""Adapters and hyper-networks against the HyperFormer code: every recorded array."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.interop import files, names
from pemt_jax.models.layers import Compute
from pemt_jax.parity import cases, mpoe_hyperformer as parity

SYSTEM = 'mpoe'  # see `folder_of`
MODULES = ('adapter_single_task', 'adapter_meta_conditional_norm', 'hyperformer', 'hyperformer_pp')
CASES = (*MODULES, 'multitask_sampler')


def read_case(folder):
  return json.loads((folder / 'case.json').read_text())


@pytest.mark.parametrize('name', CASES)
def test_recorded_arrays_are_reproduced(name, folder_of, compared):
  """Within 1e-5 of the largest value, gradients included; weights of the sampler to 1e-12."""
  tolerance, found = 1e-12 if name == 'multitask_sampler' else 1e-5, compared(name)
  assert {array for array, _, _ in found} == read_case(folder_of(name))['arrays'].keys()
  for array, value, expected in found:
    scale = max(np.abs(expected).max(), 1.0)
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * scale, err_msg=array)


@pytest.mark.parametrize('name', MODULES)
def test_tensors_come_back_under_their_names(name, folder_of):
  folder = folder_of(name)
  table = parity.parts_of(read_case(folder))[1]
  state = files.read_tensors(folder / 'state.safetensors')
  back = names.dump(names.load(state, table), table)
  assert back.keys() == set(state)
  for key, value in back.items():
    np.testing.assert_array_equal(value, state[key], err_msg=key)


def test_a_case_without_code_is_refused(tmp_path):
  (tmp_path / 'case.json').write_text(json.dumps({'system': 'mpoe', 'case': 'none'}))
  with pytest.raises(UserError, match="no code for the case 'none' of mpoe; choose cases that"):
    cases.compute(tmp_path, {'system': 'mpoe', 'case': 'none'}, Compute())
