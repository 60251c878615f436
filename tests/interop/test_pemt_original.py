"""State dicts of the original PEMT code: every golden case in and out, strict names."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.interop import files
from pemt_jax.interop import formats
from pemt_jax.interop import pemt_original
from pemt_jax.interop.pemt_layout import PemtLayout
from pemt_jax.parity import pemt as parity

CASES = ('stage1_lora_noprompt', 'stage1_lora_prompt', 'stage2_pemt', 'stage2_moe_noprompt',
         'stage2_moe_own_prompt_only', 'stage2_single_source', 'stage2_no_target_adapter',
         'adapter_stage1_ffout_prompt', 'adapter_stage2_moe', 'checkpoint_files',
         'baseline_finetune', 'baseline_adapter', 'baseline_adapter_prepost_ln',
         'baseline_lora_attention', 'baseline_prompt_tuning', 'baseline_adamix_train',
         'baseline_adamix_infer0', 'baseline_mixda', 'baseline_bitfit', 'attempt_sub',
         'attempt_sub_shared', 'attempt_constant')
WO = 'encoder/layers/mlp/wo'
PROMPT = 'encoder/embed/prompt'

STAGE1 = PemtLayout(embed=6, mlp=8, encoder_layers=2, decoder_layers=3, expert_form='lora',
                    sources=('mnli',), expert_width=2, prompt_length=3)
STAGE2 = dataclasses.replace(STAGE1, sources=('a', 'b', 'c'), target='cb', target_width=2,
                             source_lengths=(2, 4, 1))
EVERYTHING = dataclasses.replace(
    STAGE2, expert_form='adapter', adapter_norms=('pre', 'post'), attention_adapter_width=2,
    attention_rank=2, joined_kv=5, decoder_adapter_layers=(0, 2), encoder_adapter_layers=())


@pytest.fixture(params=CASES)
def case(request, golden_root):
  """(case.json, state) of one golden case."""
  folder = golden_root / 'pemt' / request.param
  return (json.loads((folder / 'case.json').read_text()),
          files.read_tensors(folder / 'state.safetensors'))


def random_state(layout):
  rng = np.random.default_rng(0)
  return {weight.name: rng.normal(size=weight.shape).astype(np.float32)
          for weight in pemt_original.table_of(layout).weights}


def assert_same(found, expected):
  assert set(found) == set(expected)
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_golden_state_comes_in_and_goes_out_unchanged(case):
  description, state = case
  layout = pemt_original.layout_from_case(description)
  tree = pemt_original.state_to_tree(state, layout)
  back = pemt_original.tree_to_state(tree['params'], layout)
  assert_same(back, state)
  assert all(back[name].shape == state[name].shape for name in state)


def test_case_and_state_tell_the_same_layout(case):
  description, state = case
  layout = pemt_original.layout_from_case(description)
  given = {'sources': description['method_config'].get('sources')}
  assert pemt_original.layout_from_state(state, backbone=layout.backbone, **given) == layout
  inferred = pemt_original.layout_from_state(state, **given)
  unseen = dict.fromkeys(('dropout', 'relative_max_distance'))
  assert ({**vars(inferred.backbone), **unseen} == {**vars(layout.backbone), **unseen})


def test_golden_aliases_are_known_and_checked(case):
  description, state = case
  layout = pemt_original.layout_from_case(description)
  params = pemt_original.state_to_tree(state, layout)['params']
  full = pemt_original.tree_to_state(params, layout, aliases=True)
  assert {name: full[name].tobytes() for name in set(full) - set(state)} == {
      alias: state[name].tobytes() for alias, name in description['tied_parameters'].items()}
  pemt_original.state_to_tree(full, layout)
  alias = next(iter(description['tied_parameters']))
  with pytest.raises(UserError, match=f"other values in '{alias}' than in"):
    pemt_original.state_to_tree(full | {alias: full[alias] + 1}, layout)


def test_golden_trainable_names_have_paths(case):
  description, _ = case
  layout = pemt_original.layout_from_case(description)
  named = {name for places in pemt_original.table_of(layout).names_of_paths().values()
           for name in places.values()}
  assert set(description.get('trainable', ())) <= named


@pytest.mark.parametrize('name,has,has_not', [
    ('stage1_lora_prompt', {f'{WO}/lora/down', f'{PROMPT}/table'}, {f'{PROMPT}/sources'}),
    ('adapter_stage1_ffout_prompt', {f'{WO}/ffout/down/kernel'}, {f'{WO}/lora/down'}),
    ('stage2_pemt', {f'{WO}/pemt/bank/up', f'{WO}/pemt/gate/kernel', f'{PROMPT}/sources',
                     f'{WO}/pemt/adapter/up/bias'}, {f'{WO}/adapter/up/bias'}),
    ('adapter_stage2_moe', {f'{WO}/pemt/bank/up_bias'}, {f'{WO}/pemt/bank/up'}),
    ('stage2_single_source', {f'{WO}/lora/up', f'{WO}/adapter/up/bias', f'{PROMPT}/sources'},
     {f'{WO}/pemt/gate/kernel'}),
    ('stage2_no_target_adapter', {f'{WO}/pemt/bank/up'}, {f'{WO}/pemt/adapter/up/bias'}),
    ('stage2_moe_own_prompt_only', {f'{PROMPT}/table'}, {f'{PROMPT}/sources'}),
    ('stage2_moe_noprompt', {f'{WO}/pemt/bank/up'}, {f'{PROMPT}/table'})])
def test_parts_lie_where_the_method_expects_them(golden_root, name, has, has_not):
  description = json.loads((golden_root / 'pemt' / name / 'case.json').read_text())
  paths = set(pemt_original.table_of(
      pemt_original.layout_from_case(description)).names_of_paths())
  assert has <= paths and not has_not & paths


@pytest.mark.parametrize('layout', [STAGE1, STAGE2, EVERYTHING])
def test_layout_of_any_sizes_round_trips(layout):
  state = random_state(layout)
  assert pemt_original.layout_from_state(
      state, sources=layout.sources, target=layout.target) == layout
  params = pemt_original.state_to_tree(state, layout)['params']
  assert_same(pemt_original.tree_to_state(params, layout), state)


@pytest.mark.parametrize('layout', [STAGE1, STAGE2])
def test_layout_is_seen_in_the_tree(layout):
  tree = pemt_original.state_to_tree(random_state(layout), layout)
  assert pemt_original.layout_from_tree(
      tree['params'], tree['constants'], sources=layout.sources, target=layout.target) == layout


def test_orientation_of_kernels_and_order_of_the_bank():
  state = random_state(STAGE2)
  leaves = trees.flatten(pemt_original.state_to_tree(state, STAGE2)['params'])
  name = 'decoder.block.2.layer.2.DenseReluDense.wo'
  bank = 'decoder/layers/mlp/wo/pemt'
  np.testing.assert_array_equal(leaves[f'{bank}/bank/down'][2, 1], state[f'{name}.lora_A.1'].T)
  np.testing.assert_array_equal(leaves[f'{bank}/bank/up'][2, 1], state[f'{name}.lora_B.1'].T)
  np.testing.assert_array_equal(leaves[f'{bank}/gate/kernel'][2], state[f'{name}.w_gate'])


def test_source_prompts_are_padded_on_the_left():
  state = random_state(STAGE2)
  tree = pemt_original.state_to_tree(state, STAGE2)
  sources = trees.flatten(tree['params'])[f'{PROMPT}/sources']
  masks = trees.flatten(tree['constants'])
  np.testing.assert_array_equal(masks[f'{PROMPT}/sources_mask'],
                                [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]])
  np.testing.assert_array_equal(masks[f'{PROMPT}/mask'], [1, 1, 1])
  np.testing.assert_array_equal(sources[0, 2:], state['task_list.0'])
  assert not sources[masks[f'{PROMPT}/sources_mask'] == 0].any()


def test_padding_of_a_replicas_prompt_is_not_exported():
  params = pemt_original.state_to_tree(random_state(STAGE1), STAGE1)['params']
  table = params['encoder']['embed']['prompt']['table']
  params['encoder']['embed']['prompt']['table'] = np.pad(table, ((2, 0), (0, 0)))
  constants = {'encoder': {'embed': {'prompt': {'mask': np.array([0, 0, 1, 1, 1.0])}}}}
  layout = pemt_original.layout_from_tree(params, constants, sources=('mnli',))
  np.testing.assert_array_equal(
      pemt_original.tree_to_state(params, layout)['task_shared'], table)
  again = pemt_original.state_to_tree(random_state(STAGE1), layout)
  np.testing.assert_array_equal(trees.flatten(again['constants'])[f'{PROMPT}/mask'],
                                [0, 0, 1, 1, 1])


def test_gradients_of_a_tuned_tree_get_original_names():
  state = random_state(STAGE2)
  params = pemt_original.state_to_tree(state, STAGE2)['params']
  tuned = {path: leaf for path, leaf in trees.flatten(params).items()
           if '/gate/' in path or path.endswith('prompt/table')}
  named = pemt_original.grads_to_named(trees.unflatten(tuned), STAGE2)
  assert_same(named, {f'grad/{name}': value for name, value in state.items()
                      if name.endswith('w_gate') or name == 'task_shared'})


A0 = 'encoder.block.0.layer.1.DenseReluDense.wo.lora_A'


@pytest.mark.parametrize('change,sentence', [
    (lambda state: state.pop(A0), f"'lora.pt' lacks '{A0}' of shape [2, 8]; check that it is "
     'complete and belongs to this model.'),
    (lambda state: state.update({'w': np.zeros(1)}), "'lora.pt' has the unexpected key 'w'; check "
     'that it belongs to this model.'),
    (lambda state: state.update({A0: np.zeros((2, 9))}), f"'lora.pt' has '{A0}' of shape [2, 9], "
     'expected [2, 8]; check that the sizes of the model belong to this file.')])
def test_import_is_strict(change, sentence):
  state = random_state(STAGE1)
  change(state)
  with pytest.raises(UserError) as error:
    pemt_original.state_to_tree(state, STAGE1, place='lora.pt')
  assert str(error.value) == sentence


def test_leaf_without_an_original_name_is_told():
  params = pemt_original.state_to_tree(random_state(STAGE1), STAGE1)['params']
  params['encoder']['embed']['other'] = np.zeros(2)
  with pytest.raises(UserError, match='has encoder/embed/other, for which this format has no name'):
    pemt_original.tree_to_state(params, STAGE1)


@pytest.mark.parametrize('layout,given,sentence', [
    (STAGE2, {'sources': ['a']}, '1 source names are given (a) but the checkpoint has 3 experts; '
     'give one name per expert, in order.'),
    (EVERYTHING, {'sources': ['a', 'b', 'x']}, 'The sources given are a, b, x but the checkpoint '
     'has the experts a, b, c; give these names, in the order of training.'),
    (STAGE2, {'target': 'rte'}, "The target task 'rte' is not among the adapters of the checkpoint "
     '(cb); name one of them.')])
def test_names_that_do_not_fit_the_file_are_told(layout, given, sentence):
  with pytest.raises(UserError) as error:
    pemt_original.layout_from_state(random_state(layout), **given)
  assert str(error.value) == sentence


@pytest.mark.parametrize('name', ['baseline_mixda', 'baseline_adamix_train', 'attempt_sub_shared'])
def test_checkpoints_of_baselines_go_through_one_file_of_our_names(name, golden_root, tmp_path):
  folder = golden_root / 'pemt' / name
  layout = pemt_original.layout_from_case(json.loads((folder / 'case.json').read_text()))
  assert formats.layout_from_json(formats.layout_to_json(layout)) == layout
  (tmp_path / 'in').mkdir()
  shutil.copy(folder / 'state.safetensors', tmp_path / 'in' / 'model.safetensors')
  options = formats.Options(weights='safetensors')
  file, out = tmp_path / 'tree.safetensors', tmp_path / 'out'
  assert formats.convert('pemt_checkpoint', 'safetensors', str(tmp_path / 'in'), str(file),
                         options) == []
  assert formats.convert('safetensors', 'pemt_checkpoint', str(file), str(out), options) == []
  assert_same(files.read_tensors(out), files.read_tensors(tmp_path / 'in'))


def test_a_case_tells_the_blocks_that_have_adapters(golden_root):
  folder = golden_root / 'pemt' / 'baseline_adapter'
  case = json.loads((folder / 'case.json').read_text())
  left_out = ('decoder.', 'encoder.block.0.')
  case['trainable'] = [name for name in case['trainable']
                       if not ('adapter' in name and name.startswith(left_out))]
  layout = pemt_original.layout_from_case(case)
  assert (layout.encoder_adapter_layers, layout.decoder_adapter_layers) == ((1,), ())
  state = {name: value for name, value in files.read_tensors(folder / 'state.safetensors').items()
           if not ('adapter' in name and name.startswith(left_out))}
  assert pemt_original.layout_from_state(state, backbone=layout.backbone) == layout
  method = parity.method_of(layout, case['method_config'], case['trainable'])
  assert {rule.layers for rule in method.plan.rules} == {(('encoder', 1),)}
