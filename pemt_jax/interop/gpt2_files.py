"""Hugging Face checkpoints of GPT-2 in and out."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from pemt_jax.interop import huggingface, names
from pemt_jax.models import gpt2_config
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.trees import Tree, flatten, unflatten

# Foreign module, path. A norm has `weight` and `bias`, and so has a projection; kernels are
# [in, out]. Queries, keys and values are one projection.
_PROJECTIONS = (('attn.c_attn', 'self_attention/qkv'), ('attn.c_proj', 'self_attention/o'),
                ('mlp.c_fc', 'mlp/wi'), ('mlp.c_proj', 'mlp/wo'))
_NORMS = (('ln_1', 'self_attention_norm'), ('ln_2', 'mlp_norm'))
_PREFIX = 'transformer.'  # absent in the files that were published first
_BUFFERS = ('attn.bias', 'attn.masked_bias')  # causal masks in old files
_ATTENTION = 'decoder/layers/self_attention'


def _weights(name: str, path: str, shape: tuple[int, ...], last: str,
             index: tuple[int, ...] = ()) -> Iterator[names.Weight]:
  yield names.Weight(f'{name}.weight', f'{path}/{last}', index, shape)
  yield names.Weight(f'{name}.bias', f'{path}/bias', index, shape[-1:])


def gpt2_table(config: GPT2Config, prefix: str = _PREFIX) -> names.Table:
  """Every tensor of a GPT-2; the tree has `qkv` in place of `q`, `k` and `v`, see `fused`.

  Args:
    config: of the backbone.
    prefix: what the names begin with.
  """
  embed, mlp = config.embed, config.mlp
  shapes = ((embed, 3 * embed), (embed, embed), (embed, mlp), (mlp, embed))
  weights = [names.Weight(f'{prefix}wte.weight', 'shared/embedding', (),
                          (config.vocab_size, embed)),
             names.Weight(f'{prefix}wpe.weight', 'decoder/positions/embedding', (),
                          (config.positions, embed)),
             *_weights(f'{prefix}ln_f', 'decoder/final_norm', (embed,), 'scale')]
  ignored = []
  for layer in range(config.decoder_layers):
    inside = f'{prefix}h.{layer}.'
    for name, path in _NORMS:
      weights += _weights(inside + name, f'decoder/layers/{path}', (embed,), 'scale', (layer,))
    for (name, path), shape in zip(_PROJECTIONS, shapes, strict=True):
      weights += _weights(inside + name, f'decoder/layers/{path}', shape, 'kernel', (layer,))
    ignored += [inside + name for name in _BUFFERS]
  return names.Table(tuple(weights), {'lm_head.weight': f'{prefix}wte.weight'}, ignored)


def fused(params: Tree) -> Tree:
  """The tree with one projection `qkv` in place of `q`, `k` and `v`."""
  flat = dict(flatten(params))
  for leaf in ('kernel', 'bias'):
    parts = [flat.pop(path) for path in (f'{_ATTENTION}/{name}/{leaf}' for name in 'qkv')
             if path in flat]
    if parts:
      flat[f'{_ATTENTION}/qkv/{leaf}'] = np.concatenate([np.asarray(a) for a in parts], axis=-1)
  return unflatten(flat)


def split(params: Tree) -> Tree:
  """The reverse of `fused`."""
  flat = dict(flatten(params))
  for leaf in ('kernel', 'bias'):
    parts = np.split(flat.pop(f'{_ATTENTION}/qkv/{leaf}'), 3, axis=-1)
    flat |= {f'{_ATTENTION}/{name}/{leaf}': np.ascontiguousarray(part)
             for name, part in zip('qkv', parts, strict=True)}
  return unflatten(flat)


def load_gpt2(path_or_id: str | pathlib.Path, *,
              dtype: Any = None) -> tuple[GPT2Config, Tree]:
  """Loads a GPT-2 from a folder or from the hub, as `huggingface.load_t5` loads a T5."""
  _, config, state = huggingface.read_model(path_or_id, gpt2_config.read_hf_config)
  prefix = _PREFIX if any(name.startswith(_PREFIX) for name in state) else ''
  return config, split(names.load(state, gpt2_table(config, prefix), dtype=dtype))


def save_gpt2(folder: str | pathlib.Path, config: GPT2Config, params: Tree, *,
              shards: int = 1, torch_format: bool = False) -> None:
  """Writes config.json and weights that transformers loads; see `huggingface.save_t5`."""
  huggingface.write_model(folder, gpt2_table(config), fused(params), gpt2_config.to_hf(config),
                          shards, torch_format)
