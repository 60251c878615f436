"""Names, sizes and the Hugging Face form of T5 configs."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pemt_jax.errors import UserError
from pemt_jax.models import t5_config

# Parameters of the published models, head included where it is an own matrix (model cards).
PARAMETERS = {
    't5-small': 60_506_624, 't5-base': 222_903_552, 't5-large': 737_668_096,
    't5-3b': 2_851_598_336, 't5-11b': 11_307_321_344,
    't5-v1_1-small': 76_961_152, 't5-v1_1-base': 247_577_856, 't5-v1_1-large': 783_150_080,
    't5-v1_1-xl': 2_849_757_184, 't5-v1_1-xxl': 11_135_332_352,
}


def parameter_count(config: t5_config.T5Config) -> int:
  """Sum over the published architecture, written out independently of the name tables."""
  attention = 4 * config.embed * config.joined_kv
  mlp = (3 if config.gated else 2) * config.embed * config.mlp
  encoder = config.encoder_layers * (attention + mlp + 2 * config.embed)
  decoder = config.decoder_layers * (2 * attention + mlp + 3 * config.embed)
  outside = 2 * (config.relative_buckets * config.heads + config.embed)
  tables = (1 if config.tied_head else 2) * config.vocab_size * config.embed
  return encoder + decoder + outside + tables


@pytest.mark.parametrize('name', PARAMETERS)
def test_published_sizes_have_the_published_parameter_count(name):
  assert parameter_count(t5_config.t5_config(name)) == PARAMETERS[name]


@pytest.mark.parametrize('size', ['small', 'base', 'large', 'xl', 'xxl'])
def test_lm_adapted_and_flan_share_the_shape_of_v1_1(size):
  expected = t5_config.t5_config(f't5-v1_1-{size}')
  for name in (f'google/t5-v1_1-{size}', f't5-{size}-lm-adapt', f'google/t5-{size}-lm-adapt',
               f't5-v1_1-{size}-lm-adapt', f'google/flan-t5-{size}'):
    assert t5_config.t5_config(name) == expected


@pytest.mark.parametrize('name,repository', [
    ('t5-11b', 'google-t5/t5-11b'), ('google-t5/t5-small', 'google-t5/t5-small'),
    ('flan-t5-xl', 'google/flan-t5-xl'), ('t5-base-lm-adapt', 'google/t5-base-lm-adapt'),
    ('someone/else', 'someone/else')])
def test_short_names_mean_hub_repositories(name, repository):
  assert t5_config.hub_id(name) == repository


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('activation', ['relu', 'gelu_tanh'])
def test_hugging_face_form_keeps_every_field(tmp_path, gated, activation):
  config = t5_config.T5Config(
      vocab_size=50, embed=16, kv=6, heads=2, mlp=24, encoder_layers=3, decoder_layers=2,
      relative_buckets=8, relative_max_distance=64, dropout=0.25, norm_epsilon=1e-5,
      activation=activation, gated=gated, tied_head=not gated, pad_id=3, eos_id=4, start_id=5)
  (tmp_path / 'config.json').write_text(json.dumps(t5_config.to_hf(config)))
  assert t5_config.t5_config(tmp_path) == config


def test_transformers_reads_our_form_as_the_same_model():
  transformers = pytest.importorskip('transformers')
  for name in ('t5-base', 'flan-t5-small'):
    config = t5_config.t5_config(name)
    theirs = transformers.T5Config(**t5_config.to_hf(config))
    assert theirs.scale_decoder_outputs is config.tied_head
    assert (theirs.dense_act_fn, theirs.is_gated_act) == (
        ('gelu_new', True) if config.gated else ('relu', False))
    assert t5_config.from_hf(theirs.to_dict()) == config


def test_number_of_decoder_layers_defaults_to_the_encoders():
  values = t5_config.to_hf(dataclasses.replace(t5_config.t5_config('t5-small'), encoder_layers=4))
  del values['num_decoder_layers']
  assert t5_config.from_hf(values).decoder_layers == 4


@pytest.mark.parametrize('name,sentence', [
    ('t5-bse', "model.name 't5-bse' is neither a folder nor a known T5; "
               'close names are t5-base, t5-3b, t5-v1_1-base.'),
    ('./nowhere', "Model folder './nowhere' does not exist; check model.name.")])
def test_unknown_name_is_told_with_close_names(name, sentence):
  with pytest.raises(UserError) as error:
    t5_config.t5_config(name)
  assert str(error.value) == sentence


@pytest.mark.parametrize('change,sentence', [
    ({'model_type': 'bart'}, "'here' has model_type 'bart'; only 't5' can be read here."),
    ({'d_kv': None}, "'here' lacks d_kv; use the config.json of a checkpoint."),
    ({'feed_forward_proj': 'gated-silu'},
     "'here' has feed_forward_proj 'gated-silu'; supported are relu, gated-relu, gated-gelu, "
     'gated-gelu_new, gelu_new.')])
def test_unsupported_config_is_told_with_the_key(change, sentence):
  values = t5_config.to_hf(t5_config.t5_config('t5-small')) | change
  with pytest.raises(UserError) as error:
    t5_config.from_hf(values, 'here')
  assert str(error.value) == sentence


def test_missing_and_broken_config_files_are_told(tmp_path):
  path = tmp_path / 'config.json'
  with pytest.raises(UserError, match='does not exist; a model folder needs the config.json'):
    t5_config.t5_config(tmp_path)
  path.write_text('{')
  with pytest.raises(UserError, match='is not valid JSON'):
    t5_config.t5_config(tmp_path)
