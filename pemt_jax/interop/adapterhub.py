"""Folders of `save_adapter` of the package adapters (AdapterHub), in and out: bottlenecks of T5.

Poth et al.: Adapters: A Unified Library for Parameter-Efficient and Modular Transfer Learning. A
folder holds `adapter_config.json` and `pytorch_adapter.bin` or `adapter.safetensors`. With s the
output of a sub-layer and h the residual stream before it and its norm, T5 computes there

  double_seq_bn (Houlsby)   h + s + scaling * up(act(down(s)))
  seq_bn (Pfeiffer)         h + s + scaling * up(act(down(s + h)))
  par_bn (parallel)         h + s + scaling * up(act(down(h)))

since the layer norm that other backbones have at this place does not exist in a T5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import json
import pathlib
from typing import Any

import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.interop import files
from pemt_jax.interop import names
from pemt_jax.interop import peft_forms
from pemt_jax.interop.peft_forms import STACKS, BottleneckForm
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree

CONFIG = 'adapter_config.json'
SAFETENSORS, TORCH = 'adapter.safetensors', 'pytorch_adapter.bin'
HEADS = ('model_head.safetensors', 'pytorch_model_head.bin')
_HEAD = 'lm_head.weight'

# Option -> (kind of sub-layer, site that ends it), in the order of the sub-layers of a block.
_PLACES = {'mh_adapter': 'self_attention/o', 'cross_adapter': 'cross_attention/o',
           'output_adapter': 'mlp/wo'}
_NUMBERS = {'encoder': {'self_attention/o': 0, 'mlp/wo': 1},
            'decoder': {'self_attention/o': 0, 'cross_attention/o': 1, 'mlp/wo': 2}}
# Theirs -> ours; configs without a version have the older names.
_ACTIVATIONS = {'relu': 'relu', 'swish': 'swish', 'silu': 'swish', 'gelu': 'gelu',
                'gelu_new': 'gelu_new'}
_OLD_ACTIVATIONS = {**_ACTIVATIONS, 'gelu': 'gelu_new', 'gelu_orig': 'gelu'}

_READ = {*_PLACES, 'reduction_factor', 'non_linearity', 'original_ln_before', 'original_ln_after',
         'ln_before', 'ln_after', 'is_parallel', 'scaling', 'residual_before_ln',
         'adapter_residual_before_ln', 'leave_out'}
_TRAINING = {'init_weights', 'init_weights_seed', 'dropout'}
# Parts of a PHM layer, which say nothing where `phm_layer` is off.
_PHM = {'phm_dim', 'phm_bias', 'phm_c_init', 'phm_init_range', 'phm_rank', 'factorized_phm_W',
        'factorized_phm_rule', 'shared_W_phm', 'shared_phm_rule', 'learn_phm',
        'hypercomplex_nonlinearity'}


def read(folder: str | pathlib.Path, config: T5Config,
         head: np.ndarray | None = None) -> tuple[BottleneckForm, Tree]:
  """Reads an adapter folder, strictly.

  Args:
    folder: written by `save_adapter`.
    config: of the backbone it stands on.
    head: [vocab, embed] head of the backbone, to check a head stored beside the adapter.

  Returns:
    What it is, and its parameters in float32.

  Raises:
    UserError: an option without a form here; missing, unexpected or misshaped tensors; a head of
      its own.
  """
  folder = pathlib.Path(folder)
  file = folder / CONFIG
  values = tree_files.read_json(file)
  form = form_of(values, config, file)
  name = values.get('name')
  if not isinstance(name, str) or not name:
    raise UserError(f"'{file}' has {name!r} as 'name'; it must be the adapter's name.")
  _check_head(folder, head)
  weights = folder / SAFETENSORS if (folder / SAFETENSORS).is_file() else folder / TORCH
  return form, names.load(files.read_tensors(weights), table_of(form, config, name),
                          dtype=np.float32)


def _check_head(folder: pathlib.Path, head: np.ndarray | None) -> None:
  """A head beside the adapter must be the backbone's."""
  for file in (folder / name for name in HEADS):
    if file.is_file() and head is not None:
      state = files.read_tensors(file)
      if set(state) != {_HEAD} or not np.array_equal(state[_HEAD], head):
        raise UserError(f"'{file}' holds a head that is not the backbone's, which has no form here;"
                        ' train with the frozen head, or remove the file to do without it.')


def write(folder: str | pathlib.Path, form: BottleneckForm, params: Mapping[str, Any],
          config: T5Config, name: str, backbone: str = '', torch_format: bool = True) -> None:
  """Writes an adapter folder that `load_adapter` loads.

  Args:
    folder: made if absent; files of the same names are replaced.
    form: what `params` is.
    params: parameters of the adapter and nothing else.
    config: of the backbone.
    name: of the adapter.
    backbone: its name.
    torch_format: write pytorch_adapter.bin (needs torch), which `load_adapter` reads by itself;
      adapter.safetensors is read with use_safetensors=True.

  Raises:
    UserError: missing, unexpected or misshaped leaves; a name with a dot in it.
  """
  if '.' in name:
    raise UserError(f"Adapter '{name}' has a dot in its name, which is a joint of names in the"
                    ' package adapters; give the folder another name.')
  folder = pathlib.Path(folder)
  state = names.dump(params, table_of(form, config, name), place='The adapter', aliases=True)
  chosen, other = (TORCH, SAFETENSORS) if torch_format else (SAFETENSORS, TORCH)
  files.write_tensors(folder / chosen, state)
  for stale in (other, *HEADS, 'head_config.json'):
    (folder / stale).unlink(missing_ok=True)
  values = {'config': values_of(form, config), 'hidden_size': config.embed,
            'model_class': 'T5ForConditionalGeneration', 'model_name': backbone,
            'model_type': 't5', 'name': name, 'version': 'adapters.1.3.0'}
  files.write_text(folder / CONFIG, json.dumps(values, indent=2) + '\n')


def form_of(values: Any, config: T5Config, file: pathlib.Path) -> BottleneckForm:
  """Reads a config strictly.

  Args:
    values: the parsed file.
    config: of the backbone.
    file: for messages.

  Raises:
    UserError: an option or a size without a form here.
  """
  own = values.get('config') if isinstance(values, Mapping) else None
  if not isinstance(own, Mapping) or own.get('architecture'):
    kind = own['architecture'] if isinstance(own, Mapping) else None
    raise UserError(f"'{file}' has architecture {kind!r}; only bottleneck adapters can be read.")
  for key, wanted in (('model_type', 't5'), ('hidden_size', config.embed)):
    if values.get(key) != wanted:
      raise UserError(f"'{file}' has {key} {values.get(key)!r}, the backbone has {wanted!r}; give"
                      ' the backbone it was trained on.')
  for key, value in own.items():
    if value and key not in _READ | _TRAINING | _PHM:
      raise _refusal(file, key, value)
  activations = _ACTIVATIONS if 'version' in values else _OLD_ACTIVATIONS
  activation = str(own.get('non_linearity')).lower()
  if activation not in activations:
    raise _refusal(file, 'non_linearity', own.get('non_linearity'))
  layers = _layers(own.get('leave_out') or (), config, file)
  return BottleneckForm(
      sites=_sites(own, _stacks(layers), file), reads=_reads(own, file),
      size=_size(own, config, file), activation=activations[activation],
      scaling=_scaling(own, file),
      pre_norm=bool(own.get('ln_before')), post_norm=bool(own.get('ln_after')), layers=layers)


def _refusal(file: pathlib.Path, key: str, value: Any) -> UserError:
  return UserError(f"'{file}' sets '{key}' to {value!r}, which has no form here; train without it.")


def _stacks(layers: tuple[tuple[str, int], ...] | None) -> list[str]:
  """Stacks that have adapters."""
  return [stack for stack in STACKS
          if layers is None or stack in {owner for owner, _ in layers}]


def _sites(own: Mapping[str, Any], stacks: list[str], file: pathlib.Path) -> tuple[str, ...]:
  kinds = [kind for key, kind in _PLACES.items() if own.get(key)]
  sites = tuple(f'{stack}/{kind}' for stack in stacks for kind in kinds
                if kind in _NUMBERS[stack])
  if not sites:
    raise UserError(f"'{file}' has none of {', '.join(_PLACES)}; the adapter stands nowhere.")
  return sites


def _reads(own: Mapping[str, Any], file: pathlib.Path) -> str:
  """What the bottleneck reads; refuses options by which the sum is not h + s + bottleneck."""
  after = own.get('original_ln_after', True)
  if own.get('ln_after') and own.get('adapter_residual_before_ln'):
    raise _refusal(file, 'adapter_residual_before_ln', True)
  if own.get('is_parallel'):
    if not after:
      raise _refusal(file, 'original_ln_after', after)
    return 'input'
  before, residual = own.get('original_ln_before', False), own.get('residual_before_ln', True)
  # The residual of the bottleneck is s + h where both hold, so that h must not be added again.
  holds_stream = before and residual is False
  if before and residual not in (True, False):
    raise _refusal(file, 'residual_before_ln', residual)
  if after == holds_stream:
    raise _refusal(file, 'original_ln_after', after)
  return 'sum' if before else 'output'


def _size(own: Mapping[str, Any], config: T5Config, file: pathlib.Path) -> int:
  factor = own.get('reduction_factor')
  if isinstance(factor, bool) or not isinstance(factor, (int, float)) or factor <= 0:
    raise UserError(f"'{file}' has {factor!r} as 'reduction_factor'; only one number for all"
                    ' layers has a form here.')
  return max(int(config.embed // factor), 1)


def _scaling(own: Mapping[str, Any], file: pathlib.Path) -> float:
  scaling = own.get('scaling', 1.0)
  if not isinstance(scaling, float):
    raise UserError(f"'{file}' sets 'scaling' to {scaling!r}, a learned one has no form here;"
                    " multiply it into adapter_up and set 'scaling' to 1.0.")
  return scaling


def _every_layer(config: T5Config) -> list[tuple[str, int]]:
  """(stack, layer) in the package's count."""
  return [(stack, layer) for stack in STACKS
          for layer in range(peft_forms.depth_of(config, stack))]


def _layers(left_out: Any, config: T5Config,
            file: pathlib.Path) -> tuple[tuple[str, int], ...] | None:
  """The layers that have adapters; the package counts those of the decoder after the encoder's."""
  every = _every_layer(config)
  unknown = [number for number in left_out if number not in range(len(every))]
  if unknown:
    raise UserError(f"'{file}' leaves out layer {unknown[0]!r}, the backbone has {len(every)}; give"
                    ' the backbone it was trained on.')
  return tuple(place for number, place in enumerate(every)
               if number not in left_out) if left_out else None


def values_of(form: BottleneckForm, config: T5Config) -> dict[str, Any]:
  """Returns the inner config that the package reads; what is left out has its defaults."""
  every = _every_layer(config)
  left_out = [number for number, place in enumerate(every)
              if form.layers is not None and place not in form.layers]
  kinds = {site.partition('/')[2] for site in form.sites}
  values = {key: kind in kinds for key, kind in _PLACES.items()}
  meant = [f'{stack}/{kind}' for stack in _stacks(form.layers) for kind in kinds
           if kind in _NUMBERS[stack]]
  if set(meant) != set(form.sites):
    raise UserError(f"The package adapters has no form for adapters at {', '.join(form.sites)}"
                    ' only; it places them in both stacks.')
  return values | {
      'reduction_factor': _factor(config.embed, form.size), 'non_linearity': form.activation,
      'original_ln_before': form.reads == 'sum', 'original_ln_after': True,
      'residual_before_ln': True, 'adapter_residual_before_ln': False,
      'ln_before': form.pre_norm, 'ln_after': form.post_norm,
      'is_parallel': form.reads == 'input', 'scaling': float(form.scaling),
      'leave_out': left_out, 'phm_layer': False, 'inv_adapter': None, 'use_gating': False}


def _factor(embed: int, size: int) -> int | float:
  """A factor whose quotient, rounded down as the package does, is the size."""
  factor = embed // size if embed % size == 0 else embed / size
  while int(embed // factor) < size:
    factor = float(np.nextafter(factor, 0.0))
  return factor


def table_of(form: BottleneckForm, config: T5Config, name: str) -> names.Table:
  """Every tensor of an adapter of this name and where it lives in the tree."""
  weights, aliases = [], {}
  for site in form.sites:
    stack, _, kind = site.partition('/')
    layers = form.layers_of(stack, peft_forms.depth_of(config, stack))
    for position, layer in enumerate(layers):
      place = f'{stack}.block.{layer}.layer.{_NUMBERS[stack][kind]}.adapters.{name}'
      weights += _weights_at(place, f'{peft_forms.parameters_at(site)}/adapter', (position,), form,
                             config.embed)
      if form.pre_norm:  # The norm is also the first module of the way down.
        aliases |= {f'{place}.adapter_norm_before.{part}': f'{place}.adapter_down.0.{part}'
                    for part in ('weight', 'bias')}
  return names.Table(tuple(weights), aliases)


def _weights_at(name: str, path: str, index: tuple[int, ...], form: BottleneckForm,
                embed: int) -> Iterator[names.Weight]:
  norms = [('adapter_down.0', 'pre_norm')] if form.pre_norm else []
  norms += [('adapter_norm_after', 'post_norm')] if form.post_norm else []
  for theirs, ours in norms:
    yield from names.norm(f'{name}.{theirs}', f'{path}/{ours}', embed, index)
  first = f'adapter_down.{int(form.pre_norm)}'
  for theirs, ours, shape in ((first, 'down', (form.size, embed)),
                              ('adapter_up', 'up', (embed, form.size))):
    yield from names.projection(f'{name}.{theirs}', f'{path}/{ours}', shape, index)
