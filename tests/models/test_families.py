"""Which family a name or a folder belongs to, and the published sizes of BART."""

from __future__ import annotations

import json

import pytest

from pemt_jax.errors import UserError
from pemt_jax.interop import files
from pemt_jax.models import bart_config as bc
from pemt_jax.models import families
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.t5_config import T5Config


@pytest.mark.parametrize('family', families.FAMILIES, ids=lambda family: family.kinds[0])
def test_published_names_belong_to_one_family(family):
  for name in family.published:
    assert families.family_of(name) is families.family_of(families.hub_id(name)) is family
    assert isinstance(family.read(name), family.config)
    assert families.hub_id(name).count('/') == 1


@pytest.mark.parametrize('kind, config', [
    ('t5', T5Config), ('bert', RobertaConfig), ('roberta', RobertaConfig), ('bart', BartConfig),
    ('gpt2', GPT2Config), (None, T5Config)])
def test_a_folder_belongs_to_the_family_of_its_file(kind, config, tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': kind}))
  assert families.family_of(tmp_path).config is config
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(UserError, match='is not valid JSON'):
    families.family_of(tmp_path).read(tmp_path)


def test_a_folder_of_another_family_is_refused(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "llama"}')
  with pytest.raises(UserError, match="has model_type 'llama'; only t5, roberta, bert, bart, gpt2"):
    families.family_of(tmp_path)


@pytest.mark.parametrize('name, sentence', [
    ('bart-bse', 'nor a known BART; close names are bart-base'),
    ('t5-bse', 'nor a known T5; close names are t5-base'),
    ('roberta-bas', 'nor a known RoBERTa or BERT; close names are roberta-base')])
def test_a_wrong_name_is_told_with_the_closest(name, sentence):
  with pytest.raises(UserError, match=sentence):
    files.resolve_model(name)


@pytest.mark.parametrize('name', bc.PUBLISHED)
def test_hugging_face_dicts_of_bart_come_back(name, tmp_path):
  config = bc.bart_config(name)
  (tmp_path / 'config.json').write_text(json.dumps(bc.to_hf(config)))
  (tmp_path / 'generation_config.json').write_text(json.dumps(bc.generation_to_hf(config)))
  assert bc.bart_config(tmp_path) == config
  # The published files have the decoding options beside the sizes.
  assert bc.from_hf(bc.to_hf(config) | dict(config.generation)) == config
  assert (config.kv, config.position_rows, dict(config.generation)['num_beams']) == (64, 1026, 4)


@pytest.mark.parametrize('change, sentence', [
    ({'model_type': 'mbart'}, "'here' has model_type 'mbart'; only 'bart' can be read here."),
    ({'d_model': None}, "'here' lacks d_model; use the config.json of a checkpoint."),
    ({'decoder_ffn_dim': 7}, "'here' has encoder_ffn_dim 3072 and decoder_ffn_dim 7; only equal"),
    ({'scale_embedding': True}, "'here' has scale_embedding True; only False is supported."),
    ({'activation_function': 'silu'}, "'here' has activation_function 'silu'; supported are gelu"),
    ({'encoder_attention_heads': 5, 'decoder_attention_heads': 5},
     "'here' has d_model 768, which its 5 heads do not divide; correct it.")])
def test_unsupported_configs_of_bart_are_told_with_the_key(change, sentence):
  with pytest.raises(UserError) as error:
    bc.from_hf(bc.to_hf(bc.PUBLISHED['bart-base']) | change, 'here')
  assert sentence in str(error.value)
