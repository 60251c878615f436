"""Folders of the original PEMT code: its own files in, the same files out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.interop import files
from pemt_jax.interop import pemt_files
from pemt_jax.interop import pemt_original
from pemt_jax.interop.pemt_layout import PemtLayout

ADAPTER_STAGE1 = PemtLayout(
    embed=6, mlp=8, encoder_layers=1, decoder_layers=1, expert_form='adapter', sources=('sst2',),
    expert_width=2, prompt_length=3)


@pytest.fixture
def golden(golden_root):
  """Folder of real files: two sources, one target, and the state they were loaded into."""
  pytest.importorskip('torch')
  return golden_root / 'pemt' / 'checkpoint_files'


@pytest.fixture
def golden_tree(golden):
  layout = pemt_original.layout_from_case(json.loads((golden / 'case.json').read_text()))
  return layout, pemt_original.state_to_tree(
      files.read_tensors(golden / 'state.safetensors'), layout)


def random_tree(layout):
  rng = np.random.default_rng(0)
  state = {weight.name: rng.normal(size=weight.shape).astype(np.float32)
           for weight in pemt_original.table_of(layout).weights}
  return pemt_original.state_to_tree(state, layout)


def assert_same_tree(found, expected):
  found, expected = trees.flatten(found), trees.flatten(expected)
  assert set(found) == set(expected)
  for path, value in expected.items():
    np.testing.assert_array_equal(found[path], value, err_msg=path)


def assert_same_torch_file(first, second):
  import torch

  first, second = (torch.load(path, weights_only=True) for path in (first, second))
  assert list(first) == list(second)
  for name, value in first.items():
    assert value.dtype == second[name].dtype and torch.equal(value, second[name])


@pytest.mark.parametrize('source', ['mnli', 'qnli'])
def test_stage1_files_come_in_and_go_out_key_for_key(golden, tmp_path, source):
  layout, tree = pemt_files.import_stage1(golden / source)
  assert layout.sources == (source,)
  written = pemt_files.export_stage1(tmp_path, tree['params'], layout)
  assert [path.name for path in written] == ['lora.pt', 'task_embedding.pt']
  for path in written:
    assert_same_torch_file(path, golden / source / path.name)


def test_stage2_files_come_in_and_go_out_key_for_key(golden, tmp_path):
  layout, tree = pemt_files.import_stage2(
      golden, {name: golden / name for name in ('mnli', 'qnli')})
  written = pemt_files.export_stage2(tmp_path, tree['params'], layout)
  assert [path.name for path in written] == ['adapter.pt', 'task_embedding.pt']
  for path in written:
    assert_same_torch_file(path, golden / path.name)


def test_small_files_make_the_state_that_the_original_loaded(golden, golden_tree):
  expected = trees.flatten(golden_tree[1])
  _, tree = pemt_files.import_stage2(golden, {name: golden / name for name in ('mnli', 'qnli')})
  found = trees.flatten(tree)
  for path, value in found.items():
    np.testing.assert_array_equal(value, expected[path], err_msg=path)
  # What those files do not hold: the backbone, its norms, and the gates.
  deltas = {path for path in expected if '/pemt/' in path or '/prompt/' in path}
  assert deltas - set(found) == {
      f'params/{stack}/layers/mlp/wo/pemt/gate/kernel' for stack in ('encoder', 'decoder')}


def test_order_of_sources_is_the_order_of_the_bank(golden):
  first, second = (
      trees.flatten(pemt_files.import_stage2(golden, {name: golden / name for name in order})[1])
      for order in (('mnli', 'qnli'), ('qnli', 'mnli')))
  down = 'params/encoder/layers/mlp/wo/pemt/bank/down'
  np.testing.assert_array_equal(first[down], second[down][:, ::-1])


def test_full_checkpoint_round_trips_with_all_second_names(golden, golden_tree, tmp_path):
  import torch

  layout, tree = golden_tree
  pemt_files.export_checkpoint(tmp_path, tree['params'], layout)
  state = torch.load(tmp_path / 'pytorch_model.bin', weights_only=True)
  case = json.loads((golden / 'case.json').read_text())
  stored = files.read_tensors(golden / 'state.safetensors')
  assert set(state) == set(stored) | set(case['tied_parameters'])
  for alias, name in case['tied_parameters'].items():
    assert state[alias].data_ptr() == state[name].data_ptr()
  found_layout, found = pemt_files.import_checkpoint(tmp_path, sources=('mnli', 'qnli'))
  assert found_layout == layout
  assert_same_tree(found, tree)


def test_safetensors_forms_need_no_torch(tmp_path, monkeypatch):
  import sys

  monkeypatch.setitem(sys.modules, 'torch', None)
  tree = random_tree(ADAPTER_STAGE1)
  written = pemt_files.export_stage1(tmp_path, tree['params'], ADAPTER_STAGE1,
                                     ending='.safetensors')
  assert [path.name for path in written] == ['adapter.safetensors', 'task_embedding.safetensors']
  layout, found = pemt_files.import_stage1(tmp_path)
  assert layout == ADAPTER_STAGE1
  assert_same_tree(found, tree)


def test_adapter_experts_of_two_folders_make_one_bank(tmp_path):
  import dataclasses

  one = random_tree(ADAPTER_STAGE1)
  for name in ('first', 'second'):
    pemt_files.export_stage1(tmp_path / name, one['params'], ADAPTER_STAGE1, ending='.safetensors')
  target = dataclasses.replace(ADAPTER_STAGE1, expert_form=None, sources=(), target='cb',
                               target_width=2)
  pemt_files.export_stage2(tmp_path / 'cb', random_tree(target)['params'], target,
                           ending='.safetensors')
  layout, tree = pemt_files.import_stage2(
      tmp_path / 'cb', {name: tmp_path / name for name in ('first', 'second')})
  assert (layout.sources, layout.expert_form) == (('first', 'second'), 'adapter')
  bank = trees.flatten(tree['params'])['encoder/layers/mlp/wo/pemt/bank/down_kernel']
  down = trees.flatten(one['params'])['encoder/layers/mlp/wo/ffout/down/kernel']
  np.testing.assert_array_equal(bank, np.stack([down, down], axis=1))


def test_tuned_prompt_is_a_bare_tensor(tmp_path):
  torch = pytest.importorskip('torch')
  layout = PemtLayout(embed=6, mlp=0, encoder_layers=0, decoder_layers=0,
                      prompt_name='prefix_shared', prompt_length=4)
  tree = random_tree(layout)
  written = pemt_files.export_stage1(tmp_path, tree['params'], layout)
  assert [path.name for path in written] == ['prefix_embeddings.pt']
  assert isinstance(torch.load(written[0], weights_only=True), torch.Tensor)
  found_layout, found = pemt_files.import_stage1(tmp_path)
  assert found_layout == layout
  assert_same_tree(found, tree)


def test_mistakes_are_told(tmp_path, golden, golden_tree):
  layout, tree = golden_tree
  with pytest.raises(UserError, match=r"Folder '.*nowhere' does not exist; give an output folder"):
    pemt_files.import_stage1(tmp_path / 'nowhere')
  with pytest.raises(UserError, match=r"holds none of lora, adapter, task_embedding, prefix_emb"):
    pemt_files.import_stage1(tmp_path)
  with pytest.raises(UserError) as error:
    pemt_files.export_stage1(tmp_path, tree['params'], layout)
  assert str(error.value) == ('Stage-1 files hold one expert, the tree has 2; export it as stage 2 '
                              'or as a full checkpoint.')
  expert_layout, expert = pemt_files.import_stage1(golden / 'mnli')
  with pytest.raises(UserError, match='A full checkpoint needs the backbone and the tree has none'):
    pemt_files.export_checkpoint(tmp_path, expert['params'], expert_layout)
  pemt_files.export_stage1(tmp_path, expert['params'], expert_layout)
  pemt_files.export_stage1(tmp_path, expert['params'], expert_layout, ending='.safetensors')
  with pytest.raises(UserError, match=r"Both '.*lora.pt' and '.*lora.safetensors' exist; remove"):
    pemt_files.import_stage1(tmp_path)
