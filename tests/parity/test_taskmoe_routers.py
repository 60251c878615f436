"""Routers and routes against the original program: logits, gradients, read-outs, schedules."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts.routers import KINDS
from pemt_jax.parity import taskmoe

SYSTEM = 'taskmoe'  # see `folder_of`
SHIPPED = ('router_gru', 'get_routes')
ALL = (*(f'router_{kind}' for kind in KINDS), 'get_routes', 'tau_schedule',
       'expert_regularization')
CASES = [pytest.param(name, marks=[] if name in SHIPPED else [pytest.mark.slow]) for name in ALL]


@pytest.mark.parametrize('name', CASES)
def test_recorded_arrays_are_reproduced(name, compared):
  for array, value, expected in compared(name):
    exact = array == 'tau'  # but for the last bit of the exponential
    np.testing.assert_allclose(value, expected, rtol=1e-15 if exact else 1e-6,
                               atol=0.0 if exact else 1e-5, err_msg=array)


def test_an_unknown_case_is_refused(tmp_path):
  (tmp_path / 'case.json').write_text(json.dumps({'system': 'taskmoe', 'case': 'none'}))
  with pytest.raises(UserError, match="no code for the case 'none' of taskmoe"):
    taskmoe.compute(tmp_path)
