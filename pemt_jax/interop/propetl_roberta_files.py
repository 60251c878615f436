"""Checkpoint folders of the original ProPETL program on RoBERTa, read and written.

A folder has the name of its task: `adapter_config.json`, `pytorch_adapter`, `adapter_mask`,
`pytorch_model_head` (`.bin`, or `.safetensors`), `head_config.json`. The backbone is not inside.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pemt_jax import guards
from pemt_jax.errors import UserError
from pemt_jax.interop import files, names, propetl_roberta as original
from pemt_jax.interop.propetl_roberta import RobertaLayout
from pemt_jax.methods.propetl import ProPETLOptions
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.trees import Tree, merge

ADAPTER, MASKS, HEAD = 'pytorch_adapter', 'adapter_mask', 'pytorch_model_head'
_PARTS = ('delta', 'masks', 'head')
# Fields of a bottleneck adapter that have one value here; the first ones do not enter its hash.
_HASHLESS = {
    'factorized_phm_W': True, 'hypercomplex_nonlinearity': 'glorot-uniform',
    'init_weights': 'bert', 'learn_phm': True, 'phm_bias': True, 'phm_c_init': 'normal',
    'phm_dim': 4, 'phm_init_range': 0.0001, 'phm_rank': 1, 'scaling': 1.0,
    'shared_phm_rule': True}
_BOTTLENECK = _HASHLESS | {
    'adapter_residual_before_ln': False, 'cross_adapter': False, 'factorized_phm_rule': False,
    'inv_adapter': None, 'inv_adapter_reduction_factor': None, 'is_parallel': False,
    'leave_out': [], 'ln_after': False, 'ln_before': False, 'original_ln_after': True,
    'output_adapter': True, 'phm_layer': False, 'residual_before_ln': True, 'shared_W_phm': False,
    'use_gating': False}
_LORA = {'architecture': 'lora', 'composition_mode': 'add', 'dropout': 0.0,
         'init_weights': 'lora', 'intermediate_lora': False, 'output_lora': False,
         'selfattn_lora': True, 'use_gating': False}
_PREFIX = {'architecture': 'prefix_tuning', 'cross_prefix': True, 'dropout': 0.0,
           'encoder_prefix': True, 'flat': False, 'leave_out': [], 'non_linearity': 'tanh',
           'shared_gating': True, 'use_gating': False}
_FIXED = {'pfeiffer': _BOTTLENECK | {'mh_adapter': False, 'original_ln_before': True},
          'houlsby': _BOTTLENECK | {'mh_adapter': True, 'original_ln_before': False},
          'lora': _LORA, 'prefix_tuning': _PREFIX}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """What a folder holds.

  Attributes:
    layout: of its tensors.
    options: of the method, with the published behaviours.
    params: tree of prototype, scores and head; masks are scores of zeros and ones.
  """

  layout: RobertaLayout
  options: ProPETLOptions
  params: Tree


def config_values(layout: RobertaLayout, options: ProPETLOptions) -> dict[str, Any]:
  """The field `config` of adapter_config.json, sorted."""
  values = dict(_FIXED[layout.form])
  if layout.form == 'lora':
    alpha = int(options.alpha) if options.alpha == int(options.alpha) else options.alpha
    values |= {'r': layout.size, 'alpha': alpha, 'attn_matrices': list(layout.projections),
               'share_adapter': layout.shared}
  elif layout.form == 'prefix_tuning':
    values |= {'bottleneck_size': layout.hidden, 'prefix_length': layout.size,
               'share_adapter': layout.shared, 'sparsity': options.density}
  else:
    factor = layout.config.embed / layout.size
    values |= {'non_linearity': options.activation,
               'reduction_factor': int(factor) if factor == int(factor) else factor}
  return dict(sorted(values.items()))


def config_id(values: Mapping[str, Any]) -> str:
  """The hash that names a config: of its fields without empty ones and without old defaults."""
  kept = {name: value for name, value in values.items()
          if value and _HASHLESS.get(name) != value}
  return hashlib.sha1(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _card(layout: RobertaLayout, values: Mapping[str, Any]) -> dict[str, Any]:
  return {'config': dict(values), 'hidden_size': layout.config.embed,
          'model_class': 'RobertaAdapterModel', 'model_name': None, 'model_type': 'roberta',
          'name': layout.task, 'version': '3.1.0'}


def write_checkpoint(folder: str | pathlib.Path, params: Tree, layout: RobertaLayout,
                     options: ProPETLOptions, *, suffix: str = '.bin') -> pathlib.Path:
  """Writes the folder of one task, as the original saves it.

  Masks are written as booleans, at density 1 as scores; those of a prefix are always scores and
  stand with its weights.

  Args:
    folder: the sub-folder with the task's name is made below.
    params: tree with prototype, scores and head; other leaves are left out.
    layout: of the tensors.
    options: of the method.
    suffix: '.bin' (needs torch) or '.safetensors'.

  Returns:
    The sub-folder.

  Raises:
    UserError: a leaf that is missing or misshaped; torch missing.
  """
  folder = guards.inside(folder, layout.task, 'the card of the expert')
  values = config_values(layout, options)
  named = {part: names.take_known(params, original.table_of(layout, (part,))) for part in _PARTS}
  delta, scores = named['delta'], named['masks']
  if layout.form == 'prefix_tuning':
    delta, scores = delta | scores, {}
  elif options.density != 1:
    scores = {name: mask > 0
              for name, mask in original.masks_of(params, layout, options.density).items()}
  aliases = original.table_of(layout, _PARTS).aliases
  delta |= {alias: delta[name] for alias, name in aliases.items() if name in delta}
  for stem, tensors in ((ADAPTER, delta), (MASKS, scores), (HEAD, named['head'])):
    files.write_tensors(folder / f'{stem}{suffix}', tensors)
  head = {'activation_function': 'tanh', 'bias': True, 'head_type': 'classification',
          'label2id': {str(label): label for label in range(layout.labels)}, 'layers': 2,
          'num_labels': layout.labels, 'use_pooler': False}
  for file, card in (('adapter_config.json',
                      _card(layout, values) | {'config_id': config_id(values)}),
                     ('head_config.json', _card(layout, head))):
    files.write_text(folder / file, json.dumps(card, indent=2, sort_keys=True) + '\n')
  return folder


def density_of(masks: Mapping[str, np.ndarray]) -> float:
  """A density with which all masks have their numbers of ones; the shortest such decimal.

  Raises:
    UserError: the masks have no common density.
  """
  counts = [(mask.size, mask.size - int(np.count_nonzero(mask))) for mask in masks.values()]
  fits = lambda density: all(int((1.0 - density) * size) == zeros for size, zeros in counts)
  low = max(1.0 - (zeros + 1) / size for size, zeros in counts)
  high = min(1.0 - zeros / size for size, zeros in counts)
  for digits in range(1, 12):
    for density in (round(edge, digits) for edge in (high, (low + high) / 2, low)):
      if 0.0 <= density <= 1.0 and fits(density):
        return density
  raise UserError('the masks have no density in common; give the density that they were made with.')


def read_checkpoint(folder: str | pathlib.Path, config: RobertaConfig,
                    density: float | None = None) -> Checkpoint:
  """Reads the folder of one task.

  What the original leaves out of its config file is taken from the tensors: whether there are
  masks, and their density.

  Args:
    folder: with adapter_config.json.
    config: of the backbone.
    density: of the masks; None takes that of the config file, or the one that fits the masks.

  Raises:
    UserError: a missing file, a form that is not supported, or tensors that do not fit.
  """
  folder = pathlib.Path(folder)
  card, head = (_read_json(folder / f'{name}_config.json') for name in ('adapter', 'head'))
  values = card['config']
  state = {stem: files.read_tensors(_weights(folder, stem)) for stem in (ADAPTER, MASKS, HEAD)
           if stem != MASKS or _weights(folder, stem).is_file()}
  masks = dict(state.get(MASKS, {}))
  form = values.get('architecture') or ('houlsby' if values.get('mh_adapter') else 'pfeiffer')
  flags = dict(values) | {'adapter_config': form, 'adapter_and_head_name': card['name'],
                          'share_adapter': values.get('share_adapter', bool(masks))}
  layout = original.layout_from_flags(flags, config, head['config']['num_labels'])
  if form == 'lora':
    layout = dataclasses.replace(layout, projections=tuple(values['attn_matrices']))
  flags['sparsity'] = _density(density, values, masks)
  options = original.options_of(layout, flags)
  _check(values, layout, options, folder / 'adapter_config.json')
  tensors = {name: value for part in state.values() for name, value in part.items()}
  params = original.state_to_tree(tensors, layout, parts=_PARTS, place=str(folder))
  return Checkpoint(layout, options, params)


def _density(given, values, masks):
  if given is not None or 'sparsity' in values:
    return values['sparsity'] if given is None else given
  boolean = masks and all(mask.dtype == bool for mask in masks.values())
  return density_of(masks) if boolean else 1.0


def _weights(folder: pathlib.Path, stem: str) -> pathlib.Path:
  file = folder / f'{stem}.safetensors'
  return file if file.is_file() else folder / f'{stem}.bin'


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  if not file.is_file():
    raise UserError(f"'{file}' does not exist; give the folder of one task of a checkpoint.")
  return guards.read_json(file)


def _check(values, layout, options, file):
  """Refuses fields that would change the computation.

  Raises:
    UserError: such a field.
  """
  expected = config_values(layout, options)
  for name, value in values.items():
    if name in expected and name != 'sparsity' and expected[name] != value:
      raise UserError(f"'{file}' has {name} {value!r}, which is not supported (only"
                      f' {expected[name]!r}); choose another checkpoint.')


def attach(params: Tree, checkpoint: Checkpoint) -> Tree:
  """The backbone's tree with the leaves of a checkpoint."""
  return merge(params, checkpoint.params)
