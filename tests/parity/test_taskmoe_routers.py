"""Routers and routes against the original program: logits, gradients, read-outs, schedules."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts.routers import KINDS
from pemt_jax.parity import cases, taskmoe

SYSTEM = 'taskmoe'  # see `folder_of`
SHIPPED = ('router_gru', 'get_routes')
ALL = (*(f'router_{kind}' for kind in KINDS), 'get_routes', 'tau_schedule',
       'expert_regularization')
CASES = [pytest.param(name, marks=[] if name in SHIPPED else [pytest.mark.slow]) for name in ALL]


@pytest.mark.parametrize('name', CASES)
def test_recorded_arrays_are_reproduced(name, folder_of):
  folder = folder_of(name)
  case = json.loads((folder / 'case.json').read_text())
  kind, found = cases.compute(folder, case, cases.Compute())
  assert kind == 'npz'
  assert {name for name, array in case['arrays'].items() if array['required']} <= found.keys()
  with np.load(folder / 'outputs.npz') as expected:
    assert found.keys() <= set(expected)
    for name, value in found.items():
      assert value.dtype == expected[name].dtype and value.shape == expected[name].shape, name
      exact = name == 'tau'  # but for the last bit of the exponential
      np.testing.assert_allclose(value, expected[name], rtol=1e-15 if exact else 1e-6,
                                 atol=0.0 if exact else 1e-5, err_msg=name)


def test_an_unknown_case_is_refused(tmp_path):
  (tmp_path / 'case.json').write_text(json.dumps({'system': 'taskmoe', 'case': 'none'}))
  with pytest.raises(UserError, match="no code for the case 'none' of taskmoe"):
    taskmoe.compute(tmp_path)
