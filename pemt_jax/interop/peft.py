"""Folders of Hugging Face PEFT, in and out: LoRA, (IA)^3, prefix and prompt tuning of T5.

Mangrulkar et al.: PEFT: State-of-the-art Parameter-Efficient Fine-Tuning methods. A folder holds
`adapter_config.json` and `adapter_model.safetensors`. What PEFT does with them on a T5:

- A prompt stands in front of the encoder's embeddings only. The rows that its table has for a
  second sub-model are never read.
- A prefix stands in front of the keys and values of the decoder's self-attention only, at the
  positions before the first token. With 2n vectors of n stated layers, layer i reads the vectors
  4i and 4i + 1 modulo 2n: an even n lets layers i and i + n / 2 share keys and values and leaves
  half of the vectors unread. A prefix is therefore written with an odd number of stated layers,
  one more than the decoder has if need be.
- (IA)^3 scales the input of the modules that are named as feed-forward and the output of others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import json
import pathlib
from typing import Any

import numpy as np

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.interop import files
from pemt_jax.interop import names
from pemt_jax.interop import peft_config
from pemt_jax.interop import peft_forms
from pemt_jax.interop.peft_config import Form
from pemt_jax.interop.peft_forms import IA3Form, LoRAForm, PromptForm
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree

CONFIG = 'adapter_config.json'
SAFETENSORS = 'adapter_model.safetensors'
TORCH = 'adapter_model.bin'
TABLE = 'prompt_embeddings'
_ROOT = 'base_model.model.'
# Where the arrays live in a tree.
PROMPT_TABLE = 'encoder/embed/prompt/table'
PREFIX = 'decoder/layers/self_attention/attend/prefix_kv'


def read(folder: str | pathlib.Path, config: T5Config) -> tuple[Form, Tree]:
  """Reads an adapter folder of PEFT, strictly.

  Args:
    folder: with adapter_config.json and adapter_model.safetensors (or .bin, which needs torch).
    config: of the backbone it stands on.

  Returns:
    What it is, and its parameters in float32.

  Raises:
    UserError: an option without a form here; missing, unexpected or misshaped tensors.
  """
  folder = pathlib.Path(folder)
  file = folder / CONFIG
  values = tree_files.read_json(file)
  form = peft_config.form_of(values, config, file)
  weights = folder / SAFETENSORS
  state = files.read_tensors(weights if weights.is_file() or not (folder / TORCH).is_file()
                             else folder / TORCH)
  if isinstance(form, LoRAForm | IA3Form):
    return form, names.load(state, table_of(form, config), dtype=np.float32)
  return form, _from_table(_table(state, form, values, config), form, values, config)


def write(folder: str | pathlib.Path, form: Form, params: Mapping[str, Any], config: T5Config,
          backbone: str | None = None, torch_format: bool = False) -> None:
  """Writes an adapter folder that PEFT loads.

  Args:
    folder: made if absent; files of the same names are replaced.
    form: what `params` is.
    params: parameters of the adapter and nothing else.
    config: of the backbone.
    backbone: its name, for the config file.
    torch_format: write adapter_model.bin (needs torch) instead of adapter_model.safetensors.

  Raises:
    UserError: missing, unexpected or misshaped leaves.
  """
  folder = pathlib.Path(folder)
  if isinstance(form, LoRAForm | IA3Form):
    state = names.dump(params, table_of(form, config), place='The adapter')
  else:
    state = {TABLE: _to_table(params, form, config)}
  chosen, other = (TORCH, SAFETENSORS) if torch_format else (SAFETENSORS, TORCH)
  files.write_tensors(folder / chosen, state)
  (folder / other).unlink(missing_ok=True)  # a stale adapter beside a new config
  values = peft_config.values_of(form, config, backbone)
  files.write_text(folder / CONFIG, json.dumps(values, indent=2) + '\n')


def table_of(form: LoRAForm | IA3Form, config: T5Config) -> names.Table:
  """Every tensor of an adapter at projections and where it lives in the tree."""
  return names.Table(tuple(
      weight for module in peft_forms.modules_of(config) if module.site in form.sites
      for weight in _weights_at(module, form)))


def _weights_at(module: peft_forms.Module, form: LoRAForm | IA3Form) -> Iterator[names.Weight]:
  size_in, size_out = module.sizes
  name, index = f'{_ROOT}{module.name}', (module.layer,)
  if isinstance(form, LoRAForm):
    yield names.Weight(f'{name}.lora_A.weight', f'{module.path}/lora/down', index,
                       (form.rank, size_in), True)
    yield names.Weight(f'{name}.lora_B.weight', f'{module.path}/lora/up', index,
                       (size_out, form.rank), True)
  elif module.site in form.inputs:
    yield names.Weight(f'{name}.ia3_l', f'{module.path}/ia3/scale', index, (1, size_in), unit=0)
  else:
    yield names.Weight(f'{name}.ia3_l', f'{module.path}/ia3/scale', index, (size_out, 1), unit=1)


def _table(state: files.TensorFiles, form: Form, values: Mapping[str, Any],
           config: T5Config) -> np.ndarray:
  """The one array of prompt and prefix tuning, checked."""
  if isinstance(form, PromptForm):
    submodels = values.get('num_transformer_submodules')
    if submodels not in (1, 2):
      raise UserError(f"'{state.source}' stands beside a config with num_transformer_submodules "
                      f'{submodels!r}; prompts of T5 have 1 or 2.')
    shape = (form.length * submodels, config.embed)
  else:
    shape = (form.length, 2 * values['num_layers'] * config.joined_kv)
  table = names.Table((names.Weight(TABLE, TABLE, (), shape),))
  return names.load(state, table, dtype=np.float32)[TABLE]


def _from_table(table: np.ndarray, form: Form, values: Mapping[str, Any],
                config: T5Config) -> Tree:
  if isinstance(form, PromptForm):
    return trees.unflatten({PROMPT_TABLE: np.ascontiguousarray(table[:form.length])})
  vectors = table.reshape(form.length, -1, config.heads, config.kv)
  keys, values = (
      np.stack([vectors[:, number] for number in _numbers(values['num_layers'], which, config)])
      for which in (0, 1))
  return trees.unflatten({f'{PREFIX}/keys': _ours(keys), f'{PREFIX}/values': _ours(values)})


def _to_table(params: Mapping[str, Any], form: Form, config: T5Config) -> np.ndarray:
  leaves = {path: np.asarray(leaf) for path, leaf in trees.flatten(params).items()}
  names.check_leaves(leaves, _plain_table(form, config), place='The adapter')
  if isinstance(form, PromptForm):
    return leaves[PROMPT_TABLE]
  stated = peft_config.prefix_layers(config)
  table = np.zeros((form.length, 2 * stated, config.heads, config.kv), np.float32)
  for which, name in enumerate(('keys', 'values')):
    rows = _theirs(leaves[f'{PREFIX}/{name}'])
    for layer, number in enumerate(_numbers(stated, which, config)):
      table[:, number] = rows[layer]
  return table.reshape(form.length, -1)


def _plain_table(form: Form, config: T5Config) -> names.Table:
  """Shapes of the leaves of prompt and prefix."""
  if isinstance(form, PromptForm):
    return names.Table((names.Weight(TABLE, PROMPT_TABLE, (), (form.length, config.embed)),))
  shape = _ours(np.zeros((config.decoder_layers, form.length, config.heads, config.kv))).shape
  return names.Table(tuple(names.Weight(name, f'{PREFIX}/{name}', (), shape)
                           for name in ('keys', 'values')))


def _numbers(stated: int, which: int, config: T5Config) -> list[int]:
  """Number of the vector that each layer of the decoder reads; `which` is 0 for keys."""
  return [(4 * layer + which) % (2 * stated) for layer in range(config.decoder_layers)]


def _ours(vectors: np.ndarray) -> np.ndarray:
  """[layer, prefix, heads, kv] -> [layer, heads, prefix, kv]."""
  return np.ascontiguousarray(vectors.swapaxes(1, 2))


def _theirs(vectors: np.ndarray) -> np.ndarray:
  """Inverse of `_ours`."""
  return vectors.swapaxes(1, 2)
