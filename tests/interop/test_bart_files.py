"""Hugging Face BART checkpoints: same numbers in and out, logits and outputs of transformers."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.interop import backbones, bart_files, files
from pemt_jax.methods.base import boxed_shapes, shift_right
from pemt_jax.models import bart_config, generation
from pemt_jax.models.bart import Bart
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.decoding import GenerationConfig

CONFIG = BartConfig(vocab_size=30, embed=16, heads=4, mlp=24, encoder_layers=2, decoder_layers=3,
                    positions=20)
MODEL = Bart(CONFIG)


@functools.cache
def theirs_of(config=CONFIG):
  """A random model of transformers; every parameter is seen, and outputs depend on the source."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  values = {key: value for key, value in bart_config.to_hf(config).items() if key != 'model_type'}
  model = transformers.BartForConditionalGeneration(transformers.BartConfig(**values)).eval()
  torch.manual_seed(1)
  for path, weight in model.named_parameters():
    scale = 1.2 if 'encoder_attn' in path else 0.2 if path.endswith('bias') else 0.5
    weight.data = torch.randn_like(weight) * scale + (path.endswith('norm.weight'))
  model.final_logits_bias = 0.3 * torch.randn(1, config.vocab_size)
  return model


def batch_of(rows=3, length=9, seed=0):
  rng = np.random.default_rng(seed)
  real = np.arange(length) < np.array([[length], [6], [3]])[:rows]
  ids = np.where(real, rng.integers(4, CONFIG.vocab_size, (rows, length)), CONFIG.pad_id)
  return ids.astype(np.int32), real.astype(np.float32)


def as_tensors(*arrays):
  torch = pytest.importorskip('torch')
  return [torch.from_numpy(np.array(a)).long() for a in arrays]


def test_logits_are_those_of_transformers(tmp_path):
  theirs = theirs_of()
  theirs.save_pretrained(tmp_path)
  found, params = backbones.load(tmp_path)
  assert dataclasses.replace(found, generation=()) == dataclasses.replace(CONFIG, generation=())
  ids, mask = batch_of()
  targets, target_mask = batch_of(length=7, seed=1)
  decoder_inputs = np.asarray(shift_right(targets, CONFIG.start_id))
  tensors = as_tensors(ids, mask, decoder_inputs, target_mask)
  expected = theirs(**dict(zip(('input_ids', 'attention_mask', 'decoder_input_ids',
                                'decoder_attention_mask'), tensors, strict=True))).logits
  masked = dataclasses.replace(MODEL, compute=dataclasses.replace(MODEL.compute,
                                                                  mask_targets=True))
  logits, aux = jax.jit(masked.apply)({'params': params}, ids, mask, decoder_inputs, target_mask)
  assert not aux and expected.std() > 0.5
  # Past its last token a row of the original looks at the same keys as here.
  np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-5, rtol=1e-5)


OPTIONS = {
    'greedy': {'no_repeat_ngram_size': 2, 'forced_eos_token_id': 2},
    'of the hub': dict(CONFIG.generation),
    'of the mixture': {'num_beams': 4, 'no_repeat_ngram_size': 3, 'forced_eos_token_id': 2,
                       'decoder_start_token_id': 0},
    'long': {'num_beams': 3, 'length_penalty': 2.0, 'min_length': 6, 'no_repeat_ngram_size': 2,
             'early_stopping': True},
}


@pytest.mark.parametrize('name', [
    *('of the hub', 'of the mixture'),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ('greedy', 'long'))])
def test_outputs_are_those_of_transformers(name):
  options = {'max_length': 11, 'num_beams': 1} | OPTIONS[name]
  theirs = theirs_of()
  params = bart_files.from_state(
      {key: value.numpy() for key, value in theirs.state_dict().items()}, CONFIG)
  rng = np.random.default_rng(3)
  mask = (np.arange(8) < rng.integers(2, 9, size=(6, 1))).astype(np.float32)
  ids = np.where(mask > 0, rng.integers(3, 30, size=mask.shape), CONFIG.pad_id).astype(np.int32)
  tensors = as_tensors(ids, mask)
  stated = {key: options.get(key) for key in ('forced_bos_token_id', 'forced_eos_token_id')}
  expected = theirs.generate(tensors[0], attention_mask=tensors[1], do_sample=False,
                             **options | stated).numpy()
  assert len(np.unique(expected, axis=0)) >= 4  # else the comparison says little
  start = options.pop('decoder_start_token_id', CONFIG.start_id)
  form = GenerationConfig(start_id=start, eos_id=CONFIG.eos_id, pad_id=CONFIG.pad_id, **options)

  @jax.jit
  def decode(params):
    apply = functools.partial(MODEL.apply, {'params': params})
    encoded = apply(ids, mask, method='encode')
    memory, cache = apply(encoded, len(ids), form.max_length, method='start_decoding')
    return generation.generate(functools.partial(apply, memory=memory, method='decode_step'),
                               cache, len(ids), form)

  width = ((0, 0), (0, form.max_length - expected.shape[1]))
  np.testing.assert_array_equal(
      decode(params), np.pad(expected, width, constant_values=CONFIG.pad_id))


def test_tensors_of_transformers_come_in_and_go_out_unchanged(tmp_path):
  theirs = theirs_of()
  theirs.save_pretrained(tmp_path / 'theirs')
  config, params = bart_files.load_bart(tmp_path / 'theirs')
  config = dataclasses.replace(config, generation=(('forced_eos_token_id', 2), ('num_beams', 4)))
  bart_files.save_bart(tmp_path / 'ours', config, params, shards=2)
  again = type(theirs).from_pretrained(tmp_path / 'ours')
  assert (again.generation_config.num_beams, again.generation_config.forced_eos_token_id) == (4, 2)
  mine, expected = again.state_dict(), theirs.state_dict()
  assert mine.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(mine[name].numpy(), value.numpy(), err_msg=name)
  assert bart_files.load_bart(tmp_path / 'ours')[0] == config


def random_params():
  rng = np.random.default_rng(0)
  return trees.unflatten({path: rng.normal(size=shape).astype(np.float32) for path, shape
                          in bart_files.bart_table(CONFIG).leaf_shapes().items()})


def test_the_table_names_every_parameter_of_the_model():
  shapes = {path: leaf.shape for path, leaf in
            trees.flatten(jax.tree.map(lambda leaf: leaf.value, boxed_shapes(MODEL)['params'],
                                       is_leaf=lambda leaf: hasattr(leaf, 'names'))).items()}
  assert bart_files.bart_table(CONFIG).leaf_shapes() == shapes


def test_files_of_the_model_without_head_load(tmp_path):
  params = random_params() | {'logits_bias': np.zeros(30, np.float32)}
  bart_files.save_bart(tmp_path, CONFIG, params)
  state = {name.removeprefix('model.'): value for name, value in
           files.read_tensors(tmp_path).items() if name != 'final_logits_bias'}
  state |= {'encoder.version': np.zeros(1, np.float32),
            'decoder.embed_tokens.weight': state['shared.weight']}
  files.write_tensors(tmp_path / 'model.safetensors', state)
  jax.tree.map(np.testing.assert_array_equal, bart_files.load_bart(tmp_path)[1], params)


def test_a_file_of_another_shape_is_refused(tmp_path):
  bart_files.save_bart(tmp_path, CONFIG, random_params())
  other = dataclasses.replace(CONFIG, positions=21)
  state = files.read_tensors(tmp_path)
  with pytest.raises(UserError, match=r"embed_positions.weight' of shape \[22, 16\], expected"):
    bart_files.from_state(state, other)
  with pytest.raises(UserError, match="lacks 'model.decoder.layers.3.self_attn.q_proj.weight'"):
    bart_files.from_state(state, dataclasses.replace(CONFIG, decoder_layers=4))
