"""Hugging Face checkpoints of BART in and out."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
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


def _projection(name: str, path: str, shape: tuple[int, int],
                index: tuple[int, ...]) -> Iterator[names.Weight]:
  yield names.Weight(f'{name}.weight', f'{path}/kernel', index, shape, True)
  yield names.Weight(f'{name}.bias', f'{path}/bias', index, shape[:1])


def _norm(name: str, path: str, size: int,
          index: tuple[int, ...] = ()) -> Iterator[names.Weight]:
  yield names.Weight(f'{name}.weight', f'{path}/scale', index, (size,))
  yield names.Weight(f'{name}.bias', f'{path}/bias', index, (size,))


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
  square, weights = (config.embed, config.embed), []
  for module, site in _ATTENTION[:2 if stack == 'decoder' else 1]:
    for name, letter in _QKVO:
      weights += _projection(f'{inside}{module}.{name}', f'{path}/{site}/{letter}', square, index)
    weights += _norm(f'{inside}{module}_layer_norm', f'{path}/{site}_norm', config.embed, index)
  for name, place, shape in _MLP:
    sizes = tuple(getattr(config, field) for field in shape)
    weights += _projection(inside + name, f'{path}/{place}', sizes, index)
  return (*weights, *_norm(f'{inside}final_layer_norm', f'{path}/mlp_norm', config.embed, index))


def outer_weights(config: BartConfig, prefix: str = PREFIX) -> tuple[names.Weight, ...]:
  """The tensors outside of the layers, the bias of the logits left out."""
  weights = [names.Weight(prefix + _EMBEDDING, 'shared/embedding', (),
                          (config.vocab_size, config.embed))]
  for stack in ('encoder', 'decoder'):
    weights.append(names.Weight(f'{prefix}{stack}.embed_positions.weight',
                                f'{stack}/positions/embedding', (),
                                (config.position_rows, config.embed)))
    weights += _norm(f'{prefix}{stack}.layernorm_embedding', f'{stack}/embed_norm', config.embed)
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
  """Loads a BART from a folder or from the hub.

  Args:
    path_or_id: folder with config.json and weights, a published name ('bart-base') or a hub id.
    dtype: type of the parameters; default is the file's.

  Returns:
    The config and the parameter tree (NumPy arrays on the host).

  Raises:
    UserError: nothing there, another family, or names and shapes that differ from the config's.
  """
  folder = files.resolve_model(path_or_id)
  config = bart_config.read_hf_config(folder / 'config.json')
  state = files.read_tensors(folder)
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
  """Writes config.json, generation_config.json and weights that transformers loads.

  Args:
    folder: made if absent; files of the same names are replaced.
    config: the model's config.
    params: the backbone's parameter tree and nothing else.
    shards: number of weight files; more than one adds the index file.
    torch_format: write pytorch_model.bin (needs torch) instead of model.safetensors.

  Raises:
    UserError: a tree that does not belong to the config; torch missing.
  """
  huggingface.write_model(folder, bart_table(config), params, bart_config.to_hf(config), shards,
                          torch_format)
  files.write_text(pathlib.Path(folder) / 'generation_config.json',
                   json.dumps(bart_config.generation_to_hf(config), indent=2) + '\n')
