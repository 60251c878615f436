"""Folders of the original ProPETL program on T5 <-> experts of the library.

A folder has `config.json`, the config file that the program was trained with, and
`propetl_weight.bin` or `.safetensors`, the tensors that it trained.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.experts import library, tree_files
from pemt_jax.interop import cards, huggingface, propetl_original
from pemt_jax.interop.propetl_original import ProPETLLayout
from pemt_jax.methods.propetl import NAME, ProPETLOptions, propetl
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import flatten, unflatten

KIND = 'propetl'
ABOUT = 'folder with the config.json and the propetl_weight file of the ProPETL code (T5)'
CONFIG, WEIGHTS = 'config.json', 'propetl_weight'
# What a config file of the original need not state.
_DEFAULTS = {
    'reduction_factor': 16, 'non_linearity': 'swish', 'sparsity': 1.0, 'share_adapter': False,
    'share_encoder_decoder_single_adapter': False, 'mask_extreme_mode': False,
    'mask_extreme_mode_combine_method': 'or', 'use_multilingual': False,
    'unfreeze_layer_norms': False, 'adapter_config_name': 'preiffer'}


def _flags(folder: pathlib.Path) -> dict[str, Any]:
  values = tree_files.read_json(folder / CONFIG)
  if not isinstance(values, Mapping) or not values.get('tasks'):
    raise UserError(f"'{folder / CONFIG}' names no tasks; give the config file that the weights"
                    ' were trained with.')
  return _DEFAULTS | dict(values)


def _weight_file(folder: pathlib.Path) -> pathlib.Path:
  for suffix in ('.safetensors', '.bin'):
    if (folder / f'{WEIGHTS}{suffix}').is_file():
      return folder / f'{WEIGHTS}{suffix}'
  raise UserError(f"'{folder}' holds no {WEIGHTS}.bin or .safetensors; give the folder of a run.")


def to_expert(source: str | pathlib.Path, target: str | pathlib.Path,
              backbone: str | None = None) -> list[str]:
  """Reads a folder of the original program and writes an expert.

  With languages the original draws the order of their masks anew in every process; here the last
  one of the config counts as that of the first encoder layer.

  Args:
    source: folder with config.json and the weights.
    target: folder of the expert.
    backbone: T5 that it stands on; default is `model_name_or_path` of the config.

  Returns:
    No paths; everything has a place.

  Raises:
    UserError: no backbone, or files that do not fit each other.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  flags = _flags(source)
  name = cards.backbone_named(flags, source / CONFIG, backbone)
  config, params = huggingface.load_t5(name)
  layout = propetl_original.layout_from_flags(flags, config, {})
  options = propetl_original.options_of(layout, flags)
  tuned = propetl_original.read_weights(_weight_file(source), layout, norms=options.tune_norms)
  tasks = [cards.task_here(task, 'propetl/') for task in flags['tasks']]
  library.save_expert(target, tuned, {}, cards.card_of(
      target.name, NAME, propetl(options, config, 0), options, tasks[0], (name, params),
      **cards.joined_tasks(tasks, 'single')))
  return []


def from_expert(source: str | pathlib.Path, target: str | pathlib.Path,
                weights: str = '') -> list[str]:
  """Reads an expert and writes a folder of the original program.

  Args:
    source: folder of the expert.
    target: folder to write.
    weights: 'torch' or 'safetensors'; '' means torch, as the program does.

  Returns:
    No paths; everything has a place.

  Raises:
    UserError: an expert that the original program has no form for.
  """
  tuned, _, card = library.load_expert(source)
  if card.method != NAME:
    raise UserError(f"expert '{card.name}' is of method '{card.method}'; only propetl has a form in"
                    ' the ProPETL code.')
  options = cards.options_of(ProPETLOptions, card.extra['options'])
  tasks = cards.tasks_of(card)
  config, _ = huggingface.load_t5(card.backbone_id)
  flags = flags_of(options, [task.removeprefix('propetl/') for task in tasks], config)
  layout = propetl_original.layout_from_flags(flags, config, {})
  path = pathlib.Path(target) / f"{WEIGHTS}{'.safetensors' if weights == 'safetensors' else '.bin'}"
  propetl_original.write_weights(path, _in_layout(tuned, layout), layout, options.density)
  tree_files.write_json(path.parent / CONFIG, {'model_name_or_path': card.backbone_id, **flags})
  return []


def flags_of(options: ProPETLOptions, tasks: list[str], config: T5Config) -> dict[str, Any]:
  """Fields of the original's config file for options of the method.

  Args:
    options: of the method.
    tasks: names of the tasks in the original.
    config: of the backbone.

  Raises:
    UserError: a form that the original program does not have.
  """
  owners, hybrid = options.masked_by, options.masked_by == ('task', 'layer')
  last = options.first_layer == len(tasks) - 1
  single = len(tasks) == 1 and owners in (('layer',), ('layer_task',))
  if (options.form != 'adapter' or options.members
      or not (hybrid and last and options.place != 'layer') and not single
      and owners != ('layer_task',)):
    raise UserError(
        'the ProPETL code on T5 has adapters under masks of tasks and layers, with the last task'
        ' also in the first layer (method.first_layer), or under masks of each layer and task;'
        f' these options are form {options.form} with masks of {", ".join(owners) or "nothing"}.')
  return {
      'tasks': tasks, 'eval_tasks': tasks, 'adapters': ['common_adapter'] * len(tasks),
      'train_adapters': True, 'reduction_factor': options.reduction,
      'non_linearity': options.activation, 'sparsity': options.density,
      'share_adapter': options.place != 'layer',
      'share_encoder_decoder_single_adapter': options.place == 'model',
      'mask_extreme_mode': hybrid, 'mask_extreme_mode_combine_method': options.combine,
      'use_multilingual': False, 'unfreeze_layer_norms': options.tune_norms,
      'adapter_config_name': 'preiffer' if options.placement == 'mlp' else 'houlsby'}


def _in_layout(tuned: Mapping[str, Any], layout: ProPETLLayout) -> dict[str, Any]:
  """Masks of layers as masks of layers and the only task, where the layout has these."""
  flat = flatten(tuned)
  if 'layer_task' in layout.owners:
    flat = {path.replace('/layer_', '/layer_task_') if _is_layer(path) else path:
            np.asarray(leaf)[:, None] if _is_layer(path) else leaf for path, leaf in flat.items()}
  return unflatten(flat)


def _is_layer(path: str) -> bool:
  level = path.split('/')[-2]
  return level.startswith('layer_') and not level.startswith('layer_task_')
