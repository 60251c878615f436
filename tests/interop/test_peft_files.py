"""Folders of Hugging Face PEFT without PEFT: what is written is read again, mistakes are told."""

from __future__ import annotations

import dataclasses
import json
import math

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.interop import files
from pemt_jax.interop import peft
from pemt_jax.interop import peft_config
from pemt_jax.interop import peft_forms
from pemt_jax.models.t5_config import T5Config

TINY = T5Config(vocab_size=19, embed=8, kv=3, heads=2, mlp=12, encoder_layers=2, decoder_layers=3,
                relative_buckets=4)
GATED = dataclasses.replace(TINY, decoder_layers=2, gated=True, activation='gelu_tanh',
                            tied_head=False)
FORMS = {
    'lora': peft_forms.LoRAForm(('encoder/self_attention/q', 'decoder/self_attention/q',
                                 'decoder/cross_attention/q'), 2, 2.0),
    'lora_some_sites': peft_forms.LoRAForm(('encoder/mlp/wo', 'decoder/cross_attention/k'), 3, 0.5),
    'ia3': peft_forms.IA3Form(('encoder/self_attention/k', 'decoder/self_attention/k',
                               'decoder/cross_attention/k'), ('encoder/mlp/wo', 'decoder/mlp/wo')),
    'ia3_ambiguous': peft_forms.IA3Form(('encoder/mlp/wo',), ('encoder/self_attention/o',)),
    'prompt': peft_forms.PromptForm(4),
    'prefix': peft_forms.PrefixForm(3),
}


def random_params(form, config, seed=0):
  """A tree of the form's shapes."""
  rng = np.random.default_rng(seed)
  if isinstance(form, peft_forms.LoRAForm | peft_forms.IA3Form):
    shapes = peft.table_of(form, config).leaf_shapes()
  elif isinstance(form, peft_forms.PromptForm):
    shapes = {peft.PROMPT_TABLE: (form.length, config.embed)}
  else:
    shape = (config.decoder_layers, config.heads, form.length, config.kv)
    shapes = {f'{peft.PREFIX}/keys': shape, f'{peft.PREFIX}/values': shape}
  return trees.unflatten({path: rng.normal(size=shape).astype(np.float32)
                          for path, shape in shapes.items()})


def assert_same(found, expected):
  found, expected = trees.flatten(found), trees.flatten(expected)
  assert set(found) == set(expected)
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf, err_msg=path)


@pytest.mark.parametrize('config', [TINY, GATED], ids=['odd_layers', 'even_layers'])
@pytest.mark.parametrize('name', FORMS)
def test_what_is_written_is_read_bit_for_bit(tmp_path, name, config):
  form = FORMS[name]
  params = random_params(form, config)
  peft.write(tmp_path / 'a', form, params, config, 'backbone')
  found_form, found = peft.read(tmp_path / 'a', config)
  assert found_form == form
  assert_same(found, params)
  peft.write(tmp_path / 'b', found_form, found, config, 'backbone')
  for file in (peft.CONFIG, peft.SAFETENSORS):
    assert (tmp_path / 'a' / file).read_bytes() == (tmp_path / 'b' / file).read_bytes()


def test_torch_files_take_the_place_of_safetensors(tmp_path):
  pytest.importorskip('torch')
  params = random_params(FORMS['lora'], TINY)
  peft.write(tmp_path, FORMS['lora'], random_params(FORMS['lora'], TINY, 1), TINY)
  peft.write(tmp_path, FORMS['lora'], params, TINY, torch_format=True)
  assert not (tmp_path / peft.SAFETENSORS).exists()
  assert_same(peft.read(tmp_path, TINY)[1], params)


SITES = peft_forms.sites_of(peft_forms.modules_of(GATED))


@hypothesis.given(sites=st.sets(st.sampled_from(SITES), min_size=1), data=st.data())
def test_any_choice_of_sites_can_be_named(sites, data):
  ordered = tuple(site for site in SITES if site in sites)
  inputs = tuple(site for site in ordered if data.draw(st.booleans()))
  outputs = tuple(site for site in ordered if site not in inputs)
  for form in (peft_forms.LoRAForm(ordered, 2, 0.5), peft_forms.IA3Form(outputs, inputs)):
    values = json.loads(json.dumps(peft_config.values_of(form, GATED, None)))
    assert peft_config.form_of(values, GATED, 'file') == form


@hypothesis.given(layers=st.integers(1, 40))
def test_no_two_layers_of_a_written_prefix_share_vectors(layers):
  config = dataclasses.replace(TINY, decoder_layers=layers)
  stated = peft_config.prefix_layers(config)
  numbers = [number for which in (0, 1) for number in peft._numbers(stated, which, config)]
  assert len(set(numbers)) == 2 * layers and stated - layers in (0, 1)


def test_scalings_of_lora(tmp_path):
  values = peft_config.values_of(FORMS['lora'], TINY, None) | {'r': 4, 'lora_alpha': 6}
  assert peft_config.form_of(values, TINY, tmp_path).scaling == 1.5
  form = peft_config.form_of(values | {'use_rslora': True}, TINY, tmp_path)
  assert form.scaling == 3.0
  again = peft_config.form_of(peft_config.values_of(form, TINY, None), TINY, tmp_path)
  assert again == form and math.isclose(again.scaling, 3.0)


def test_target_modules_are_read_as_peft_reads_them(tmp_path):
  values = peft_config.values_of(FORMS['lora'], GATED, None)
  read = lambda **more: peft_config.form_of(values | more, GATED, tmp_path).sites
  assert read(target_modules='all-linear') == SITES
  assert read(target_modules=r'encoder\..*\.(q|wo)') == ('encoder/self_attention/q',
                                                        'encoder/mlp/wo')
  assert read(target_modules=['EncDecAttention.v', 'wi_1']) == (
      'encoder/mlp/wi_1', 'decoder/cross_attention/v', 'decoder/mlp/wi_1')
  assert read(target_modules=['q', 'k'], exclude_modules=r'decoder.*|.*\.k') == (
      'encoder/self_attention/q',)


OPTIONS = {
    'lora': [
        ({'use_dora': True}, "sets 'use_dora' to True, which has no form here; train without it"),
        ({'rank_pattern': {'q': 4}}, "sets 'rank_pattern' to {'q': 4}"),
        ({'modules_to_save': ['lm_head']}, "sets 'modules_to_save' to ['lm_head']"),
        ({'an_option_of_tomorrow': 1}, "sets 'an_option_of_tomorrow' to 1"),
        ({'bias': 'all'}, "has bias 'all', and T5 has no biases; set it to 'none'."),
        ({'init_lora_weights': 'pissa'}, "init_lora_weights 'pissa', which changes the backbone"),
        ({'r': 0}, "has 0 as 'r', which must be a whole number above 0"),
        ({'lora_alpha': True}, "has True as 'lora_alpha', which must be a number above 0"),
        ({'target_modules': ['query']}, "target_modules ['query'], which name no projection"),
        ({'target_modules': None}, 'target_modules None, which name no projection'),
        ({'target_modules': r'encoder\.block\.0\..*q'},
         "match 'encoder/self_attention/q' in 1 layers only"),
        ({'task_type': 'CAUSAL_LM'}, "has task_type 'CAUSAL_LM'; only adapters of T5"),
        ({'peft_type': 'VERA'}, "has peft_type 'VERA'; formats that can be read are LORA, IA3"),
    ],
    'ia3': [
        ({'fan_in_fan_out': True}, "sets 'fan_in_fan_out' to True"),
        ({'feedforward_modules': r'.*block\.0.*wo'}, "match 'encoder/mlp/wo' in some layers only"),
    ],
    'prompt': [
        ({'token_dim': 7}, "has 7 as 'token_dim', which must be 8"),
        ({'num_virtual_tokens': None}, "has None as 'num_virtual_tokens'"),
        ({'num_transformer_submodules': 3}, 'num_transformer_submodules 3; prompts of T5 have'),
    ],
    'prefix': [
        ({'token_dim': 8}, "has 8 as 'token_dim', which must be 6"),
        ({'num_attention_heads': 3}, "has 3 as 'num_attention_heads', which must be 2"),
        ({'num_layers': 2}, "has 2 as 'num_layers', which must be at least 3, the layers"),
        ({'num_transformer_submodules': 1}, "has 1 as 'num_transformer_submodules', which must"),
    ],
}


@pytest.mark.parametrize('name,change,sentence', [
    (name, *case) for name, cases in OPTIONS.items() for case in cases])
def test_options_without_a_form_are_told(tmp_path, name, change, sentence):
  peft.write(tmp_path, FORMS[name], random_params(FORMS[name], TINY), TINY)
  file = tmp_path / peft.CONFIG
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(UserError) as error:
    peft.read(tmp_path, TINY)
  assert str(tmp_path) in str(error.value) and sentence in str(error.value)


def spoil(folder, change):
  """Rewrites the weights of a folder."""
  state = dict(files.read_tensors(folder / peft.SAFETENSORS))
  change(state)
  files.write_tensors(folder / peft.SAFETENSORS, state)


KEY = 'base_model.model.decoder.block.2.layer.1.EncDecAttention.q.lora_B.weight'


@pytest.mark.parametrize('change,sentence', [
    (lambda s: s.pop(KEY), f"lacks '{KEY}' of shape [6, 2]; check that it is complete"),
    (lambda s: s.update(more=np.zeros(1)), "has the unexpected key 'more'; check that it belongs"),
    (lambda s: s.update({KEY: np.zeros((6, 3))}), f"has '{KEY}' of shape [6, 3], expected [6, 2]"),
])
def test_tensors_are_strict(tmp_path, change, sentence):
  peft.write(tmp_path, FORMS['lora'], random_params(FORMS['lora'], TINY), TINY)
  spoil(tmp_path, change)
  with pytest.raises(UserError) as error:
    peft.read(tmp_path, TINY)
  assert str(tmp_path / peft.SAFETENSORS) in str(error.value) and sentence in str(error.value)


def test_tables_and_scales_are_strict_too(tmp_path):
  for name, key, sentence in (
      ('prefix', peft.TABLE, 'of shape [3, 1], expected [3, 36]'),
      ('prompt', peft.TABLE, 'of shape [3, 1], expected [4, 8]'),
      ('ia3', 'base_model.model.encoder.block.0.layer.1.DenseReluDense.wo.ia3_l',
       'of shape [3, 1], expected [1, 12]')):
    peft.write(tmp_path, FORMS[name], random_params(FORMS[name], TINY), TINY)
    spoil(tmp_path, lambda state, key=key: state.update({key: np.zeros((3, 1))}))
    with pytest.raises(UserError) as error:
      peft.read(tmp_path, TINY)
    assert sentence in str(error.value)


def test_saving_is_strict_and_writes_nothing_on_error(tmp_path):
  for name, form in FORMS.items():
    params = random_params(form, TINY)
    for wrong in (trees.merge(params, {'more': np.zeros(1)}), {}):
      with pytest.raises(UserError, match='has more, for which|lacks '):
        peft.write(tmp_path / name, form, wrong, TINY)
    assert not (tmp_path / name).exists()


def test_a_folder_without_an_adapter_is_told(tmp_path):
  with pytest.raises(UserError, match='adapter_config.json does not exist; give the folder'):
    peft.read(tmp_path, TINY)
  peft.write(tmp_path, FORMS['prompt'], random_params(FORMS['prompt'], TINY), TINY)
  (tmp_path / peft.SAFETENSORS).unlink()
  with pytest.raises(UserError, match="adapter_model.safetensors' does not exist"):
    peft.read(tmp_path, TINY)
