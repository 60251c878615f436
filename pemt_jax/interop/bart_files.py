"""Hugging Face checkpoints of BART in and out."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from pemt_jax.interop import files, huggingface, names
from pemt_jax.models import bart_config
from pemt_jax.models.bart import LOGITS_BIAS
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.trees import Tree

PREFIX = 'model.'  # absent in files of the model without head
_BIAS = 'final_logits_bias'
_EMBEDDING = 'shared.weight'
_ALIASES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
_HEAD = 'lm_head.weight'
_VERSIONS = ('encoder.version', 'decoder.version')  # marks in old files
# Module of attention in a layer, site, norm behind it.
_ATTENTION = (('self_attn', 'self_attention'), ('encoder_attn', 'cross_attention'))
_QKVO = (('q_proj', 'q'), ('k_proj', 'k'), ('v_proj', 'v'), ('out_proj', 'o'))
_MLP = (('fc1', 'mlp/wi', ('mlp', 'embed')), ('fc2', 'mlp/wo', ('embed', 'mlp')))


def layer_weights(config: BartConfig, stack: str, inside: str, path: str,
                  index: tuple[int, ...]) -> tuple[names.Weight, ...]:
  """The tensors of one layer.

  Args:
    config: of the backbone.
    stack: `encoder` or `decoder`.
    inside: what their names begin with, such as 'model.encoder.layers.0.'.
    path: where the leaves lie, such as 'encoder/layers'.
    index: position on the leading axes of the leaves.
  """
  embed, weights = config.embed, []
  for module, site in _ATTENTION[:2 if stack == 'decoder' else 1]:
    for name, letter in _QKVO:
      weights += names.projection(f'{inside}{module}.{name}', f'{path}/{site}/{letter}',
                                  (embed, embed), index)
    weights += names.norm(f'{inside}{module}_layer_norm', f'{path}/{site}_norm', embed, index)
  for name, place, shape in _MLP:
    sizes = tuple(getattr(config, field) for field in shape)
    weights += names.projection(inside + name, f'{path}/{place}', sizes, index)
  return (*weights, *names.norm(f'{inside}final_layer_norm', f'{path}/mlp_norm', embed, index))


def outer_weights(config: BartConfig, prefix: str = PREFIX) -> tuple[names.Weight, ...]:
  """The tensors outside of the layers, the bias of the logits left out."""
  weights = [names.Weight(prefix + _EMBEDDING, 'shared/embedding', (),
                          (config.vocab_size, config.embed))]
  for stack in ('encoder', 'decoder'):
    weights.append(names.Weight(f'{prefix}{stack}.embed_positions.weight',
                                f'{stack}/positions/embedding', (),
                                (config.position_rows, config.embed)))
    weights += names.norm(f'{prefix}{stack}.layernorm_embedding', f'{stack}/embed_norm',
                          config.embed)
  return tuple(weights)


def bias_weight(config: BartConfig) -> names.Weight:
  """The bias of the logits, [1, vocab] in files."""
  return names.Weight(_BIAS, LOGITS_BIAS, (), (1, config.vocab_size), unit=0)


def table_of(weights: tuple[names.Weight, ...], prefix: str = PREFIX) -> names.Table:
  """The table of these tensors with the second names of the embedding."""
  aliases = dict.fromkeys((*(prefix + name for name in _ALIASES), _HEAD), prefix + _EMBEDDING)
  return names.Table(weights, aliases, [prefix + name for name in _VERSIONS])


def bart_table(config: BartConfig, prefix: str = PREFIX, bias: bool = True) -> names.Table:
  """Every tensor of a Hugging Face BART and where it lives in the tree.

  Args:
    config: of the backbone.
    prefix: what the names begin with.
    bias: whether the file holds the bias of the logits.
  """
  weights = [*outer_weights(config, prefix), *([bias_weight(config)] if bias else [])]
  for stack, depth in (('encoder', config.encoder_layers), ('decoder', config.decoder_layers)):
    for layer in range(depth):
      weights += layer_weights(config, stack, f'{prefix}{stack}.layers.{layer}.',
                               f'{stack}/layers', (layer,))
  return table_of(tuple(weights), prefix)


def load_bart(path_or_id: str | pathlib.Path, *, dtype: Any = None) -> tuple[BartConfig, Tree]:
  """Loads a BART from a folder or from the hub, as `huggingface.load_t5` loads a T5."""
  _, config, state = huggingface.read_model(path_or_id, bart_config.read_hf_config)
  return config, from_state(state, config, dtype=dtype)


def from_state(state: Any, config: BartConfig, *, dtype: Any = None) -> Tree:
  """The parameter tree of foreign tensors; without a bias of the logits it is zeros.

  Args:
    state: foreign name -> array, of the model with or without head.
    config: of the backbone.
    dtype: type of the parameters; default is that of the tensors.

  Raises:
    UserError: names and shapes that differ from the config's.
  """
  prefix = PREFIX if any(name.startswith(PREFIX) for name in state) else ''
  bias = _BIAS in state
  params = names.load(state, bart_table(config, prefix, bias), dtype=dtype)
  if not bias:
    table = params['shared']['embedding']
    params[LOGITS_BIAS] = np.zeros(config.vocab_size, table.dtype)
  return params


def save_bart(folder: str | pathlib.Path, config: BartConfig, params: Tree, *,
              shards: int = 1, torch_format: bool = False) -> None:
  """Writes config.json, generation_config.json and weights; see `huggingface.save_t5`."""
  huggingface.write_model(folder, bart_table(config), params, bart_config.to_hf(config), shards,
                          torch_format)
  files.write_text(pathlib.Path(folder) / 'generation_config.json',
                   json.dumps(bart_config.generation_to_hf(config), indent=2) + '\n')
