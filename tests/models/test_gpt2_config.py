"""Configs of GPT-2: published names, Hugging Face dicts, mistakes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from flax import linen as nn

from pemt_jax.errors import UserError
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.models import gpt2_config as gc
from pemt_jax.models.gpt2 import GPT2
from pemt_jax.trees import flatten

# Parameters of the published models, the tied head not counted twice.
SIZES = {'gpt2': 124439808, 'gpt2-medium': 354823168, 'gpt2-large': 774030080,
         'gpt2-xl': 1557611200}


@pytest.mark.parametrize('name', gc.PUBLISHED)
def test_published_shapes_have_the_published_sizes_and_come_back(name, tmp_path):
  config = gc.gpt2_config(name)
  shapes = nn.meta.unbox(boxed_shapes(GPT2(config)))['params']
  assert sum(int(np.prod(leaf.shape)) for leaf in flatten(shapes).values()) == SIZES[name]
  assert gc.from_hf(gc.to_hf(config)) == config
  (tmp_path / 'config.json').write_text(json.dumps(gc.to_hf(config)))
  assert gc.gpt2_config(tmp_path) == config == gc.gpt2_config(gc.hub_id(name))


def test_fields_that_old_files_leave_out_have_the_published_values():
  values = {'model_type': 'gpt2', 'vocab_size': 50257, 'n_embd': 768, 'n_head': 12, 'n_layer': 12,
            'n_ctx': 1024}
  assert gc.from_hf(values) == gc.PUBLISHED['gpt2']
  own = gc.from_hf(values | {'eos_token_id': 7})
  assert own == dataclasses.replace(gc.PUBLISHED['gpt2'], pad_id=7, start_id=7, eos_id=7)


@pytest.mark.parametrize('change, sentence', [
    ({'model_type': 't5'}, "model_type 't5'"),
    ({'n_embd': None}, "'here' lacks n_embd"),
    ({'activation_function': 'silu'}, "'here' has activation_function 'silu'; supported are"),
    ({'scale_attn_by_inverse_layer_idx': True}, "has scale_attn_by_inverse_layer_idx True; only"),
    ({'tie_word_embeddings': False}, "'here' has tie_word_embeddings False; only True"),
    ({'n_head': 5}, "'here' has n_embd 768, which its 5 heads do not divide")])
def test_unsupported_configs_are_told_with_the_key(change, sentence):
  with pytest.raises(UserError) as error:
    gc.from_hf(gc.to_hf(gc.PUBLISHED['gpt2']) | change, 'here')
  assert sentence in str(error.value)


def test_an_unknown_name_is_told():
  with pytest.raises(UserError, match='gpt2-medium'):
    gc.gpt2_config('gpt2-medum')
