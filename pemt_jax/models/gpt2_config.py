"""Shapes and constants of GPT-2, by name, and the Hugging Face form of them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from pemt_jax.errors import UserError
from pemt_jax.models import hf_config

KIND = 'gpt2'


@dataclasses.dataclass(frozen=True)
class GPT2Config:
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
  def kv(self) -> int:
    """Width of one attention head."""
    return self.embed // self.heads

  @property
  def joined_kv(self) -> int:
    """Width of all heads together."""
    return self.embed

  @property
  def encoder_layers(self) -> int:
    """There is no encoder."""
    return 0

  @property
  def gated(self) -> bool:
    """The feed-forward has one branch."""
    return False


# name -> (embed, heads, layers)
_SIZES = {'gpt2': (768, 12, 12), 'gpt2-medium': (1024, 16, 24), 'gpt2-large': (1280, 20, 36),
          'gpt2-xl': (1600, 25, 48)}
_VOCAB_SIZE = 50257

# Short name without owner -> config.
PUBLISHED: Mapping[str, GPT2Config] = {
    name: GPT2Config(_VOCAB_SIZE, embed, heads, 4 * embed, layers)
    for name, (embed, heads, layers) in _SIZES.items()}

_OWNER = 'openai-community/'
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


def short_name(name: str) -> str | None:
  """Returns the key of `PUBLISHED` that `name` means, with or without its owner, or None."""
  name = name.removeprefix(_OWNER)
  return name if name in PUBLISHED else None


def hub_id(name: str) -> str:
  """Returns the hub repository of a published size; other names are returned unchanged."""
  short = short_name(name)
  return name if short is None else _OWNER + short


def gpt2_config(name_or_folder: str | pathlib.Path) -> GPT2Config:
  """Returns the config of a published size, or of a local folder that holds `config.json`.

  Args:
    name_or_folder: 'gpt2', 'openai-community/gpt2-xl', ... or a path; a folder is preferred.

  Raises:
    UserError: if it is neither, or if the folder's `config.json` is missing or of another family.
  """
  return hf_config.find(name_or_folder, PUBLISHED, short_name, read_hf_config, 'GPT-2')


def read_hf_config(path: str | pathlib.Path) -> GPT2Config:
  """Reads a Hugging Face `config.json`.

  Raises:
    UserError: if the file is missing, is not JSON or does not describe a supported model.
  """
  return from_hf(hf_config.read_json(path, 'GPT-2'), str(path))


def from_hf(values: Mapping[str, Any], place: str = 'config.json') -> GPT2Config:
  """Translates the dict of a Hugging Face `config.json`.

  Args:
    values: keys of Hugging Face's GPT2Config; keys that do not change the computation are ignored.
    place: file name for messages.

  Raises:
    UserError: if the dict is of another family, lacks a size or asks for something unsupported.
  """
  values = hf_config.require_object(values, place)
  if values.get('model_type') != KIND:
    raise UserError(f"'{place}' has model_type '{values.get('model_type')}'; only '{KIND}' can be"
                    ' read here.')
  hf_config.require_keys(values, _REQUIRED_IN_HF, place)
  for name, only in _FIXED.items():
    if values.get(name, only) is not only:
      raise UserError(f"'{place}' has {name} {values[name]!r}; only {only!r} is supported.")
  activation = values.get('activation_function', 'gelu_new')
  if activation not in _ACTIVATIONS:
    raise UserError(f"'{place}' has activation_function '{activation}'; supported are"
                    f" {', '.join(_ACTIVATIONS)}.")
  if values['n_embd'] % values['n_head']:
    raise UserError(f"'{place}' has n_embd {values['n_embd']}, which its {values['n_head']} heads"
                    ' do not divide; correct it.')
  fields = {ours: values[theirs] for ours, theirs in _FIELDS_TO_HF.items()
            if values.get(theirs) is not None}
  fields.setdefault('mlp', 4 * fields['embed'])
  if 'eos_id' in fields:  # A vocabulary without padding is filled up with its end mark.
    fields.setdefault('pad_id', fields['eos_id'])
    fields.setdefault('start_id', fields['eos_id'])
  return GPT2Config(**fields, activation=_ACTIVATIONS[activation])


def to_hf(config: GPT2Config) -> dict[str, Any]:
  """Returns the dict of a Hugging Face `config.json` for `config`."""
  values = {theirs: getattr(config, ours) for ours, theirs in _FIELDS_TO_HF.items()}
  activation = next(name for name, ours in _ACTIVATIONS.items() if ours == config.activation)
  return {'architectures': ['GPT2LMHeadModel'], 'model_type': KIND, 'use_cache': True, **values,
          **_FIXED, 'activation_function': activation}
