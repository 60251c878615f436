"""Hugging Face T5 checkpoints: same numbers in and out, strict names."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.interop import files
from pemt_jax.interop import huggingface
from pemt_jax.models.t5_config import T5Config

TINY = T5Config(vocab_size=19, embed=8, kv=3, heads=2, mlp=12, encoder_layers=2, decoder_layers=3,
                relative_buckets=4)
FAMILIES = {
    'v1.0': TINY,
    'v1.1': dataclasses.replace(TINY, activation='gelu_tanh', gated=True, tied_head=False),
}


def random_params(config):
  rng = np.random.default_rng(0)
  shapes = huggingface.t5_table(config).leaf_shapes()
  return trees.unflatten({path: rng.normal(size=shape).astype(np.float32)
                          for path, shape in shapes.items()})


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def transformers_model(config):
  """A random model whose head is its own matrix where the family has one."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  model = transformers.T5ForConditionalGeneration(transformers.T5Config(
      vocab_size=config.vocab_size, d_model=config.embed, d_kv=config.kv, num_heads=config.heads,
      d_ff=config.mlp, num_layers=config.encoder_layers, num_decoder_layers=config.decoder_layers,
      relative_attention_num_buckets=config.relative_buckets, decoder_start_token_id=0,
      feed_forward_proj='gated-gelu' if config.gated else 'relu',
      tie_word_embeddings=config.tied_head))
  if not config.tied_head:
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
  return model


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('shards', [1, 3])
@pytest.mark.parametrize('torch_format', [False, True])
def test_saved_model_loads_bit_for_bit(tmp_path, family, shards, torch_format):
  if torch_format:
    pytest.importorskip('torch')
  config = FAMILIES[family]
  params = random_params(config)
  huggingface.save_t5(tmp_path, config, params, shards=shards, torch_format=torch_format)
  assert len(list(tmp_path.glob('*.bin' if torch_format else '*.safetensors'))) == shards
  found_config, found = huggingface.load_t5(tmp_path)
  assert found_config == config
  assert_same(found, params)


@pytest.mark.parametrize('family', FAMILIES)
def test_tensors_of_transformers_come_in_and_go_out_unchanged(tmp_path, family):
  config = FAMILIES[family]
  model = transformers_model(config)
  theirs = {name: value.numpy() for name, value in model.state_dict().items()}
  model.save_pretrained(tmp_path / 'theirs')
  found_config, params = huggingface.load_t5(tmp_path / 'theirs')
  assert found_config == config
  query = theirs['decoder.block.2.layer.1.EncDecAttention.q.weight']
  np.testing.assert_array_equal(params['decoder']['layers']['cross_attention']['q']['kernel'][2],
                                query.T)
  huggingface.save_t5(tmp_path / 'ours', config, params)
  ours = files.read_tensors(tmp_path / 'ours')
  for name, value in ours.items():
    np.testing.assert_array_equal(value, theirs[name])
  assert set(theirs) - set(ours) <= {'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight',
                                     'lm_head.weight'}


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('shards', [1, 2])
def test_transformers_loads_what_is_saved(tmp_path, family, shards):
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  config = FAMILIES[family]
  params = random_params(config)
  huggingface.save_t5(tmp_path, config, params, shards=shards)
  model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
  state = {name: value.numpy() for name, value in model.state_dict().items()}
  for name, value in huggingface.names.dump(params, huggingface.t5_table(config)).items():
    np.testing.assert_array_equal(state[name], value)
  assert model.config.scale_decoder_outputs is config.tied_head


def test_unscaled_head_stored_once_is_the_embedding(tmp_path):
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  model = transformers.T5ForConditionalGeneration(transformers.T5Config(
      vocab_size=19, d_model=8, d_kv=3, num_heads=2, d_ff=12, num_layers=1,
      feed_forward_proj='gated-gelu', tie_word_embeddings=False, decoder_start_token_id=0))
  model.save_pretrained(tmp_path)
  config, params = huggingface.load_t5(tmp_path)
  assert not config.tied_head
  np.testing.assert_array_equal(params['lm_head']['kernel'], params['shared']['embedding'].T)


def test_old_files_with_aliases_and_the_unused_bias_load(tmp_path):
  config = TINY
  params = random_params(config)
  huggingface.save_t5(tmp_path, config, params)
  state = dict(files.read_tensors(tmp_path))
  for alias in ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight', 'lm_head.weight'):
    state[alias] = state['shared.weight']
  state['decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'] = np.zeros((4, 2))
  files.write_tensors(tmp_path / 'model.safetensors', state)
  assert_same(huggingface.load_t5(tmp_path)[1], params)


def test_dtype_casts_on_loading(tmp_path):
  huggingface.save_t5(tmp_path, TINY, random_params(TINY))
  params = huggingface.load_t5(tmp_path, dtype=np.float16)[1]
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {'float16'}


def test_saving_again_leaves_no_stale_weights(tmp_path):
  first, second = random_params(TINY), jax.tree.map(lambda leaf: leaf + 1, random_params(TINY))
  for shards, params in ((1, first), (3, second), (1, first)):
    huggingface.save_t5(tmp_path, TINY, params, shards=shards)
    assert_same(huggingface.load_t5(tmp_path)[1], params)


Q = 'encoder.block.1.layer.0.SelfAttention.q.weight'
CHANGES = {
    'missing': (lambda state: state.pop(Q),
                "'{folder}' lacks '" + Q + "' of shape [6, 8]; "
                'check that it is complete and belongs to this model.'),
    'unexpected': (lambda state: state.update({'decoder.extra': np.zeros(2), 'more': np.zeros(2)}),
                   "'{file}' has the unexpected key 'decoder.extra' and 1 more; "
                   'check that it belongs to this model.'),
    'misshaped': (lambda state: state.update({Q: np.zeros((5, 8))}),
                  "'{file}' has '" + Q + "' of shape [5, 8], expected [6, 8]; "
                  'check that the sizes of the model belong to this file.'),
    'untied': (lambda state: state.update({'lm_head.weight': np.ones((19, 8))}),
               "'{file}' has other values in 'lm_head.weight' than in 'shared.weight', "
               'which must be the same; check that it belongs to this model.'),
}


@pytest.mark.parametrize('change', CHANGES)
def test_names_and_shapes_are_strict(tmp_path, change):
  apply, sentence = CHANGES[change]
  huggingface.save_t5(tmp_path, TINY, random_params(TINY))
  state = dict(files.read_tensors(tmp_path))
  apply(state)
  files.write_tensors(tmp_path / 'model.safetensors', dict(sorted(state.items())))
  with pytest.raises(UserError) as error:
    huggingface.load_t5(tmp_path)
  assert str(error.value) == sentence.format(
      folder=tmp_path, file=tmp_path / 'model.safetensors')


def test_missing_head_of_an_untied_model_is_told(tmp_path):
  config = FAMILIES['v1.1']
  huggingface.save_t5(tmp_path, config, random_params(config))
  state = dict(files.read_tensors(tmp_path))
  del state['lm_head.weight']
  files.write_tensors(tmp_path / 'model.safetensors', state)
  with pytest.raises(UserError, match=r"lacks 'lm_head.weight' of shape \[19, 8\]"):
    huggingface.load_t5(tmp_path)


@pytest.mark.parametrize('path,value,sentence', [
    ('encoder/extra', np.zeros(3), 'The parameter tree has encoder/extra, for which this format '
     'has no name; check that it belongs to this model.'),
    ('encoder/final_norm/scale', np.zeros(3), 'The parameter tree has encoder/final_norm/scale of '
     'shape [3], expected [8]; check that it belongs to this model.'),
    ('encoder/final_norm/scale', None, 'The parameter tree lacks encoder/final_norm/scale of shape '
     '[8]; check that it belongs to this model.')])
def test_saving_is_strict_and_writes_nothing_on_error(tmp_path, path, value, sentence):
  leaves = trees.flatten(random_params(TINY)) | {path: value}
  leaves = {path: leaf for path, leaf in leaves.items() if leaf is not None}
  with pytest.raises(UserError) as error:
    huggingface.save_t5(tmp_path / 'out', TINY, trees.unflatten(leaves))
  assert str(error.value) == sentence
  assert not (tmp_path / 'out').exists()
