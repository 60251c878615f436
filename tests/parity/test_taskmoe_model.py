"""Routed layers against the original: passes, gradients, training, decoding, conversions."""

from __future__ import annotations

import numpy as np
import pytest

from pemt_jax.interop import files, names
from pemt_jax.parity import taskmoe_model
from pemt_jax.parity.common import read_case

SYSTEM = 'taskmoe'
TOLERANCE = {'loss': 5e-5, 'scores': 1e-5, 'grad_norms': 1e-4}
FEW = ('full_gumbel_st', 'cached_decoding')
ALL = ('full_avg_routing', 'full_exploration', 'full_gumbel_soft', 'full_instance_random',
       'full_softmax_tau', 'full_task_random', 'full_vanilla_layers', 'v1_routers_inside',
       'init_copy_noise', 'squeeze_weights', 'train_steps', 'train_steps_alternate', 'beam_search')


@pytest.mark.parametrize('name', [*FEW, *(pytest.param(name, marks=pytest.mark.slow)
                                          for name in ALL)])
def test_everything_that_a_case_names_is_computed_again(name, compared):
  for key, value, expected in compared(name):
    rtol, atol = 1e-5, next((size for end, size in TOLERANCE.items() if key.endswith(end)), 2e-5)
    if expected.dtype.kind == 'i':
      rtol, atol = 0.0, 0.0
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol, err_msg=key)


def test_the_original_file_goes_through_the_tree_and_back(folder_of):
  folder = folder_of('full_vanilla_layers')
  case, state = read_case(folder)[0], files.read_tensors(folder / 'state.safetensors')
  table = taskmoe_model.read_setup(case, state).table
  tree = names.load(state, table)
  assert tree['encoder']['layers']['experts']['mlp']['wi']['kernel'].shape[:2] == (1, 2)
  back = names.dump(tree, table, aliases=True)
  assert back.keys() == set(state)
  for key, value in back.items():
    np.testing.assert_array_equal(value, state[key], err_msg=key)
