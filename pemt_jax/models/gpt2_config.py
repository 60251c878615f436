"""Shapes and constants of GPT-2, by name, and the Hugging Face form of them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from pemt_jax.models import hf_config

KIND = 'gpt2'


@dataclasses.dataclass(frozen=True)
class GPT2Config(hf_config.WholeHeads):
  """What a GPT-2 needs to know about itself.

  Attributes:
    vocab_size: rows of the embedding.
    embed: width of the residual stream.
    heads: attention heads per layer, which divide `embed`.
    mlp: width of the feed-forward activation.
    decoder_layers: blocks.
    positions: rows of the position table.
    dropout: probability in [0, 1) of what the sub-layers add.
    embed_dropout: of the embeddings.
    attention_dropout: of the attention weights.
    norm_epsilon: added to the variance inside the norms.
    activation: a key of `blocks.ACTIVATIONS`.
    stddev: of initial kernels and tables; those that end a sub-layer have it divided by
      sqrt(2 * decoder_layers).
    pad_id: id that fills rows; the published vocabulary has none of its own.
    start_id: id between a text and what is to follow it.
    eos_id: id that ends a text.
  """

  vocab_size: int
  embed: int
  heads: int
  mlp: int
  decoder_layers: int
  positions: int = 1024
  dropout: float = 0.1
  embed_dropout: float = 0.1
  attention_dropout: float = 0.1
  norm_epsilon: float = 1e-5
  activation: str = 'gelu_tanh'
  stddev: float = 0.02
  pad_id: int = 50256
  start_id: int = 50256
  eos_id: int = 50256

  @property
  def encoder_layers(self) -> int:
    """There is no encoder."""
    return 0


# name -> (embed, heads, layers)
_SIZES = {'gpt2': (768, 12, 12), 'gpt2-medium': (1024, 16, 24), 'gpt2-large': (1280, 20, 36),
          'gpt2-xl': (1600, 25, 48)}
_VOCAB_SIZE = 50257

# Short name without owner -> config.
PUBLISHED: Mapping[str, GPT2Config] = {
    name: GPT2Config(_VOCAB_SIZE, embed, heads, 4 * embed, layers)
    for name, (embed, heads, layers) in _SIZES.items()}

_ACTIVATIONS = {'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu': 'gelu',
                'relu': 'relu'}
_FIELDS_TO_HF = {
    'vocab_size': 'vocab_size',
    'embed': 'n_embd',
    'heads': 'n_head',
    'mlp': 'n_inner',
    'decoder_layers': 'n_layer',
    'positions': 'n_positions',
    'dropout': 'resid_pdrop',
    'embed_dropout': 'embd_pdrop',
    'attention_dropout': 'attn_pdrop',
    'norm_epsilon': 'layer_norm_epsilon',
    'stddev': 'initializer_range',
    'pad_id': 'pad_token_id',
    'start_id': 'bos_token_id',
    'eos_id': 'eos_token_id',
}
_REQUIRED_IN_HF = ('vocab_size', 'n_embd', 'n_head', 'n_layer')
# Forms that exist in Hugging Face and that no published GPT-2 has: field -> the only value.
_FIXED = {'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False,
          'add_cross_attention': False, 'tie_word_embeddings': True}


def read_hf_config(path: str | pathlib.Path) -> GPT2Config:
  """Reads a Hugging Face `config.json`.

  Raises:
    UserError: if the file is missing, is not JSON or does not describe a supported model.
  """
  return from_hf(hf_config.read_json(path, 'GPT-2'), str(path))


@hf_config.strict
def from_hf(values: Mapping[str, Any], place: str = 'config.json') -> GPT2Config:
  """Translates the dict of a Hugging Face `config.json`.

  Args:
    values: keys of Hugging Face's GPT2Config; keys that do not change the computation are ignored.
    place: file name for messages.

  Raises:
    UserError: if the dict is of another family, lacks a size or asks for something unsupported.
  """
  values = hf_config.checked(values, place, (KIND,), _REQUIRED_IN_HF)
  hf_config.require_values(values, _FIXED, place)
  activation = hf_config.choose(
      'activation_function', values.get('activation_function', 'gelu_new'), _ACTIVATIONS, place)
  hf_config.require_whole_heads(values, 'n_embd', 'n_head', place)
  fields = hf_config.stated_fields(values, _FIELDS_TO_HF)
  fields.setdefault('mlp', 4 * fields['embed'])
  if 'eos_id' in fields:  # A vocabulary without padding is filled up with its end mark.
    fields.setdefault('pad_id', fields['eos_id'])
    fields.setdefault('start_id', fields['eos_id'])
  return GPT2Config(**fields, activation=activation)


def to_hf(config: GPT2Config) -> dict[str, Any]:
  """Returns the dict of a Hugging Face `config.json` for `config`."""
  return {'architectures': ['GPT2LMHeadModel'], 'model_type': KIND, 'use_cache': True,
          **hf_config.keyed_fields(config, _FIELDS_TO_HF), **_FIXED,
          'activation_function': hf_config.value_of(_ACTIVATIONS, config.activation)}


FAMILY = hf_config.Family('GPT-2', GPT2Config, (KIND,), PUBLISHED,
                          dict.fromkeys(PUBLISHED, 'openai-community'), read_hf_config)
hub_id, gpt2_config = FAMILY.hub_id, FAMILY.read
