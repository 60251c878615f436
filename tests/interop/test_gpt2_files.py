"""Hugging Face GPT-2 checkpoints: same numbers in and out; logits and texts of transformers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.interop import files, gpt2_files
from pemt_jax.models import generation, gpt2_config
from pemt_jax.models.decoding import GenerationConfig
from pemt_jax.models.gpt2 import GPT2
from pemt_jax.models.gpt2_config import GPT2Config

CONFIG = GPT2Config(vocab_size=30, embed=16, heads=4, mlp=24, decoder_layers=2, positions=24,
                    pad_id=1, start_id=2, eos_id=2)
ROWS, LENGTH, NEW = 3, 6, 7


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
  """(model of transformers, folder with its files); every parameter is large enough to be seen."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  values = gpt2_config.to_hf(CONFIG)
  options = {key: value for key, value in values.items() if key != 'model_type'}
  model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options)).eval()
  torch.manual_seed(1)
  for path, weight in model.named_parameters():
    scale = 0.05 if path.endswith('bias') else 1.0 if 'ln_' in path or 'wpe' in path else 0.4
    weight.data = torch.randn_like(weight) * scale
  folder = tmp_path_factory.mktemp('gpt2')
  model.save_pretrained(folder)
  return model, folder


@functools.cache
def prompts():
  """Prompts padded on the left: [rows, length] ids, and the mask."""
  rng = np.random.default_rng(0)
  mask = np.arange(LENGTH) >= np.array([[0], [2], [4]])
  ids = np.where(mask, rng.integers(3, CONFIG.vocab_size, mask.shape), CONFIG.pad_id)
  return ids.astype(np.int32), mask.astype(np.float32)


def test_logits_are_those_of_transformers(theirs):
  torch = pytest.importorskip('torch')
  config, params = gpt2_files.load_gpt2(theirs[1])
  assert config == CONFIG
  ids, mask = prompts()
  places = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  with torch.no_grad():
    expected = theirs[0](input_ids=torch.from_numpy(ids).long(),
                         attention_mask=torch.from_numpy(mask).long(),
                         position_ids=torch.from_numpy(places).long()).logits.numpy()
  run = jax.jit(lambda params: GPT2(CONFIG).apply({'params': params}, ids, mask, method='read')[0])
  real = mask > 0
  np.testing.assert_allclose(np.asarray(run(params))[real], expected[real], atol=1e-5, rtol=1e-5)
  assert expected[real].std() > 0.1


@pytest.mark.parametrize('beams', [1, 3])
def test_prompts_are_continued_as_transformers_does(beams, theirs):
  torch = pytest.importorskip('torch')
  ids, mask = prompts()
  with torch.no_grad():
    expected = theirs[0].generate(
        torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long(),
        max_new_tokens=NEW, num_beams=beams, do_sample=False, early_stopping=True,
        length_penalty=0.7, pad_token_id=1, eos_token_id=2).numpy()[:, LENGTH:]
  _, params = gpt2_files.load_gpt2(theirs[1])
  options = GenerationConfig(max_length=NEW + 1, num_beams=beams, early_stopping=True,
                             length_penalty=0.7, start_id=2, eos_id=2, pad_id=1)

  @jax.jit
  def run(params):
    apply = lambda *args, method: GPT2(CONFIG).apply({'params': params}, *args, method=method)
    text = apply(ids[:, :-1], mask[:, :-1], method='encode')
    memory, cache = apply(text, ROWS, NEW + 1, method='start_decoding')
    step = lambda *args: apply(*args, memory, method='decode_step')
    return generation.generate(step, cache, ROWS, options, starts=jnp.asarray(ids[:, -1]))

  found = np.asarray(run(params))
  np.testing.assert_array_equal(found[:, 0], ids[:, -1])
  padded = np.full((ROWS, NEW), 1)
  padded[:, :expected.shape[1]] = expected
  np.testing.assert_array_equal(found[:, 1:], padded)
  assert len(np.unique(found)) > 5


def test_tensors_come_in_and_go_out_unchanged(theirs, tmp_path):
  config, params = gpt2_files.load_gpt2(theirs[1])
  gpt2_files.save_gpt2(tmp_path / 'out', config, params)
  first, second = files.read_tensors(theirs[1]), files.read_tensors(tmp_path / 'out')
  assert set(first) - {'lm_head.weight'} == set(second)
  for name in second:
    np.testing.assert_array_equal(first[name], second[name], err_msg=name)
  again, same = gpt2_files.load_gpt2(tmp_path / 'out')
  assert again == config
  assert trees.flatten(same).keys() == trees.flatten(params).keys()


def test_old_files_have_no_prefix_and_buffers(theirs, tmp_path):
  _, params = gpt2_files.load_gpt2(theirs[1])
  state = {name.removeprefix('transformer.'): value
           for name, value in files.read_tensors(theirs[1]).items() if name != 'lm_head.weight'}
  state['h.0.attn.bias'] = np.ones((1, 1, 4, 4), np.float32)
  files.write_tensors(tmp_path / files.SAFETENSORS, state)
  (tmp_path / 'config.json').write_bytes((theirs[1] / 'config.json').read_bytes())
  _, found = gpt2_files.load_gpt2(tmp_path)
  for path, leaf in trees.flatten(params).items():
    np.testing.assert_array_equal(leaf, trees.flatten(found)[path])
  del state['h.1.mlp.c_fc.bias']
  files.write_tensors(tmp_path / files.SAFETENSORS, state)
  with pytest.raises(UserError, match=r"lacks 'h.1.mlp.c_fc.bias' of shape \[24\]"):
    gpt2_files.load_gpt2(tmp_path)


def test_transformers_reads_what_is_written(theirs, tmp_path):
  transformers = pytest.importorskip('transformers')
  gpt2_files.save_gpt2(tmp_path, *gpt2_files.load_gpt2(theirs[1]), shards=2)
  read = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).state_dict()
  for name, weight in theirs[0].state_dict().items():
    np.testing.assert_array_equal(read[name].numpy(), weight.numpy(), err_msg=name)
