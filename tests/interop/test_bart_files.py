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
  """A random model of transformers; every parameter is large enough to be seen."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  values = {key: value for key, value in bart_config.to_hf(config).items() if key != 'model_type'}
  model = transformers.BartForConditionalGeneration(transformers.BartConfig(**values)).eval()
  torch.manual_seed(1)
  for path, weight in model.named_parameters():
    weight.data = torch.randn_like(weight) * (1.0 if 'norm' in path else 0.4)
  model.final_logits_bias = torch.randn(1, config.vocab_size)
  return model


def batch_of(rows=3, length=9, seed=0):
  rng = np.random.default_rng(seed)
  real = np.arange(length) < np.array([[length], [6], [3]])[:rows]
  ids = np.where(real, rng.integers(4, CONFIG.vocab_size, (rows, length)), CONFIG.pad_id)
  return ids.astype(np.int32), real.astype(np.float32)


def as_tensors(*arrays):
  torch = pytest.importorskip('torch')
  return [torch.from_numpy(np.asarray(a)).long() for a in arrays]


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
