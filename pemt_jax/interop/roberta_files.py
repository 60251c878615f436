"""Hugging Face checkpoints of RoBERTa and BERT in and out."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pemt_jax.interop import files, huggingface, names
from pemt_jax.models import roberta_config
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.trees import Tree

# Foreign module, path, foreign shape (attributes of the config). A projection has `weight`
# [out, in] and `bias`, a norm `weight` and `bias`, a table `weight`.
_TABLES = (('embeddings.word_embeddings', 'shared', 'vocab_size'),
           ('embeddings.position_embeddings', 'encoder/positions', 'positions'),
           ('embeddings.token_type_embeddings', 'encoder/token_types', 'token_types'))
_PROJECTIONS = (('attention.self.query', 'self_attention/q', ('embed', 'embed')),
                ('attention.self.key', 'self_attention/k', ('embed', 'embed')),
                ('attention.self.value', 'self_attention/v', ('embed', 'embed')),
                ('attention.output.dense', 'self_attention/o', ('embed', 'embed')),
                ('intermediate.dense', 'mlp/wi', ('mlp', 'embed')),
                ('output.dense', 'mlp/wo', ('embed', 'mlp')))
_NORMS = (('attention.output.LayerNorm', 'self_attention_norm'), ('output.LayerNorm', 'mlp_norm'))
_POOLER = 'pooler.dense'
# Projections of the head for whole texts: inner, outer.
_HEADS = {'roberta': ('classifier.dense', 'classifier.out_proj'), 'bert': (_POOLER, 'classifier')}
# Other heads, and a buffer.
_UNUSED = re.compile(r'(lm_head|cls)\..*|embeddings\.position_ids')


def encoder_weights(config: RobertaConfig, prefix: str = '') -> tuple[names.Weight, ...]:
  """Every tensor of the encoder; names begin with `prefix`, such as 'roberta.'."""
  sizes = lambda fields: tuple(getattr(config, field) for field in fields)
  weights = [names.Weight(f'{prefix}{name}.weight', f'{path}/embedding', (),
                          sizes((rows, 'embed'))) for name, path, rows in _TABLES]
  weights += names.norm(f'{prefix}embeddings.LayerNorm', 'encoder/embed_norm', config.embed)
  for layer in range(config.encoder_layers):
    inside = f'{prefix}encoder.layer.{layer}.'
    for name, path, shape in _PROJECTIONS:
      weights += names.projection(inside + name, f'encoder/layers/{path}', sizes(shape), (layer,))
    for name, path in _NORMS:
      weights += names.norm(inside + name, f'encoder/layers/{path}', config.embed, (layer,))
  return tuple(weights)


def head_weights(config: RobertaConfig, labels: int,
                 modules: tuple[str, str]) -> tuple[names.Weight, ...]:
  """The tensors of a head; `modules` are the names of its inner and its outer projection."""
  return (*names.projection(modules[0], 'head/dense', (config.embed, config.embed)),
          *names.projection(modules[1], 'head/out', (labels, config.embed)))


def pooler_weights(config: RobertaConfig, prefix: str = '') -> tuple[names.Weight, ...]:
  """The tensors of a pooler, which no head here reads; its place is `pooler/dense`."""
  return names.projection(prefix + _POOLER, 'pooler/dense', (config.embed, config.embed))


def roberta_table(config: RobertaConfig, labels: int = 0, pooler: bool = False) -> names.Table:
  """Returns the tensors of a checkpoint, in names without the prefix of the family.

  Args:
    config: of the backbone.
    labels: outputs of the head for whole texts; 0 for none.
    pooler: whether there is a pooler beside the head; the head of BERT has it inside.
  """
  weights = encoder_weights(config)
  if labels:
    weights += head_weights(config, labels, _HEADS[config.kind])
  if pooler:
    weights += pooler_weights(config)
  return names.Table(weights)


class _Canonical(Mapping):
  """A state dict under names without prefix, in new spelling, without what is not used."""

  def __init__(self, state: files.TensorFiles, kind: str):
    self.source, self._state = state.source, state
    new = lambda name: re.sub(r'gamma$', 'weight', re.sub(r'beta$', 'bias', name))
    found = {new(name.removeprefix(f'{kind}.')): name for name in state}
    self._names = {name: old for name, old in found.items() if not _UNUSED.fullmatch(name)}

  def __getitem__(self, name: str) -> np.ndarray:
    return self._state[self._names[name]]

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)

  def place_of(self, name: str) -> str:
    """The file that holds a name."""
    return self._state.place_of(self._names[name])


def load_roberta(path_or_id: str | pathlib.Path, *,
                 dtype: Any = None) -> tuple[RobertaConfig, Tree]:
  """Loads a RoBERTa or BERT from a folder or from the hub, as `huggingface.load_t5` loads a T5.

  The tree has the encoder, `head` where the checkpoint has one for whole texts, `pooler` where it
  has one. Heads of pretraining are left.
  """
  _, config, found = huggingface.read_model(path_or_id, roberta_config.read_hf_config)
  state = _Canonical(found, config.kind)
  inner, outer = _HEADS[config.kind]
  labels = state[f'{outer}.weight'].shape[0] if f'{outer}.weight' in state else 0
  inside = labels and inner == _POOLER
  pooler = f'{_POOLER}.weight' in state and not inside
  return config, names.load(state, roberta_table(config, labels, pooler), dtype=dtype)


def save_roberta(folder: str | pathlib.Path, config: RobertaConfig, params: Tree, *,
                 shards: int = 1, torch_format: bool = False) -> None:
  """Writes config.json and weights that transformers loads; see `huggingface.save_t5`.

  `params` is the encoder, and `head` and `pooler` where there are such, and nothing else.
  """
  labels = params['head']['out']['kernel'].shape[-1] if 'head' in params else 0
  prefix = f'{config.kind}.'
  weights = encoder_weights(config, prefix)
  if labels:
    inner, outer = _HEADS[config.kind]
    weights += head_weights(config, labels, (prefix + inner if inner == _POOLER else inner, outer))
  if 'pooler' in params:
    weights += pooler_weights(config, prefix)
  huggingface.write_model(folder, names.Table(weights), params,
                          roberta_config.to_hf(config, labels), shards, torch_format)
