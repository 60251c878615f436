"""Shapes and constants of every published T5, by name, and the Hugging Face form of them."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Mapping

from pemt_jax.models import hf_config

KIND = 't5'


@dataclasses.dataclass(frozen=True)
class T5Config:
  """What a T5 needs to know about itself.

  Attributes:
    vocab_size: rows of the embedding, padding rows included.
    embed: width of the residual stream.
    kv: width of one attention head.
    heads: attention heads per layer; `heads * kv` need not equal `embed`.
    mlp: width of the feed-forward activation.
    encoder_layers: blocks of the encoder.
    decoder_layers: blocks of the decoder.
    relative_buckets: rows of the relative position table.
    relative_max_distance: distance in tokens from which all positions share the last bucket.
    dropout: probability in [0, 1) at every dropout of the backbone.
    norm_epsilon: added to the mean square inside the norms.
    activation: 'relu' or 'gelu_tanh'.
    gated: feed-forward with a second, linear branch (v1.1).
    tied_head: logits from the embedding, scaled by embed ** -0.5 (v1.0); otherwise from an own
      matrix without scale.
    scaled_head: scale the input of a head of its own too (as published by Zeng et al. 2023).
    pad_id: id of padding.
    eos_id: id of the end of a sequence.
    start_id: id that the decoder starts from.
  """

  vocab_size: int
  embed: int
  kv: int
  heads: int
  mlp: int
  encoder_layers: int
  decoder_layers: int
  relative_buckets: int = 32
  relative_max_distance: int = 128
  dropout: float = 0.1
  norm_epsilon: float = 1e-6
  activation: str = 'relu'
  gated: bool = False
  tied_head: bool = True
  scaled_head: bool = False
  pad_id: int = 0
  eos_id: int = 1
  start_id: int = 0

  @property
  def joined_kv(self) -> int:
    """Width of all heads together."""
    return self.heads * self.kv

  @property
  def attention_dropout(self) -> float:
    """Dropout rate of attention weights."""
    return self.dropout


# size -> (embed, kv, heads, mlp, layers per stack)
_SIZES_V1_0 = {
    'small': (512, 64, 8, 2048, 6),
    'base': (768, 64, 12, 3072, 12),
    'large': (1024, 64, 16, 4096, 24),
    '3b': (1024, 128, 32, 16384, 24),
    '11b': (1024, 128, 128, 65536, 24),
}
_SIZES_V1_1 = {
    'small': (512, 64, 6, 1024, 8),
    'base': (768, 64, 12, 2048, 12),
    'large': (1024, 64, 16, 2816, 24),
    'xl': (2048, 64, 32, 5120, 24),
    'xxl': (4096, 64, 64, 10240, 24),
}
_VOCAB_SIZE = 32128


def _published_configs() -> dict[str, T5Config]:
  table = {}
  for size, (embed, kv, heads, mlp, layers) in _SIZES_V1_0.items():
    table[f't5-{size}'] = T5Config(_VOCAB_SIZE, embed, kv, heads, mlp, layers, layers)
  for size, (embed, kv, heads, mlp, layers) in _SIZES_V1_1.items():
    config = T5Config(
        _VOCAB_SIZE, embed, kv, heads, mlp, layers, layers,
        activation='gelu_tanh', gated=True, tied_head=False)
    for name in (f't5-v1_1-{size}', f't5-{size}-lm-adapt', f'flan-t5-{size}'):
      table[name] = config
  return table


# Short name without owner -> config.
PUBLISHED: Mapping[str, T5Config] = _published_configs()

# feed_forward_proj -> (gated, activation). A bare 'gelu' is the exact function: not supported.
_PROJECTIONS = {
    'relu': (False, 'relu'),
    'gated-relu': (True, 'relu'),
    'gated-gelu': (True, 'gelu_tanh'),
    'gated-gelu_new': (True, 'gelu_tanh'),
    'gelu_new': (False, 'gelu_tanh'),
}
_FIELDS_TO_HF = {
    'vocab_size': 'vocab_size',
    'embed': 'd_model',
    'kv': 'd_kv',
    'heads': 'num_heads',
    'mlp': 'd_ff',
    'encoder_layers': 'num_layers',
    'decoder_layers': 'num_decoder_layers',
    'relative_buckets': 'relative_attention_num_buckets',
    'relative_max_distance': 'relative_attention_max_distance',
    'dropout': 'dropout_rate',
    'norm_epsilon': 'layer_norm_epsilon',
    'pad_id': 'pad_token_id',
    'eos_id': 'eos_token_id',
    'start_id': 'decoder_start_token_id',
}
_REQUIRED_IN_HF = ('vocab_size', 'd_model', 'd_kv', 'num_heads', 'd_ff', 'num_layers')


def read_hf_config(path: str | pathlib.Path) -> T5Config:
  """Reads a Hugging Face `config.json`.

  Raises:
    UserError: if the file is missing, is not JSON or does not describe a supported T5.
  """
  return from_hf(hf_config.read_json(path, 'T5'), str(path))


@hf_config.strict
def from_hf(values: Mapping[str, Any], place: str = 'config.json') -> T5Config:
  """Translates the dict of a Hugging Face `config.json`.

  Args:
    values: keys of Hugging Face's T5Config; keys that do not change the computation are ignored.
    place: file name for messages.

  Raises:
    UserError: if the dict is not a T5's, lacks a size or asks for something unsupported.
  """
  values = hf_config.checked(values, place, (KIND,), _REQUIRED_IN_HF, unstated=KIND)
  fields = hf_config.stated_fields(values, _FIELDS_TO_HF)
  fields.setdefault('decoder_layers', fields['encoder_layers'])
  gated, activation = hf_config.choose(
      'feed_forward_proj', values.get('feed_forward_proj') or 'relu', _PROJECTIONS, place)
  return T5Config(
      **fields, activation=activation, gated=gated, tied_head=_has_scaled_head(values))


def _has_scaled_head(values: Mapping[str, Any]) -> bool:
  """Newer files always state `tie_word_embeddings: true` and mark v1.1 by the missing scale."""
  scaled = values.get('scale_decoder_outputs')
  if scaled is None:
    scaled = values.get('tie_word_embeddings')
  return scaled is not False


def to_hf(config: T5Config) -> dict[str, Any]:
  """Returns the dict of a Hugging Face `config.json` for `config`."""
  return {
      'architectures': ['T5ForConditionalGeneration'],
      'model_type': KIND,
      'is_encoder_decoder': True,
      'use_cache': True,
      'initializer_factor': 1.0,
      **hf_config.keyed_fields(config, _FIELDS_TO_HF),
      'feed_forward_proj': hf_config.value_of(_PROJECTIONS,
                                              (config.gated, config.activation)),
      'tie_word_embeddings': config.tied_head,
  }


def _spelling(name: str) -> str:
  """'t5-v1_1-SIZE-lm-adapt' also means 't5-SIZE-lm-adapt'."""
  return name.replace('t5-v1_1-', 't5-', 1) if name.endswith('-lm-adapt') else name


_OLD = {f't5-{size}' for size in _SIZES_V1_0}
FAMILY = hf_config.Family(
    'T5', T5Config, (KIND,), PUBLISHED,
    {name: 'google-t5' if name in _OLD else 'google' for name in PUBLISHED}, read_hf_config,
    _spelling)
hub_id, t5_config = FAMILY.hub_id, FAMILY.read
