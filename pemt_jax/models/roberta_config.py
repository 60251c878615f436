"""Shapes and constants of RoBERTa and BERT, by name, and the Hugging Face form of them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from pemt_jax.errors import UserError
from pemt_jax.models import hf_config

KINDS = ('roberta', 'bert')


@dataclasses.dataclass(frozen=True)
class RobertaConfig:
  """What an encoder of this family needs to know about itself.

  Attributes:
    vocab_size: rows of the embedding.
    embed: width of the residual stream.
    heads: attention heads per layer, which divide `embed`.
    mlp: width of the feed-forward activation.
    encoder_layers: blocks.
    positions: rows of the position table.
    token_types: rows of the table of token types.
    kind: 'roberta' numbers positions from pad_id + 1 and skips padding; 'bert' numbers from 0.
    dropout: probability in [0, 1) of the hidden states.
    attention_dropout: of the attention weights.
    norm_epsilon: added to the variance inside the norms.
    activation: a key of `blocks.ACTIVATIONS`; 'gelu' is the exact function.
    stddev: of initial kernels and tables.
    pad_id: id of padding.
    start_id: id at the front, whose final state stands for the text.
    eos_id: id that ends and separates texts.
  """

  vocab_size: int
  embed: int
  heads: int
  mlp: int
  encoder_layers: int
  positions: int
  token_types: int = 1
  kind: str = 'roberta'
  dropout: float = 0.1
  attention_dropout: float = 0.1
  norm_epsilon: float = 1e-5
  activation: str = 'gelu'
  stddev: float = 0.02
  pad_id: int = 1
  start_id: int = 0
  eos_id: int = 2

  @property
  def kv(self) -> int:
    """Width of one attention head."""
    return self.embed // self.heads

  @property
  def joined_kv(self) -> int:
    """Width of all heads together."""
    return self.embed

  @property
  def decoder_layers(self) -> int:
    """There is no decoder."""
    return 0

  @property
  def gated(self) -> bool:
    """The feed-forward has one branch."""
    return False

  @property
  def max_length(self) -> int:
    """Most positions of an input."""
    return self.positions - (self.pad_id + 1 if self.kind == 'roberta' else 0)


# size -> (embed, heads, mlp, layers)
_SIZES = {'base': (768, 12, 3072, 12), 'large': (1024, 16, 4096, 24)}
# Number of pieces of the published BERT vocabularies.
_BERT_VOCAB = {'uncased': 30522, 'cased': 28996}
_BERT_FIELDS = {'kind': 'bert', 'token_types': 2, 'norm_epsilon': 1e-12, 'pad_id': 0,
                'start_id': 101, 'eos_id': 102}


def _published_configs() -> dict[str, RobertaConfig]:
  table = {}
  for size, sizes in _SIZES.items():
    table[f'roberta-{size}'] = RobertaConfig(50265, *sizes, positions=514)
  for size, sizes in _SIZES.items():
    for case, vocab in _BERT_VOCAB.items():
      table[f'bert-{size}-{case}'] = RobertaConfig(vocab, *sizes, positions=512, **_BERT_FIELDS)
  return table


# Short name without owner -> config.
PUBLISHED: Mapping[str, RobertaConfig] = _published_configs()

_OWNERS = {'roberta': 'FacebookAI/', 'bert': 'google-bert/'}
_ACTIVATIONS = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'relu': 'relu'}
_FIELDS_TO_HF = {
    'vocab_size': 'vocab_size',
    'embed': 'hidden_size',
    'heads': 'num_attention_heads',
    'mlp': 'intermediate_size',
    'encoder_layers': 'num_hidden_layers',
    'positions': 'max_position_embeddings',
    'token_types': 'type_vocab_size',
    'dropout': 'hidden_dropout_prob',
    'attention_dropout': 'attention_probs_dropout_prob',
    'norm_epsilon': 'layer_norm_eps',
    'stddev': 'initializer_range',
    'pad_id': 'pad_token_id',
    'start_id': 'bos_token_id',
    'eos_id': 'eos_token_id',
}
_REQUIRED_IN_HF = ('vocab_size', 'hidden_size', 'num_attention_heads', 'intermediate_size',
                   'num_hidden_layers', 'max_position_embeddings')


def short_name(name: str) -> str | None:
  """Returns the key of `PUBLISHED` that `name` means, with or without its owner, or None."""
  for owner in _OWNERS.values():
    name = name.removeprefix(owner)
  return name if name in PUBLISHED else None


def hub_id(name: str) -> str:
  """Returns the hub repository of a published size; other names are returned unchanged."""
  short = short_name(name)
  return name if short is None else _OWNERS[PUBLISHED[short].kind] + short


def roberta_config(name_or_folder: str | pathlib.Path) -> RobertaConfig:
  """Returns the config of a published size, or of a local folder that holds `config.json`.

  Args:
    name_or_folder: 'roberta-base', 'google-bert/bert-base-cased', ... or a path; a folder is
      preferred.

  Raises:
    UserError: if it is neither, or if the folder's `config.json` is missing or of another family.
  """
  return hf_config.find(name_or_folder, PUBLISHED, short_name, read_hf_config,
                        'RoBERTa or BERT')


def read_hf_config(path: str | pathlib.Path) -> RobertaConfig:
  """Reads a Hugging Face `config.json`.

  Raises:
    UserError: if the file is missing, is not JSON or does not describe a supported model.
  """
  return from_hf(hf_config.read_json(path, 'RoBERTa or BERT'), str(path))


def from_hf(values: Mapping[str, Any], place: str = 'config.json') -> RobertaConfig:
  """Translates the dict of a Hugging Face `config.json`.

  Args:
    values: keys of RobertaConfig or BertConfig; keys that do not change the computation are
      ignored.
    place: file name for messages.

  Raises:
    UserError: if the dict is of another family, lacks a size or asks for something unsupported.
  """
  values = hf_config.require_object(values, place)
  kind = values.get('model_type')
  if kind not in KINDS:
    raise UserError(f"'{place}' has model_type '{kind}'; only {' and '.join(KINDS)} can be read"
                    ' here.')
  hf_config.require_keys(values, _REQUIRED_IN_HF, place)
  activation = values.get('hidden_act', 'gelu')
  if activation not in _ACTIVATIONS:
    raise UserError(f"'{place}' has hidden_act '{activation}'; supported are"
                    f" {', '.join(_ACTIVATIONS)}.")
  position = values.get('position_embedding_type', 'absolute')
  if position != 'absolute' or values.get('is_decoder'):
    raise UserError(f"'{place}' describes a decoder or relative positions; only an encoder with"
                    ' absolute positions can be read.')
  if values['hidden_size'] % values['num_attention_heads']:
    raise UserError(f"'{place}' has hidden_size {values['hidden_size']}, which its"
                    f" {values['num_attention_heads']} heads do not divide; correct it.")
  fields = dict(_BERT_FIELDS) if kind == 'bert' else {}
  fields |= {ours: values[theirs] for ours, theirs in _FIELDS_TO_HF.items()
             if values.get(theirs) is not None}
  return RobertaConfig(**fields, activation=_ACTIVATIONS[activation])


def to_hf(config: RobertaConfig, labels: int = 0) -> dict[str, Any]:
  """Returns the dict of a Hugging Face `config.json` for `config`.

  Args:
    config: of the backbone.
    labels: outputs of a head for whole texts; 0 for the encoder alone.
  """
  family = {'roberta': 'Roberta', 'bert': 'Bert'}[config.kind]
  values = {theirs: getattr(config, ours) for ours, theirs in _FIELDS_TO_HF.items()}
  activation = next(name for name, ours in _ACTIVATIONS.items() if ours == config.activation)
  architecture = f'{family}ForSequenceClassification' if labels else f'{family}Model'
  values |= {'architectures': [architecture], 'model_type': config.kind, 'hidden_act': activation,
             'position_embedding_type': 'absolute', 'use_cache': True}
  if labels:
    values['id2label'] = {str(i): f'LABEL_{i}' for i in range(labels)}
    values['label2id'] = {f'LABEL_{i}': i for i in range(labels)}
  return values
