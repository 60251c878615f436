"""Weight ensembling against the original program: every recorded array of the model cases."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.interop import ensembling_original, files
from pemt_jax.models.layers import Compute
from pemt_jax.models.t5 import T5
from pemt_jax.parity import ensembling as parity, ensembling_modules
from pemt_jax.training.rules import FROZEN, assign_groups
from pemt_jax.trees import flatten
from tests import tiny

SYSTEM = 'ensembling'  # see `folder_of`
SHIPPED = ('adapter_relu_tied', 'generate_prefix', 'train_lora')
MODELS = (
    'adapter_gated', 'adapter_relu_tied', 'lora_gated', 'lora_relu_tied', 'prefix_gated',
    'prefix_relu_tied', 'lora_mlp', 'bias_mlp', 'lora_BR_bias', 'lora_BR_stage2',
    'intrinsic_adapter', 'intrinsic_lora', 'intrinsic_prefix', 'combo_all',
    'full_model_adapterless', 'prompt')
OTHERS = ('generate_adapter', 'generate_lora', 'generate_prefix', 'train_adapter', 'train_lora',
          'train_prefix')
CASES = [pytest.param(name, marks=[] if name in SHIPPED else [pytest.mark.slow])
         for name in (*MODELS, *OTHERS)]


def read_case(folder):
  return json.loads((folder / 'case.json').read_text())


# Float64 differs as much from what the original recorded in float32: the case is ill-conditioned.
LOOSE = {'combo_all': 1e-4}


def check(folder, compute=parity.compute, **options):
  """Gradients relative 1e-3, everything else 1e-4; tokens are equal."""
  wanted, found = read_case(folder)['arrays'], compute(folder, **options)
  assert {name for name, array in wanted.items() if array['required']} <= found.keys()
  with np.load(folder / 'outputs.npz') as expected:
    for name, value in found.items():
      assert value.dtype == wanted[name]['dtype'] and value.shape == expected[name].shape, name
      gradient = 'grad' in name.split('/')
      np.testing.assert_allclose(value, expected[name], rtol=1e-3 if gradient else 1e-4,
                                 atol=LOOSE.get(folder.name, 1e-5), err_msg=name)


@pytest.mark.parametrize('name', CASES)
def test_recorded_arrays_are_reproduced(name, folder_of):
  check(folder_of(name))


@pytest.mark.parametrize('name', ['modules_standalone', 'fastfood'])
def test_single_modules_and_projections_are_reproduced(name, folder_of):
  check(folder_of(name), ensembling_modules.compute)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['adapter_gated', 'prefix_gated', 'generate_adapter'])
def test_unrolled_layers_reproduce_them_too(name, folder_of):
  check(folder_of(name), run=Compute(scan_layers=False))


@pytest.mark.parametrize('name', MODELS)
def test_states_come_back_and_the_method_tunes_what_the_original_trained(name, folder_of):
  folder = folder_of(name)
  case, state = read_case(folder), files.read_tensors(folder / 'state.safetensors')
  layout = parity.layout_of(case)
  tree = ensembling_original.state_to_tree(state, layout)
  method = parity.method_of(layout, case['model_config'])
  shapes = tiny.shapes(T5(layout.config, method.plan))
  for kind in tree:
    found = {path: leaf.shape for path, leaf in flatten(tree[kind]).items()}
    assert found == shapes.get(kind, {})
  back = ensembling_original.tree_to_state(tree['params'], layout, aliases=True)
  assert back.keys() == set(state)
  for key, value in back.items():
    np.testing.assert_array_equal(value, state[key], err_msg=key)
  names = ensembling_original.table_of(layout).names_of_paths()
  tuned = {original for path, group in assign_groups(dict(shapes['params']), method.tuned).items()
           if group != FROZEN for original in names[path].values()}
  trained = {key.removeprefix('grad/') for key in case['arrays'] if key.startswith('grad/')}
  # Of full tuning the case records some gradients only.
  assert trained == tuned or name == 'full_model_adapterless' and trained <= tuned


def test_one_vector_for_deltas_of_two_kinds_is_refused():
  flags = {'apply_lora': True, 'apply_prefix': True, 'share_intrinsic': True, 'lora_r': 2}
  with pytest.raises(UserError) as error:
    ensembling_original.layout_from_flags(flags, tiny.CONFIG)
  assert str(error.value) == (
      'share_intrinsic stands with apply_adapter, apply_lora or apply_prefix alone, but the flags'
      ' name lora, prefix; this state cannot be read.')


def test_a_flat_vector_of_another_size_is_refused():
  with pytest.raises(UserError) as error:
    ensembling_original.split_vector(np.zeros(5), {'A': (2, 2), 'B': (2,)})
  assert str(error.value) == ('a flat vector of shape [5] cannot replace A, B of 6 numbers; give as'
                              ' many numbers.')


def test_a_state_of_another_delta_is_refused(folder_of):
  folder = folder_of('adapter_relu_tied')
  layout = tiny.replace(parity.layout_of(read_case(folder)), adapter_size=0)
  state = files.read_tensors(folder / 'state.safetensors')
  with pytest.raises(UserError) as error:
    ensembling_original.state_to_tree(state, layout, place='a.pt')
  assert "has the unexpected key 'decoder.block.0.layer.0.adapter.adapter_A' and 19 more" in str(
      error.value)
