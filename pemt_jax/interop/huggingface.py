"""Hugging Face checkpoints in and out: T5 (v1.0, v1.1, LM-adapted, Flan)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
import pathlib
from typing import Any, TypeVar

import numpy as np

from pemt_jax import trees
from pemt_jax.interop import files
from pemt_jax.interop import names
from pemt_jax.models import t5_config
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree

# Rows of the tables: foreign name, path below the stack or block, foreign shape (attributes of
# T5Config), transposed. Sub-layers of a block are numbered; the feed-forward is the last.
_ATTENTION = (
    ('layer.{number}.layer_norm.weight', '{site}_norm/scale', ('embed',), False),
    ('layer.{number}.{module}.q.weight', '{site}/q/kernel', ('joined_kv', 'embed'), True),
    ('layer.{number}.{module}.k.weight', '{site}/k/kernel', ('joined_kv', 'embed'), True),
    ('layer.{number}.{module}.v.weight', '{site}/v/kernel', ('joined_kv', 'embed'), True),
    ('layer.{number}.{module}.o.weight', '{site}/o/kernel', ('embed', 'joined_kv'), True),
)
_MLP_NORM = ('layer.{number}.layer_norm.weight', 'mlp_norm/scale', ('embed',), False)
_MLP_IN = 'layer.{number}.DenseReluDense.{wi}.weight'
_MLP_OUT = ('layer.{number}.DenseReluDense.wo.weight', 'mlp/wo/kernel', ('embed', 'mlp'), True)
_STACK = (
    ('block.0.layer.0.SelfAttention.relative_attention_bias.weight', 'relative_bias/embedding',
     ('relative_buckets', 'heads'), False),
    ('final_layer_norm.weight', 'final_norm/scale', ('embed',), False),
)
_EMBEDDING = ('shared.weight', 'shared/embedding', ('vocab_size', 'embed'), False)
_HEAD = ('lm_head.weight', 'lm_head/kernel', ('vocab_size', 'embed'), True)

_EMBEDDING_ALIASES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
# A table that the first published T5 files carry and that no T5 uses.
_UNUSED = ('decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',)

Config = TypeVar('Config')
Row = tuple[str, str, tuple[str, ...], bool]


def _block_rows(config: T5Config, decoder: bool) -> Iterator[Row]:
  sub_layers = [('SelfAttention', 'self_attention')]
  if decoder:
    sub_layers.append(('EncDecAttention', 'cross_attention'))
  for number, (module, site) in enumerate(sub_layers):
    for name, path, shape, transpose in _ATTENTION:
      yield (name.format(number=number, module=module), path.format(site=site), shape, transpose)
  number = len(sub_layers)
  wi_rows = [(_MLP_IN.format(number='{number}', wi=wi), f'mlp/{wi}/kernel', ('mlp', 'embed'), True)
             for wi in (('wi_0', 'wi_1') if config.gated else ('wi',))]
  for name, path, shape, transpose in (_MLP_NORM, *wi_rows, _MLP_OUT):
    yield name.format(number=number), path, shape, transpose


def t5_table(config: T5Config) -> names.Table:
  """Returns every tensor of a Hugging Face T5 of this config and where it lives in the tree.

  The tree is `{shared, encoder, decoder}` and, with an untied head, `lm_head`; layers are stacked
  on the leading axis and kernels are [in, out].
  """
  weights = [_weight(config, *_EMBEDDING)]
  for stack, layers in (('encoder', config.encoder_layers), ('decoder', config.decoder_layers)):
    for name, path, shape, transpose in _STACK:
      weights.append(_weight(config, f'{stack}.{name}', f'{stack}/{path}', shape, transpose))
    for layer in range(layers):
      for name, path, shape, transpose in _block_rows(config, stack == 'decoder'):
        weights.append(_weight(config, f'{stack}.block.{layer}.{name}', f'{stack}/layers/{path}',
                               shape, transpose, (layer,)))
  aliases = dict.fromkeys(_EMBEDDING_ALIASES, _EMBEDDING[0])
  if config.tied_head:
    aliases[_HEAD[0]] = _EMBEDDING[0]
  else:
    weights.append(_weight(config, *_HEAD))
  return names.Table(tuple(weights), aliases, _UNUSED)


def _weight(
    config: T5Config, name: str, path: str, shape: tuple[str, ...], transpose: bool,
    index: tuple[int, ...] = ()) -> names.Weight:
  sizes = tuple(getattr(config, field) for field in shape)
  return names.Weight(name, path, index, sizes, transpose)


def load_t5(
    path_or_id: str | pathlib.Path, *, dtype: Any = None) -> tuple[T5Config, Tree]:
  """Loads a T5 from a folder or from the hub; safetensors do not need torch.

  Args:
    path_or_id: folder with config.json and weights, a published name ('t5-base'), or a hub id.
    dtype: type of the parameters; default is the file's.

  Returns:
    The config and the parameter tree (NumPy arrays on the host).

  Raises:
    UserError: nothing there, no supported T5, or names and shapes that differ from the config's.
  """
  folder, config, state = read_model(path_or_id, t5_config.read_hf_config)
  if _head_repeats_embedding(config, folder / 'config.json') and _HEAD[0] not in state:
    params = names.load(state, t5_table(dataclasses.replace(config, tied_head=True)), dtype=dtype)
    params['lm_head'] = {'kernel': np.ascontiguousarray(params['shared']['embedding'].T)}
    return config, params
  return config, names.load(state, t5_table(config), dtype=dtype)


def read_model(path_or_id: str | pathlib.Path, read_config: Callable[[pathlib.Path], Config]
               ) -> tuple[pathlib.Path, Config, files.TensorFiles]:
  """(folder, config, tensors) of a model in a folder or on the hub.

  Args:
    path_or_id: folder with config.json and weights, a published name, or a hub id.
    read_config: reads config.json.

  Raises:
    UserError: nothing there, or whatever `read_config` raises.
  """
  folder = files.resolve_model(path_or_id)
  return folder, read_config(folder / 'config.json'), files.read_tensors(folder)


def _head_repeats_embedding(config: T5Config, config_file: pathlib.Path) -> bool:
  """A head without scale that is nevertheless stored once: newer transformers write such files."""
  values = json.loads(config_file.read_text(encoding='utf-8'))
  return not config.tied_head and values.get('tie_word_embeddings') is True


def save_t5(
    folder: str | pathlib.Path, config: T5Config, params: Tree, *, shards: int = 1,
    torch_format: bool = False) -> None:
  """Writes config.json and weights that Hugging Face transformers loads.

  Args:
    folder: made if absent; files of the same names are replaced.
    config: the model's config.
    params: the backbone's parameter tree and nothing else.
    shards: number of weight files; more than one adds the index file.
    torch_format: write pytorch_model.bin (needs torch) instead of model.safetensors.

  Raises:
    UserError: a tree that does not belong to the config; torch missing.
  """
  write_model(folder, t5_table(config), params, t5_config.to_hf(config), shards, torch_format)


def write_model(folder: str | pathlib.Path, table: names.Table, params: Tree,
                values: Mapping[str, Any], shards: int = 1, torch_format: bool = False) -> None:
  """Writes a model folder.

  Args:
    folder: made if absent; files of the same names are replaced.
    table: every tensor of the model.
    params: the parameter tree and nothing else.
    values: of config.json.
    shards: number of weight files; more than one adds the index file.
    torch_format: write pytorch_model.bin (needs torch) instead of model.safetensors.

  Raises:
    UserError: a tree that does not belong to the table; torch missing.
  """
  folder = pathlib.Path(folder)
  leaves = {path: np.asarray(leaf)
            for path, leaf in trees.flatten(params).items()}
  names.check_leaves(leaves, table, place='The parameter tree')
  sizes = {weight.name: int(np.prod(weight.shape)) * leaves[weight.path].itemsize
           for weight in table.weights}
  runs = files.split_evenly(sizes, shards)
  stem = files.TORCH if torch_format else files.SAFETENSORS
  shard_files = [stem] if len(runs) == 1 else files.shard_names(stem, len(runs))
  by_name = {weight.name: weight for weight in table.weights}
  for file, run in zip(shard_files, runs, strict=True):
    files.write_tensors(
        folder / file, {name: names.take(leaves, by_name[name]) for name in run})
  if len(runs) > 1:
    places = {name: file for file, run in zip(shard_files, runs, strict=True) for name in run}
    index = {'metadata': {'total_size': sum(sizes.values())}, 'weight_map': places}
    files.write_text(folder / f'{stem}.index.json', json.dumps(index, indent=2) + '\n')
  # Readers prefer the other form, which would be a stale model.
  (folder / (stem if len(runs) > 1 else f'{stem}.index.json')).unlink(missing_ok=True)
  files.write_text(folder / 'config.json', json.dumps(dict(values), indent=2) + '\n')
