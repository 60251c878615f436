"""Hugging Face PEFT gives the same logits for what it wrote and for what is written here."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from pemt_jax import trees
from pemt_jax.experts import library
from pemt_jax.interop import files
from pemt_jax.interop import formats
from pemt_jax.interop import huggingface
from pemt_jax.interop import peft as folders
from pemt_jax.interop import peft_experts
from pemt_jax.models.t5 import T5

LENGTHS = np.array([[6], [4], [2]])
_SEQ2SEQ = {'task_type': 'SEQ_2_SEQ_LM'}
# Kind -> (config class, its options, gated backbone, decoder layers, stage, files stay the same).
KINDS = {
    'lora': ('LoraConfig', {'r': 2, 'lora_alpha': 3}, False, 3, 'lora', True),
    'lora_mlp': ('LoraConfig', {
        'r': 3, 'lora_alpha': 4, 'use_rslora': True,
        'target_modules': ['q', 'o', 'wi_0', 'wi_1', 'wo']}, True, 2, 'lora', True),
    'lora_cross': ('LoraConfig', {
        'r': 2, 'target_modules': r'decoder.*EncDecAttention\.(q|k)'}, False, 2, 'lora', True),
    'ia3': ('IA3Config', {}, False, 3, 'ia3', True),
    'ia3_gated': ('IA3Config', {'target_modules': ['k', 'v', 'wi_1'],
                                'feedforward_modules': ['wi_1']}, True, 2, 'ia3', True),
    'prompt': ('PromptTuningConfig', {'num_virtual_tokens': 3}, False, 2, 'prompt', False),
    'prefix': ('PrefixTuningConfig', {'num_virtual_tokens': 3}, False, 2, 'prefix_kv', False),
    'prefix_made': ('PrefixTuningConfig', {
        'num_virtual_tokens': 2, 'num_layers': 3, 'prefix_projection': True,
        'encoder_hidden_size': 5}, False, 3, 'prefix_kv', True),
}
# Every kind costs a program of its own; the others run with --all.
QUICK = ('lora_mlp', 'ia3', 'prompt', 'prefix')
GRID = [pytest.param(kind, marks=[] if kind in QUICK else [pytest.mark.slow]) for kind in KINDS]


def random_backbone(gated, layers):
  """A Hugging Face T5 whose weights are large enough for every part to be seen."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  model = transformers.T5ForConditionalGeneration(transformers.T5Config(
      vocab_size=32, d_model=8, d_kv=4, num_heads=2, d_ff=16, num_layers=2,
      num_decoder_layers=layers, relative_attention_num_buckets=8, decoder_start_token_id=0,
      feed_forward_proj='gated-gelu' if gated else 'relu', tie_word_embeddings=not gated))
  randomise(model)
  return model.eval()


def randomise(model, only_trained=False):
  import torch

  with torch.no_grad():
    for value in model.parameters():
      if value.requires_grad or not only_trained:
        value.copy_(0.4 * torch.randn_like(value))


@functools.cache
def batch():
  rng = np.random.default_rng(0)
  mask = (np.arange(6) < LENGTHS).astype(np.int32)
  return {'inputs': rng.integers(2, 32, (3, 6)).astype(np.int32) * mask, 'mask': mask,
          'targets': rng.integers(2, 32, (3, 4)).astype(np.int32)}


def their_logits(model):
  import torch

  rows = {name: torch.tensor(value, dtype=torch.long) for name, value in batch().items()}
  with torch.no_grad():
    return model(input_ids=rows['inputs'], attention_mask=rows['mask'],
                 decoder_input_ids=rows['targets']).logits.numpy()


def our_logits(folder, config, params):
  tuned, constants, card = library.load_expert(folder)
  rows = batch()
  model = T5(config, peft_experts.method_of(card, config, tuned).plan)
  logits, _ = jax.jit(model.apply)(
      {'params': trees.merge(params, tuned), 'constants': constants}, rows['inputs'],
      rows['mask'].astype(np.float32), rows['targets'],
      np.ones(rows['targets'].shape, np.float32))
  return np.asarray(logits)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """kind -> (folder with `backbone` and PEFT's `adapter`, PEFT's logits, plain logits)."""
  peft = pytest.importorskip('peft')

  @functools.cache
  def make(kind):
    name, options, gated, layers, _, _ = KINDS[kind]
    folder = tmp_path_factory.mktemp(kind)
    model = random_backbone(gated, layers)
    model.save_pretrained(folder / 'backbone')
    plain = their_logits(model)
    model = peft.get_peft_model(model, getattr(peft, name)(**_SEQ2SEQ, **options)).eval()
    randomise(model, only_trained=True)
    model.save_pretrained(folder / 'adapter')
    return folder, their_logits(model), plain

  return make


def to_expert(folder, target):
  options = formats.Options(backbone=str(folder / 'backbone'), sources=('cb',))
  assert formats.convert('peft', 'expert', str(folder / 'adapter'), str(target), options) == []


@pytest.mark.parametrize('kind', GRID)
def test_an_imported_adapter_gives_the_logits_of_peft(tmp_path, saved, kind):
  folder, theirs, plain = saved(kind)
  to_expert(folder, tmp_path)
  card = library.load_card(tmp_path)
  assert (card.method, card.task) == (KINDS[kind][4], 'cb')
  ours = our_logits(tmp_path, *huggingface.load_t5(folder / 'backbone'))
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
  assert np.abs(theirs - plain).max() > 0.1


@pytest.mark.parametrize('kind', KINDS)
def test_peft_loads_an_exported_adapter(tmp_path, saved, kind):
  import peft
  import transformers

  folder, theirs, _ = saved(kind)
  to_expert(folder, tmp_path / 'expert')
  options = formats.Options()
  assert formats.convert('expert', 'peft', str(tmp_path / 'expert'), str(tmp_path / 'out'),
                         options) == []
  model = transformers.T5ForConditionalGeneration.from_pretrained(folder / 'backbone').eval()
  model = peft.PeftModel.from_pretrained(model, tmp_path / 'out').eval()
  np.testing.assert_allclose(their_logits(model), theirs, rtol=0, atol=1e-6)
  if KINDS[kind][5]:
    ours, before = (files.read_tensors(path / folders.SAFETENSORS)
                    for path in (tmp_path / 'out', folder / 'adapter'))
    assert set(ours) == set(before)
    for name in before:
      np.testing.assert_array_equal(ours[name], before[name], err_msg=name)
  # In again: the expert is the same to the last bit.
  formats.convert('peft', 'expert', str(tmp_path / 'out'), str(tmp_path / 'again'), options)
  again, expert = (trees.flatten(library.load_expert(tmp_path / name)[0])
                   for name in ('again', 'expert'))
  assert again.keys() == expert.keys()
  for path, leaf in expert.items():
    np.testing.assert_array_equal(again[path], leaf, err_msg=path)
