"""ProPETL on T5 against the original program: every recorded array of the model cases."""

from __future__ import annotations

import json
import shutil
import zlib

import jax
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.interop import files, propetl_original
from pemt_jax.models.layers import Compute
from pemt_jax.models.t5 import T5
from pemt_jax.parity import cases, common, propetl as parity
from pemt_jax.training.rules import FROZEN, assign_groups, split_params
from pemt_jax.trees import flatten, merge
from tests import tiny

SYSTEM = 'propetl'  # see `folder_of`
SHIPPED = ('op_topk_mask_ste', 't5_hybrid_or_last_task', 't5_optimizer_steps')
MODELS = (
    't5_hybrid_or_first_task', 't5_hybrid_or_last_task', 't5_hybrid_and',
    't5_hybrid_add_gated_gelu', 't5_hybrid_or_sep_encdec', 't5_hybrid_or_unfreeze_ln',
    't5_layer_masks_only', 't5_layer_and_task_masks_full', 't5_adapter_baseline',
    't5_houlsby_shared_or', 't5_multilingual_or', 't5_multilingual_add', 't5_full_finetune')
OTHERS = ('op_topk_mask_ste', 't5_optimizer_steps', 't5_optimizer_steps_skip_inactive',
          't5_propetl_weight_roundtrip')
slow_unless_shipped = lambda name: [] if name in SHIPPED else [pytest.mark.slow]
CASES = [pytest.param(name, marks=slow_unless_shipped(name)) for name in (*MODELS, *OTHERS)]
STATES = [pytest.param(name, marks=slow_unless_shipped(name)) for name in MODELS]


def read_case(folder):
  return json.loads((folder / 'case.json').read_text())


def moved_by_rounding(folder, case, found, where):
  """Name -> how far steps of AdamW move where every weight starts a rounding away, twice.

  A step divides a gradient by its own size plus 1e-8. Scores with a gradient near 1e-6, where the
  largest is 0.07, turn its rounding (1e-7) into 500 times as much of a parameter.
  """
  moved = dict.fromkeys(found, 0.0)
  state = files.read_tensors(folder / 'state.safetensors')
  shutil.copytree(folder, where, dirs_exist_ok=True)
  for seed in range(2):
    changed = {}
    for name, value in state.items():  # An alias moves as the weight that it names.
      place = zlib.crc32(case['aliases'].get(name, name).encode())
      random = np.random.default_rng((seed, place)).standard_normal(value.shape)
      changed[name] = (value * (1 + 1.2e-7 * random)).astype(value.dtype)
    files.write_tensors(where / 'state.safetensors', changed)
    other = cases.compute(where, case, Compute())[1]
    moved = {name: np.maximum(old, np.abs(other[name] - found[name]))
             for name, old in moved.items()}
  return moved


def check(folder, where=None, **options):
  """Gradients within 1e-4 of the largest; masks and tokens equal; everything else 2e-5.

  Parameters after steps may also differ by what `moved_by_rounding` says, in the folder `where`.
  """
  case = read_case(folder)
  kind, found = cases.compute(folder, case, options.get('run', Compute()))
  wanted = case['arrays']
  assert kind == 'npz'
  assert {name for name, array in wanted.items() if array['required']} <= found.keys()
  moved = moved_by_rounding(folder, case, found, where) if 'losses' in found else {}
  with np.load(folder / 'outputs.npz') as expected:
    for name, value in found.items():
      assert value.dtype == wanted[name]['dtype'] and value.shape == expected[name].shape, name
      if name.startswith(('mask/', 'generated_')) or name.endswith('/mask'):
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
        continue
      gradient = name.startswith('grad/')
      scale = np.abs(expected[name]).max()
      allowed = scale * 1e-4 if gradient else max(scale, 1.0) * 2e-5
      if name.startswith('params_after_step'):
        allowed = allowed + moved[name]
      np.testing.assert_array_less(np.abs(value - expected[name]), allowed + 1e-30, err_msg=name)


@pytest.mark.parametrize('name', CASES)
def test_recorded_arrays_are_reproduced(name, folder_of, tmp_path):
  check(folder_of(name), where=tmp_path / name)


@pytest.mark.slow
def test_unrolled_layers_reproduce_them_too(folder_of):
  check(folder_of('t5_hybrid_or_last_task'), run=Compute(scan_layers=False))


@pytest.mark.parametrize('name', STATES)
def test_states_come_back_and_the_method_tunes_what_the_original_trained(name, folder_of):
  folder = folder_of(name)
  case, state = read_case(folder), files.read_tensors(folder / 'state.safetensors')
  layout = parity.layout_of(case)
  tree = propetl_original.state_to_tree(state, layout)
  method = parity.method_of(layout, case['method_config'])
  shapes = tiny.shapes(T5(layout.config, method.plan))['params']
  assert {path: leaf.shape for path, leaf in flatten(tree).items()} == shapes
  back = propetl_original.tree_to_state(tree, layout, aliases=True)
  assert back.keys() == set(state)
  for key, value in back.items():
    np.testing.assert_array_equal(value, state[key], err_msg=key)
  table = propetl_original.table_of(layout)
  # Names that the loader reads besides: what the embedding is called in files of Hugging Face.
  assert case['aliases'].items() <= table.aliases.items()
  groups = assign_groups(dict(shapes), method.tuned)
  tuned = sum(np.prod(shapes[path], dtype=int) for path, group in groups.items() if group != FROZEN)
  assert tuned == case['method_config']['trainable_params']


@pytest.fixture
def exported(folder_of, tmp_path):
  """(layout, method, parameters, density, written weight file) of the last task's case."""
  folder = folder_of('t5_hybrid_or_last_task')
  case, state = read_case(folder), files.read_tensors(folder / 'state.safetensors')
  layout, density = parity.layout_of(case), case['method_config']['sparsity']
  params = propetl_original.state_to_tree(state, layout)
  method = parity.method_of(layout, case['method_config'])
  path = tmp_path / 'propetl_weight.safetensors'
  propetl_original.write_weights(path, split_params(params, method.tuned)[1], layout, density)
  return layout, method, params, density, path


def test_a_weight_file_has_masks_and_gives_the_same_logits(exported):
  layout, method, params, density, path = exported
  written = files.read_tensors(path)
  for name in written:
    assert written[name].dtype == (bool if '.mask_scores.' in name else np.float32)
  again = merge(params, propetl_original.read_weights(path, layout))
  masks = propetl_original.masks_of(params, layout, density)
  for name, mask in propetl_original.masks_of(again, layout, density).items():
    np.testing.assert_array_equal(mask, masks[name], err_msg=name)
  model, batch = T5(layout.config, method.plan), tiny.make_batch(vocab=layout.config.vocab_size)
  batch['task_ids'] = np.array([0, 1, 2], np.int32)
  first, second = (common.forward(model, {'params': jax.tree.map(np.asarray, tree)}, batch)[1]
                   for tree in (params, again))
  np.testing.assert_array_equal(first, second)


def test_a_weight_file_of_another_layout_is_refused(exported):
  layout, path = exported[0], exported[-1]
  with pytest.raises(UserError, match="lacks 'decoder.block.0.layer.2.adapter_controller.adapters"):
    propetl_original.read_weights(path, tiny.replace(layout, place='stack'))


def test_task_names_without_language_are_refused():
  with pytest.raises(UserError) as error:
    propetl_original.split_task('xnli')
  assert str(error.value) == ("'xnli' does not name a task and a language; give names such as"
                              ' xnli_de.')
