"""ProPETL on RoBERTa against the original program: every recorded array, checkpoints both ways."""

from __future__ import annotations

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.interop import files, propetl_roberta as original, propetl_roberta_files
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.models.layers import Compute
from pemt_jax.models.roberta import Roberta
from pemt_jax.parity import propetl_roberta as parity
from pemt_jax.training.rules import FROZEN, assign_groups
from pemt_jax.trees import flatten

SYSTEM = 'propetl'  # see `folder_of`
SHIPPED = ('roberta_pro_adapter', 'roberta_pro_prefix')
MODELS = ('roberta_full_finetune', 'roberta_pro_adapter', 'roberta_pro_adapter_regression',
          'roberta_pro_lora', 'roberta_pro_prefix', 'roberta_adapter_baseline',
          'roberta_lora_baseline', 'roberta_prefix_baseline', 'roberta_houlsby_shared')
STEPS = ('roberta_optimizer_steps_pfeiffer', 'roberta_optimizer_steps_prefix_tuning')
CHECKPOINTS = ('roberta_pro_adapter', 'roberta_pro_lora', 'roberta_pro_prefix')
CASES = [pytest.param(name, marks=[] if name in SHIPPED else [pytest.mark.slow])
         for name in (*MODELS, *STEPS)]


def read_case(folder):
  return json.loads((folder / 'case.json').read_text())


@functools.cache
def read_state(folder):
  case = read_case(folder)
  layout = parity.layout_of(case)
  return case, layout, dict(files.read_tensors(folder / 'state.safetensors'))


def check(folder, **options):
  """Masks are equal, gradients relative to the largest, everything else within 1e-5."""
  wanted, found = read_case(folder)['arrays'], parity.compute(folder, **options)
  assert {name for name, array in wanted.items() if array['required']} <= found.keys()
  with np.load(folder / 'outputs.npz') as expected:
    for name, value in found.items():
      assert value.dtype == wanted[name]['dtype'] and value.shape == expected[name].shape, name
      kind, size = name.split('/')[0], np.abs(expected[name]).max()
      # The gradient of a bias of keys is 0; what was recorded of it is rounding.
      tolerance = {'mask': 0.0, 'grad': 1e-4 * size + 1e-7}.get(kind, 1e-5)
      np.testing.assert_allclose(value, expected[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize('name', CASES)
def test_recorded_arrays_are_reproduced(name, folder_of):
  check(folder_of(name))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['roberta_pro_adapter', 'roberta_prefix_baseline'])
def test_unrolled_layers_reproduce_them_too(name, folder_of):
  check(folder_of(name), run=Compute(scan_layers=False))


@pytest.mark.parametrize('name', MODELS)
def test_states_come_back_and_the_method_tunes_what_the_original_trained(name, folder_of):
  case, layout, state = read_state(folder_of(name))
  tree = original.state_to_tree(state, layout)
  again = original.tree_to_state(tree, layout, aliases=True)
  buffer = 'roberta.embeddings.position_ids'
  assert again.keys() | {buffer} == state.keys()
  for key, value in again.items():
    np.testing.assert_array_equal(value, state[key], err_msg=key)
  table = original.table_of(layout)
  assert {alias: table.aliases[alias] for alias in case['aliases']} == case['aliases']
  method = parity.method_of(layout, case['method_config'])
  model = Roberta(layout.config, method.plan, labels=layout.labels)
  shapes = {path: leaf.value.shape for path, leaf in flatten(boxed_shapes(model)['params']).items()}
  found = {path: leaf.shape for path, leaf in flatten(tree).items()
           if not path.startswith('pooler/')}
  assert found == shapes
  groups = assign_groups(tree, method.tuned)
  trained = sum(np.size(leaf) for path, leaf in flatten(tree).items() if groups[path] != FROZEN)
  expected = case['method_config']['trainable_params']
  assert trained + (272 if name == 'roberta_full_finetune' else 0) == expected  # its pooler


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_checkpoints_come_in_and_go_out_as_the_original_writes_them(name, folder_of, tmp_path):
  folder = folder_of(name)
  case, layout, state = read_state(folder)
  options = original.options_of(layout, case['method_config'])
  tree = original.state_to_tree(state, layout)
  ours = propetl_roberta_files.write_checkpoint(tmp_path, tree, layout, options,
                                                suffix='.safetensors')
  for file, entry in case['checkpoint_files'].items():
    path = (tmp_path / file).with_suffix('.json' if file.endswith('.json') else '.safetensors')
    if file.endswith('.json'):
      assert json.loads(path.read_text()) == entry, file
      continue
    found = files.read_tensors(path)
    recorded = files.read_tensors(folder / f'ckpt_{file.replace("/", "__")}'.replace(
        '.bin', '.safetensors'))
    assert {key: [list(value.shape), str(value.dtype)] for key, value in found.items()} == entry
    for key, value in found.items():
      np.testing.assert_array_equal(value, recorded[key], err_msg=key)
  checkpoint = propetl_roberta_files.read_checkpoint(ours, layout.config)
  assert checkpoint.layout == layout and checkpoint.options == options
  expected = {path: value for path, value in flatten(tree).items()
              if path in flatten(checkpoint.params)}
  for path, value in flatten(checkpoint.params).items():
    if '/layer_' not in path or layout.form == 'prefix_tuning':
      np.testing.assert_array_equal(value, expected[path], err_msg=path)
  names_of = original.masks_of(checkpoint.params, layout, options.density)
  for key, mask in original.masks_of(tree, layout, options.density).items():
    np.testing.assert_array_equal(names_of[key], mask, err_msg=key)


def test_a_folder_of_the_original_gives_the_same_logits(folder_of, tmp_path):
  folder = folder_of('roberta_pro_adapter')
  case, layout, state = read_state(folder)
  options = original.options_of(layout, case['method_config'])
  tree = original.state_to_tree(state, layout)
  written = propetl_roberta_files.write_checkpoint(tmp_path, tree, layout, options,
                                                   suffix='.safetensors')
  checkpoint = propetl_roberta_files.read_checkpoint(written, layout.config)
  method = parity.method_of(layout, case['method_config'])
  model = Roberta(layout.config, method.plan, labels=layout.labels)
  with np.load(folder / 'inputs.npz') as stored:
    batch = parity.read_batch(dict(stored))
  run = jax.jit(lambda params: model.apply({'params': params}, batch['inputs'],
                                           batch['inputs_mask'])[0])
  backbone = {key: value for key, value in tree.items() if key in ('shared', 'encoder', 'pooler')}
  logits = run(propetl_roberta_files.attach(backbone, checkpoint))
  np.testing.assert_array_equal(logits, run(tree))


def write_pro_adapter(folder, tmp_path, suffix='.safetensors'):
  case, layout, state = read_state(folder)
  options = original.options_of(layout, case['method_config'])
  tree = original.state_to_tree(state, layout)
  return layout, options, propetl_roberta_files.write_checkpoint(tmp_path, tree, layout, options,
                                                                 suffix=suffix)


def test_torch_files_are_read_and_written(folder_of, tmp_path):
  torch = pytest.importorskip('torch')
  layout, options, folder = write_pro_adapter(folder_of('roberta_pro_adapter'), tmp_path, '.bin')
  masks = torch.load(folder / 'adapter_mask.bin', weights_only=True)
  assert {value.dtype for value in masks.values()} == {torch.bool}
  checkpoint = propetl_roberta_files.read_checkpoint(folder, layout.config)
  assert checkpoint.layout == layout and checkpoint.options == options


@pytest.mark.parametrize('change, sentence', [
    ({'phm_layer': True}, 'has phm_layer True, which is not supported'),
    ({'original_ln_before': False}, 'has original_ln_before False, which is not supported'),
    ({'architecture': 'union'}, "adapter_config is 'union'")])
def test_other_forms_are_refused(folder_of, tmp_path, change, sentence):
  layout, _, folder = write_pro_adapter(folder_of('roberta_pro_adapter'), tmp_path)
  file = pathlib.Path(folder) / 'adapter_config.json'
  card = json.loads(file.read_text())
  card['config'] |= change
  file.write_text(json.dumps(card))
  with pytest.raises(UserError, match=sentence):
    propetl_roberta_files.read_checkpoint(folder, layout.config)


def test_a_checkpoint_without_its_masks_lacks_nothing_but_them(folder_of, tmp_path):
  layout, _, folder = write_pro_adapter(folder_of('roberta_pro_adapter'), tmp_path)
  shutil.copy(folder / 'pytorch_model_head.safetensors', folder / 'adapter_mask.safetensors')
  with pytest.raises(UserError, match=r"lacks 'roberta.encoder.layer.0.output.adapters_mask"):
    propetl_roberta_files.read_checkpoint(folder, layout.config)


@pytest.mark.parametrize('density', [0.1, 0.3, 0.5, 0.37, 0.9, 1 / 3])
def test_the_density_of_masks_is_found(density):
  masks = {str(size): np.arange(size) >= int((1 - density) * size) for size in (7, 64, 98304)}
  found = propetl_roberta_files.density_of(masks)
  assert all(int((1 - found) * size) == int((1 - density) * size) for size in (7, 64, 98304))
  if round(density, 2) == density:
    assert found == density
