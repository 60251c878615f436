"""Routed feed-forwards against the original program: layers, whole models, names of tensors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.interop import files, mpoe_moe_names, mpoe_names
from pemt_jax.models import t5_config
from pemt_jax.models.t5 import T5
from pemt_jax.parity import mpoe_moe as parity
from pemt_jax.trees import flatten
from tests import tiny

SYSTEM = 'mpoe'  # see `folder_of`
FAST = ('switch_dense_drop_tokens', 'moe_top2_mpo_truncated')
LAYERS = (
    *FAST, 'switch_dense', 'switch_dense_scale_prob', 'switch_mpo_shared_central',
    'switch_mpo_shared_central_truncated', 'switch_mpo_central_frozen', 'moe_top2_all',
    'moe_top2_none', 'moe_top2_threshold', 'moe_top2_random', 'moe_top2_capacity_overflow',
    'moe_top2_mpo_shared_central')
MODELS = ('t5_dense', 't5_switch_dense', 't5_switch_mpo', 't5_switch_mpo_label_smoothing',
          't5_switch_mpo_all_frozen_central', 't5_moe_dense', 't5_moe_mpo')
CASES = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
         for name in (*LAYERS, *MODELS)]


def read_case(folder):
  return json.loads((folder / 'case.json').read_text())


@pytest.mark.parametrize('name', CASES)
def test_recorded_arrays_are_reproduced(name, compared):
  """Gradients within 1e-4 of the largest, everything else 1e-5; counts and routes are equal."""
  for array, value, expected in compared(name):
    largest = np.abs(expected).max()
    atol = 1e-4 * largest if array.startswith('grad') else 1e-5 * max(largest, 1.0)
    if array.endswith(('routes', 'counts', 'n_dropped', 'dispatch')):
      atol = 0.0
    np.testing.assert_allclose(value, expected, rtol=0, atol=atol, err_msg=array)


@pytest.mark.parametrize('name', MODELS)
def test_states_come_back(name, folder_of):
  folder = folder_of(name)
  case, state = read_case(folder), files.read_tensors(folder / 'state.safetensors')
  config, layout = t5_config.from_hf(case['model_config'], 'case.json'), parity.layout_of(case)
  method = parity.method_of(config, case['method_config'], layout)
  table = mpoe_names.with_cores(mpoe_moe_names.t5_table(config, layout), method.plan)
  tree = mpoe_moe_names.state_to_tree(state, table)
  shapes = tiny.shapes(T5(config, method.plan))['params']
  assert {path: leaf.shape for path, leaf in flatten(tree).items()} == shapes
  back = mpoe_moe_names.tree_to_state(tree, table, aliases=True)
  assert set(state) <= back.keys()
  for key, value in state.items():
    np.testing.assert_array_equal(value, back[key], err_msg=key)


def test_central_cores_that_differ_between_experts_are_refused(folder_of):
  folder = folder_of('t5_switch_mpo')
  case = read_case(folder)
  config, layout = t5_config.from_hf(case['model_config'], 'case.json'), parity.layout_of(case)
  state = dict(files.read_tensors(folder / 'state.safetensors'))
  name = 'decoder.block.1.layer.2.sffn.experts.1.wo_mpo.tensor_set.2'
  state[name] = state[name] + 1e-3
  with pytest.raises(UserError, match=name):
    mpoe_moe_names.state_to_tree(state, mpoe_moe_names.t5_table(config, layout))
