"""Configs of RoBERTa and BERT: published names, Hugging Face dicts, mistakes."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pemt_jax.errors import UserError
from pemt_jax.models import roberta_config as rc


@pytest.mark.parametrize('name', rc.PUBLISHED)
def test_hugging_face_dicts_come_back(name, tmp_path):
  config = rc.roberta_config(name)
  for labels in (0, 1, 3):
    values = rc.to_hf(config, labels)
    assert rc.from_hf(values) == config
    assert values['architectures'][0].endswith('Model' if not labels else 'Classification')
  (tmp_path / 'config.json').write_text(json.dumps(rc.to_hf(config)))
  assert rc.roberta_config(tmp_path) == config
  assert rc.roberta_config(rc.hub_id(name)) == config


def test_fields_that_old_files_leave_out_have_the_defaults_of_their_family():
  sizes = {'vocab_size': 30522, 'hidden_size': 768, 'num_attention_heads': 12,
           'intermediate_size': 3072, 'num_hidden_layers': 12, 'max_position_embeddings': 512}
  assert rc.from_hf(sizes | {'model_type': 'bert'}) == rc.PUBLISHED['bert-base-uncased']
  roberta = sizes | {'model_type': 'roberta', 'vocab_size': 50265, 'max_position_embeddings': 514}
  assert rc.from_hf(roberta) == rc.PUBLISHED['roberta-base']


@pytest.mark.parametrize('change, sentence', [
    ({'model_type': 't5'}, "'here' has model_type 't5'; only roberta and bert can be read here."),
    ({'hidden_size': None}, "'here' lacks hidden_size; use the config.json of a checkpoint."),
    ({'hidden_act': 'silu'}, "'here' has hidden_act 'silu'; supported are gelu, gelu_new, relu."),
    ({'position_embedding_type': 'relative_key'}, 'only an encoder with absolute positions'),
    ({'is_decoder': True}, 'only an encoder with absolute positions'),
    ({'num_attention_heads': 5}, "'here' has hidden_size 768, which its 5 heads do not divide")])
def test_unsupported_configs_are_told_with_the_key(change, sentence):
  values = rc.to_hf(rc.PUBLISHED['roberta-base']) | change
  with pytest.raises(UserError) as error:
    rc.from_hf(values, 'here')
  assert sentence in str(error.value)


@pytest.mark.parametrize('name, sentence', [
    ('roberta-bse', 'close names are roberta-base'),
    ('gpt', 'known names are roberta-base'),
    ('./nowhere', "Model folder './nowhere' does not exist; check model.name.")])
def test_unknown_names_are_told_with_close_ones(name, sentence):
  with pytest.raises(UserError) as error:
    rc.roberta_config(name)
  assert sentence in str(error.value)


def test_positions_leave_room_for_padding():
  base = rc.PUBLISHED['roberta-base']
  assert base.max_length == 512 and rc.PUBLISHED['bert-base-cased'].max_length == 512
  assert (base.kv, base.joined_kv, base.decoder_layers) == (64, 768, 0)
  assert not dataclasses.replace(base, heads=16).gated
