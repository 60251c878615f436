"""Checkpoint folders of ProPETL on RoBERTa <-> experts of the library."""

from __future__ import annotations

import pathlib

from pemt_jax.errors import UserError
from pemt_jax.experts import library
from pemt_jax.interop import cards, propetl_roberta_files, roberta_files
from pemt_jax.interop.propetl_roberta import RobertaLayout
from pemt_jax.methods.propetl import NAME, ProPETLOptions
from pemt_jax.methods.propetl_roberta import propetl_roberta
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.trees import Tree, flatten

KIND = 'propetl_roberta'
ABOUT = 'folder of one task that the ProPETL code wrote for RoBERTa'
# How the program reads its rows.
_DATA = {'template': 'pair', 'split_rule': 'halved_or_cut', 'max_source_length': 128}


def to_expert(source: str | pathlib.Path, target: str | pathlib.Path, backbone: str | None,
              task: str | None = None) -> list[str]:
  """Reads a checkpoint folder and writes an expert.

  Args:
    source: folder with adapter_config.json.
    target: folder of the expert; its name is the expert's.
    backbone: RoBERTa that the checkpoint stands on; default is roberta-base.
    task: of the expert; default is the name in the checkpoint.

  Returns:
    [], since everything finds its place.

  Raises:
    UserError: whatever does not fit in the folder, or the backbone.
  """
  target, backbone = pathlib.Path(target), backbone or 'roberta-base'
  config, params = roberta_files.load_roberta(backbone)
  found = propetl_roberta_files.read_checkpoint(source, config)
  library.save_expert(target, found.params, {}, cards.card_of(
      target.name, NAME, propetl_roberta(found.options, config), found.options,
      task or found.layout.task, (backbone, params), data=_DATA))
  return []


def from_expert(source: str | pathlib.Path, target: str | pathlib.Path,
                backbone: str | None = None, weights: str = '') -> list[str]:
  """Reads an expert and writes a checkpoint folder below `target`, named after its task.

  Args:
    source: folder of the expert.
    target: receives the folder of the task.
    backbone: RoBERTa that the expert stands on; default is what its card names.
    weights: 'torch' (default) or 'safetensors'.

  Returns:
    Paths of arrays of the expert that the folder has no place for, such as tuned norms.

  Raises:
    UserError: another method or backbone, or a form that the original does not have.
  """
  tuned, _, card = library.load_expert(source)
  if card.method != NAME:
    raise UserError(f"Expert '{source}' is of method '{card.method}', for which {KIND} has no form;"
                    f" give an expert of method '{NAME}'.")
  backbone = backbone or card.backbone_id
  config, params = roberta_files.load_roberta(backbone)
  library.check_backbone(card, backbone, library.backbone_hash(params))
  options = cards.options_of(ProPETLOptions, card.extra['options'])
  layout = layout_of(options, config, tuned, card.task.rpartition('/')[2])
  suffix = '.safetensors' if weights == 'safetensors' else '.bin'
  propetl_roberta_files.write_checkpoint(target, tuned, layout, options, suffix=suffix)
  written = set(flatten(propetl_roberta_files.read_checkpoint(
      pathlib.Path(target) / layout.task, config).params))
  return [path for path in flatten(tuned) if path not in written]


def layout_of(options: ProPETLOptions, config: RobertaConfig, params: Tree,
              task: str) -> RobertaLayout:
  """The layout of a method's tensors in the original.

  Raises:
    UserError: masks of tasks or languages, or a prototype that the original does not have.
  """
  shared = options.masked_by == ('layer',) and options.place == 'model'
  if not shared and (options.masked_by or options.place != 'layer'):
    raise UserError('the original has masks of layers over one prototype of the model, or weights'
                    ' of each layer without masks; this expert has masks of'
                    f" {', '.join(options.masked_by) or 'nothing'} over a prototype per"
                    f" {options.place}, so it cannot be written there.")
  labels = params['head']['out']['kernel'].shape[-1]
  if options.form == 'lora':
    return RobertaLayout(config, labels, task, 'lora', shared, options.rank,
                         projections=options.projections)
  if options.form == 'prefix':
    if not options.hidden:
      raise UserError('the original has no prefix without a network (method.hidden 0), so this'
                      ' expert cannot be written there.')
    return RobertaLayout(config, labels, task, 'prefix_tuning', shared, options.length,
                         options.hidden)
  form = 'houlsby' if options.placement == 'houlsby' else 'pfeiffer'
  return RobertaLayout(config, labels, task, form, shared,
                       max(config.embed // options.reduction, 1))
