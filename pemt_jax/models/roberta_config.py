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
class RobertaConfig(hf_config.WholeHeads):
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
  def decoder_layers(self) -> int:
    """There is no decoder."""
    return 0

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

_OWNERS = {'roberta': 'FacebookAI', 'bert': 'google-bert'}
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


def read_hf_config(path: str | pathlib.Path) -> RobertaConfig:
  """Reads a Hugging Face `config.json`.

  Raises:
    UserError: if the file is missing, is not JSON or does not describe a supported model.
  """
  return from_hf(hf_config.read_json(path, 'RoBERTa or BERT'), str(path))


@hf_config.strict
def from_hf(values: Mapping[str, Any], place: str = 'config.json') -> RobertaConfig:
  """Translates the dict of a Hugging Face `config.json`.

  Args:
    values: keys of RobertaConfig or BertConfig; keys that do not change the computation are
      ignored.
    place: file name for messages.

  Raises:
    UserError: if the dict is of another family, lacks a size or asks for something unsupported.
  """
  values = hf_config.checked(values, place, KINDS, _REQUIRED_IN_HF)
  activation = hf_config.choose('hidden_act', values.get('hidden_act', 'gelu'), _ACTIVATIONS, place)
  position = values.get('position_embedding_type', 'absolute')
  if position != 'absolute' or values.get('is_decoder'):
    raise UserError(f"'{place}' describes a decoder or relative positions; only an encoder with"
                    ' absolute positions can be read.')
  hf_config.require_whole_heads(values, 'hidden_size', 'num_attention_heads', place)
  fields = _BERT_FIELDS if values['model_type'] == 'bert' else {}
  fields = fields | hf_config.stated_fields(values, _FIELDS_TO_HF)
  return RobertaConfig(**fields, activation=activation)


def to_hf(config: RobertaConfig, labels: int = 0) -> dict[str, Any]:
  """Returns the dict of a Hugging Face `config.json` for `config`.

  Args:
    config: of the backbone.
    labels: outputs of a head for whole texts; 0 for the encoder alone.
  """
  family = {'roberta': 'Roberta', 'bert': 'Bert'}[config.kind]
  values = hf_config.keyed_fields(config, _FIELDS_TO_HF)
  architecture = f'{family}ForSequenceClassification' if labels else f'{family}Model'
  values |= {'architectures': [architecture], 'model_type': config.kind,
             'hidden_act': hf_config.value_of(_ACTIVATIONS, config.activation),
             'position_embedding_type': 'absolute', 'use_cache': True}
  if labels:
    values['id2label'] = {str(i): f'LABEL_{i}' for i in range(labels)}
    values['label2id'] = {f'LABEL_{i}': i for i in range(labels)}
  return values


FAMILY = hf_config.Family(
    'RoBERTa or BERT', RobertaConfig, KINDS, PUBLISHED,
    {name: _OWNERS[config.kind] for name, config in PUBLISHED.items()}, read_hf_config)
hub_id, roberta_config = FAMILY.hub_id, FAMILY.read
