"""PEMT against the original program: every recorded array, every set of trained parameters."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from flax import linen as nn

from pemt_jax.errors import UserError
from pemt_jax.interop import files, pemt_original
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.models.layers import Compute
from pemt_jax.models.segments import join_shapes
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5 import T5
from pemt_jax.parity import common, pemt as parity, pemt_baselines
from pemt_jax.training.rules import FROZEN, assign_groups
from pemt_jax.trees import flatten
from tests import tiny

CASES = (
    'adapter_stage1_ffout_prompt', 'adapter_stage2_moe', 'attempt_constant', 'attempt_sub',
    'attempt_sub_ignore_target', 'attempt_sub_shared', 'baseline_adamix_infer0',
    'baseline_adamix_infer1', 'baseline_adamix_infer3', 'baseline_adamix_train',
    'baseline_adapter', 'baseline_adapter_prepost_ln', 'baseline_bitfit', 'baseline_bitfit_head',
    'baseline_finetune', 'baseline_lora_attention', 'baseline_mixda', 'baseline_prompt_tuning',
    'checkpoint_files',
    'stage1_lora_noprompt', 'stage1_lora_prompt', 'stage2_moe_noprompt',
    'stage2_moe_own_prompt_only', 'stage2_no_target_adapter', 'stage2_pemt',
    'stage2_single_source')
FAST = ('adapter_stage2_moe', 'attempt_sub_shared', 'baseline_adamix_train', 'stage1_lora_prompt',
        'stage2_pemt')
# Unrolled layers are the same module: draws of every layer, some layers only, all parts at once.
UNROLLED = ('baseline_adamix_train', 'baseline_mixda', 'stage2_pemt')
RUNS = [pytest.param(name, True, marks=[] if name in FAST else [pytest.mark.slow], id=name)
        for name in CASES]
RUNS += [pytest.param(name, False, marks=pytest.mark.slow, id=f'{name}-unrolled')
         for name in UNROLLED]


def tolerance(name):
  """Gradients relative 1e-3, everything else 1e-4."""
  return {'rtol': 1e-3 if name.startswith('grad/') else 1e-4, 'atol': 1e-5}


@pytest.mark.parametrize('name, scan', RUNS)
def test_recorded_arrays_are_reproduced(name, scan, golden_root):
  folder = golden_root / 'pemt' / name
  wanted = json.loads((folder / 'case.json').read_text())['arrays']
  found = parity.compute(folder, Compute(scan_layers=scan))
  assert {key for key, array in wanted.items() if array['required']} <= found.keys()
  with np.load(folder / 'outputs.npz') as expected:
    for key, array in found.items():
      assert array.dtype == wanted[key]['dtype'], key
      np.testing.assert_allclose(array, expected[key], err_msg=key, **tolerance(key))


@pytest.mark.parametrize('name', [name for name in CASES if name != 'checkpoint_files'])
def test_tuned_leaves_are_those_that_the_original_trained(name, golden_root):
  case = json.loads((golden_root / 'pemt' / name / 'case.json').read_text())
  layout = pemt_original.layout_from_case(case)
  method = parity.method_of(layout, case['method_config'], case['trainable'])
  names = pemt_original.table_of(layout).names_of_paths()
  shapes = nn.meta.unbox(boxed_shapes(T5(layout.backbone, method.plan)))['params']
  shapes = flatten(join_shapes(shapes))
  assert set(names) == set(shapes)
  groups = assign_groups(shapes, method.tuned)
  tuned = {original for path, group in groups.items() if group != FROZEN
           for original in names[path].values()}
  assert tuned == set(case['trainable'])


PROBES = (Rule('probe', '*/self_attention_norm', tiny.Affine()),
          Rule('probe', '*/final_norm', tiny.Affine()))


@pytest.mark.parametrize('name', [
    'stage2_pemt', pytest.param('adapter_stage2_moe', marks=pytest.mark.slow)])
def test_states_between_the_layers_are_reproduced(name, golden_root):
  folder = golden_root / 'pemt' / name
  case = json.loads((folder / 'case.json').read_text())
  layout = pemt_original.layout_from_case(case)
  method = parity.method_of(layout, case['method_config'])
  variables = pemt_original.state_to_tree(files.read_tensors(folder / 'state.safetensors'), layout)
  model = T5(layout.backbone, Plan((*method.plan.rules, *PROBES)))
  with np.load(folder / 'inputs.npz') as inputs:
    _, aux = tiny.forward(model, variables, common.read_batch(dict(inputs)))
  with np.load(folder / 'outputs.npz') as expected:
    for short, stack in (('enc', 'encoder'), ('dec', 'decoder')):
      states = [*aux[f'{stack}/self_attention_norm/probe/seen'],
                aux[f'{stack}/final_norm/probe/seen']]
      np.testing.assert_allclose(states[0], expected[f'{short}/inputs_embeds'], atol=1e-6)
      for layer, state in enumerate(states[1:]):
        np.testing.assert_allclose(state, expected[f'{short}/{layer}/ff_out'], rtol=1e-4, atol=1e-5)


def copy_of(case, folder, **arrays):
  """Copies a recorded case to a folder; the copy names these arrays alone."""
  shutil.copytree(case, folder)
  copied = json.loads((folder / 'case.json').read_text())
  copied['arrays'] = arrays
  (folder / 'case.json').write_text(json.dumps(copied))
  return folder


ROUNDED = {'logits': 0.1, 'enc/1/gate': 0.03, 'dec/1/gate': 0.03, 'loss': 0.005}


@pytest.mark.slow
def test_bfloat16_stays_within_the_stated_tolerance(golden_root, tmp_path):
  """Measured on the CPU: logits 0.040 (their spread is 0.61), gates 0.011, loss 0.0008."""
  folder = golden_root / 'pemt' / 'stage2_pemt'
  named = json.loads((folder / 'case.json').read_text())['arrays']
  copied = copy_of(folder, tmp_path / 'case', **{key: named[key] for key in ROUNDED})
  found = parity.compute(copied, Compute(dtype='bfloat16'))
  with np.load(folder / 'outputs.npz') as expected:
    for key, atol in ROUNDED.items():
      np.testing.assert_allclose(found[key], expected[key], atol=atol, rtol=0, err_msg=key)
    # Exactly float32 numbers would mean that the option does nothing.
    assert np.abs(found['logits'] - expected['logits']).max() > 1e-3


def test_first_prompts_of_spot_are_reproduced(golden_root):
  folder = golden_root / 'pemt' / 'spot_init'
  found = pemt_baselines.compute(folder)
  with np.load(folder / 'outputs.npz') as expected:
    assert set(found) == set(expected)
    for key, array in found.items():
      np.testing.assert_allclose(array, expected[key], err_msg=key, rtol=1e-5, atol=1e-6)


def test_a_wrong_number_of_draws_is_one_sentence(golden_root, tmp_path):
  folder = tmp_path / 'case'
  shutil.copytree(golden_root / 'pemt' / 'baseline_adamix_train', folder)
  with np.load(folder / 'inputs.npz') as inputs:
    kept = {name: value for name, value in inputs.items() if name != 'randint/7'}
  np.savez(folder / 'inputs.npz', **kept)
  with pytest.raises(UserError, match='has 7 draws and the layers of the case need 8'):
    parity.compute(folder)


def foreign_case(golden_root, folder):
  """A copy of full tuning that claims an unknown option."""
  shutil.copytree(golden_root / 'pemt' / 'baseline_finetune', folder)
  case = json.loads((folder / 'case.json').read_text())
  case['method_config']['learn_phm'] = True
  (folder / 'case.json').write_text(json.dumps(case))


REFUSAL = ("method_config has 'learn_phm', which belongs to none of the methods that can be"
           ' recomputed (PEMT and the baselines of its code); leave the case out.')


def test_a_case_of_another_method_is_refused(golden_root, tmp_path):
  foreign_case(golden_root, tmp_path / 'case')
  with pytest.raises(UserError) as error:
    parity.compute(tmp_path / 'case')
  assert str(error.value) == REFUSAL


def test_a_required_array_that_the_method_lacks_is_an_error(golden_root, tmp_path):
  nothing = {'shape': [1], 'dtype': 'float32', 'required': True}
  folder = copy_of(golden_root / 'pemt' / 'checkpoint_files', tmp_path / 'case',
                   **{'enc/0/nothing': nothing})
  with pytest.raises(UserError) as error:
    parity.compute(folder)
  assert str(error.value) == (
      f"{folder / 'case.json'} requires 'enc/0/nothing', which method 'pemt/stage2' does not"
      ' produce; correct its arrays or its method_config.')


def test_the_command_computes_cases_without_recorded_outputs(golden_root, tmp_path, run_python):
  cases, output = tmp_path / 'cases', tmp_path / 'output'
  foreign_case(golden_root, cases / 'foreign')
  shutil.copytree(golden_root / 'pemt' / 'metrics', cases / 'metrics')
  logits = {'shape': [], 'dtype': 'float32', 'required': True}
  copy_of(golden_root / 'pemt' / 'checkpoint_files', cases / 'checkpoint_files', logits=logits)
  for name in ('checkpoint_files', 'metrics', 'foreign'):
    for file in cases.joinpath(name).glob('outputs.*'):
      file.unlink()
  done = run_python('launch/parity.py', f'--cases={cases}', f'--output={output}')
  assert done.returncode == 2
  assert done.stderr == f'1 of 3 cases were not computed: foreign: {REFUSAL}\n'
  assert sorted(file.name for file in output.iterdir()) == ['checkpoint_files.npz', 'metrics.json']
  recorded = golden_root / 'pemt' / 'checkpoint_files' / 'outputs.npz'
  with np.load(output / 'checkpoint_files.npz') as found, np.load(recorded) as expected:
    np.testing.assert_allclose(found['logits'], expected['logits'], rtol=1e-4, atol=1e-5)
  written = json.loads((output / 'metrics.json').read_text())
  expected = json.loads((golden_root / 'pemt' / 'metrics' / 'outputs.json').read_text())
  assert written.keys() == expected.keys()


def test_a_folder_without_cases_is_one_sentence(tmp_path, run_python):
  done = run_python('launch/parity.py', f'--cases={tmp_path}', f'--output={tmp_path}/out')
  assert done.returncode == 2
  assert done.stderr == (f'no case.json below {tmp_path}; give a folder with recorded cases as'
                         ' --cases.\n')
