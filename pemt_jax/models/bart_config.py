"""Shapes and constants of BART, by name, and the Hugging Face form of them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from pemt_jax.errors import UserError
from pemt_jax.models import hf_config

KIND = 'bart'
# Rows of a position table in front of that of position 0.
FIRST_POSITION = 2
# Decoding options of the published checkpoints, in the names of `decoding.GenerationConfig`.
_GENERATION = (('early_stopping', True), ('forced_bos_token_id', 0), ('forced_eos_token_id', 2),
               ('no_repeat_ngram_size', 3), ('num_beams', 4))


@dataclasses.dataclass(frozen=True)
class BartConfig(hf_config.WholeHeads):
  """What a BART needs to know about itself.

  Attributes:
    vocab_size: rows of the embedding.
    embed: width of the residual stream.
    heads: attention heads per layer, which divide `embed`.
    mlp: width of the feed-forward activation.
    encoder_layers: blocks of the encoder.
    decoder_layers: blocks of the decoder.
    positions: most positions of a stack; its table has two rows more, which nothing reads.
    dropout: probability in [0, 1) of the hidden states.
    attention_dropout: of the attention weights.
    activation_dropout: between the projections of the feed-forward.
    norm_epsilon: added to the variance inside the norms.
    activation: a key of `blocks.ACTIVATIONS`; 'gelu' is the exact function.
    stddev: of initial kernels and tables.
    pad_id: id of padding.
    bos_id: id at the front of a text.
    eos_id: id at the end of a text.
    start_id: id that the decoder starts from.
    generation: decoding options of the checkpoint, (name in `GenerationConfig`, value).
  """

  vocab_size: int
  embed: int
  heads: int
  mlp: int
  encoder_layers: int
  decoder_layers: int
  positions: int = 1024
  dropout: float = 0.1
  attention_dropout: float = 0.1
  activation_dropout: float = 0.1
  norm_epsilon: float = 1e-5
  activation: str = 'gelu'
  stddev: float = 0.02
  pad_id: int = 1
  bos_id: int = 0
  eos_id: int = 2
  start_id: int = 2
  generation: tuple[tuple[str, Any], ...] = _GENERATION

  @property
  def tied_head(self) -> bool:
    """Logits come from the embedding."""
    return True

  @property
  def position_rows(self) -> int:
    """Rows of a position table."""
    return self.positions + FIRST_POSITION


_VOCAB_SIZE = 50265
# Short name without owner -> config (Lewis et al. 2020).
PUBLISHED: Mapping[str, BartConfig] = {
    'bart-base': BartConfig(_VOCAB_SIZE, 768, 12, 3072, 6, 6),
    'bart-large': BartConfig(_VOCAB_SIZE, 1024, 16, 4096, 12, 12),
}

_ACTIVATIONS = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'relu': 'relu'}
_FIELDS_TO_HF = {
    'vocab_size': 'vocab_size',
    'embed': 'd_model',
    'heads': 'encoder_attention_heads',
    'mlp': 'encoder_ffn_dim',
    'encoder_layers': 'encoder_layers',
    'decoder_layers': 'decoder_layers',
    'positions': 'max_position_embeddings',
    'dropout': 'dropout',
    'attention_dropout': 'attention_dropout',
    'activation_dropout': 'activation_dropout',
    'stddev': 'init_std',
    'pad_id': 'pad_token_id',
    'bos_id': 'bos_token_id',
    'eos_id': 'eos_token_id',
    'start_id': 'decoder_start_token_id',
}
# What Hugging Face takes where a file is silent and a `BartConfig` says something else.
_SILENT = {'attention_dropout': 0.0, 'activation_dropout': 0.0}
_REQUIRED_IN_HF = ('vocab_size', 'd_model', 'encoder_attention_heads', 'encoder_ffn_dim',
                   'encoder_layers', 'decoder_layers')
# Fields that must be equal: both stacks have one form.
_EQUAL = (('encoder_attention_heads', 'decoder_attention_heads'),
          ('encoder_ffn_dim', 'decoder_ffn_dim'))
# Forms that exist in Hugging Face and that no published BART has: field -> the only value.
_FIXED = {'scale_embedding': False, 'normalize_before': False, 'add_final_layer_norm': False,
          'normalize_embedding': True, 'static_position_embeddings': False,
          'tie_word_embeddings': True}
_OPTIONS = ('early_stopping', 'forced_bos_token_id', 'forced_eos_token_id', 'length_penalty',
            'min_length', 'no_repeat_ngram_size', 'num_beams')


def read_hf_config(path: str | pathlib.Path) -> BartConfig:
  """Reads a Hugging Face `config.json`, and the `generation_config.json` beside it if any.

  Raises:
    UserError: if a file is missing, is not JSON or does not describe a supported model.
  """
  path = pathlib.Path(path)
  values = hf_config.read_json(path, 'BART')
  beside = path.with_name('generation_config.json')
  if beside.is_file():
    stated = hf_config.read_json(beside, 'BART')
    values |= {name: stated[name] for name in _OPTIONS if stated.get(name) is not None}
  return from_hf(values, str(path))


@hf_config.strict
def from_hf(values: Mapping[str, Any], place: str = 'config.json') -> BartConfig:
  """Translates the dict of a Hugging Face `config.json`.

  Args:
    values: keys of Hugging Face's BartConfig; keys that do not change the computation are ignored.
    place: file name for messages.

  Raises:
    UserError: if the dict is of another family, lacks a size or asks for something unsupported.
  """
  values = hf_config.checked(values, place, (KIND,), _REQUIRED_IN_HF, unstated=KIND)
  hf_config.require_values(values, _FIXED, place)
  for first, second in _EQUAL:
    if values.get(second, values[first]) != values[first]:
      raise UserError(f"'{place}' has {first} {values[first]} and {second} {values[second]}; only"
                      ' equal ones are supported.')
  activation = hf_config.choose('activation_function', values.get('activation_function', 'gelu'),
                                _ACTIVATIONS, place)
  hf_config.require_whole_heads(values, 'd_model', 'encoder_attention_heads', place)
  fields = _SILENT | hf_config.stated_fields(values, _FIELDS_TO_HF)
  options = tuple((name, values[name]) for name in _OPTIONS if values.get(name) is not None)
  return BartConfig(**fields, activation=activation, generation=options)


def to_hf(config: BartConfig) -> dict[str, Any]:
  """Returns the dict of a Hugging Face `config.json` for `config`."""
  values = hf_config.keyed_fields(config, _FIELDS_TO_HF)
  values |= {second: values[first] for first, second in _EQUAL}
  return {'architectures': ['BartForConditionalGeneration'], 'model_type': KIND,
          'is_encoder_decoder': True, 'use_cache': True, **values, 'scale_embedding': False,
          'tie_word_embeddings': True,
          'activation_function': hf_config.value_of(_ACTIVATIONS, config.activation)}


def generation_to_hf(config: BartConfig) -> dict[str, Any]:
  """Returns the dict of a Hugging Face `generation_config.json` for `config`."""
  ids = ('pad_token_id', 'bos_token_id', 'eos_token_id', 'decoder_start_token_id')
  values = to_hf(config)
  return {name: values[name] for name in ids} | dict(config.generation)


FAMILY = hf_config.Family('BART', BartConfig, (KIND,), PUBLISHED,
                          dict.fromkeys(PUBLISHED, 'facebook'), read_hf_config)
hub_id, bart_config = FAMILY.hub_id, FAMILY.read
