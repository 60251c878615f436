"""Experts of the library as one of the formats of `formats.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import dataclasses
import pathlib
from typing import Any

import numpy as np

from pemt_jax import guards
from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.experts import library
from pemt_jax.experts.library import ExpertCard
from pemt_jax.interop import huggingface
from pemt_jax.interop import names as name_tables
from pemt_jax.interop import pemt_files
from pemt_jax.interop import pemt_original
from pemt_jax.interop.pemt_layout import PemtLayout
from pemt_jax.methods import adapters, baselines, pemt, zoo
from pemt_jax.models.sites import plan_as_json
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree

_EXPERT_PARTS = ('experts', 'prompt')
_BANK_PARTS = ('experts', 'source_prompts')
_EMBEDDING = 'shared/embedding'


@dataclasses.dataclass(frozen=True)
class Read:
  """What an expert folder holds, its sources included; LoRA scalings are part of `up`."""

  params: Tree
  constants: Tree
  layout: PemtLayout


def read(
    folder: str | pathlib.Path, sources: Mapping[str, str] | None = None,
    target: str | None = None) -> Read:
  """Reads an expert and, for stage 2, its source experts.

  The formats of the original have no LoRA scaling (its rank equals its alpha), so alpha / rank is
  multiplied into `up`.

  Args:
    folder: folder of the expert.
    sources: task -> folder of a source expert, in the order of the bank; default is what the card
      says.
    target: task of the target adapter; default is the expert's.

  Raises:
    UserError: a folder without an expert, or trees of other parts than PEMT's.
  """
  folder = pathlib.Path(folder)
  tuned, constants, card = library.load_expert(folder)
  params, names = _scaled(tuned, card), None
  found = sources or dict(library.source_folders(folder, card))
  if found:
    bank, masks, names = _bank(found)
    params, constants = trees.merge(bank, params), trees.merge(masks, constants)
  elif any('/wo/lora/' in path or '/wo/ffout/' in path for path in trees.flatten(params)):
    names = [card.task]
  layout = pemt_original.layout_from_tree(
      params, constants, sources=names, target=target or card.task)
  options = card.extra.get('options', {})
  return Read(params, constants, dataclasses.replace(layout, **{
      f'{stack}_adapter_layers': tuple(options[f'{stack}_layers'])
      for stack in ('encoder', 'decoder') if options.get(f'{stack}_layers') is not None}))


def _scaled(tuned: Tree, card: ExpertCard) -> Tree:
  options = card.extra.get('options', {})
  scaling = options['alpha'] / options['rank'] if 'alpha' in options else 1.0
  return trees.unflatten({
      path: np.asarray(leaf) * np.float32(scaling) if path.endswith('/lora/up') else leaf
      for path, leaf in trees.flatten(tuned).items()})


def _bank(folders: Mapping[str, str]) -> tuple[Tree, Tree, list[str]]:
  """Source experts as one bank: parameters, masks, tasks."""
  states = {}
  for task, folder in folders.items():
    if library.load_card(folder).method == 'propetl':
      raise UserError(f"source '{task}' is a prototype under masks, for which files of PEMT have no"
                      ' place; keep the expert as it is.')
    one = read(folder)
    table = pemt_original.table_of(one.layout, _EXPERT_PARTS)
    states[task] = name_tables.take_known(one.params, table)
  joined = pemt_files.join_sources(states)
  layout = pemt_original.layout_from_state(joined, sources=list(folders))
  tree = pemt_original.state_to_tree(joined, layout, parts=_BANK_PARTS, place='the sources')
  return tree['params'], tree['constants'], list(folders)


def write(
    folder: str | pathlib.Path, params: Tree, constants: Tree, layout: PemtLayout,
    backbone: str | None) -> set[str]:
  """Writes an expert; for stage 2 also its sources, in the folder `sources` inside of it.

  Args:
    folder: folder of the expert; its name is the expert's.
    params: deltas, and the backbone or not; backbone arrays that differ from `backbone` (tuned
      norms) belong to the expert.
    constants: masks of padded prompts.
    layout: what `params` holds.
    backbone: the T5 that the deltas stand on; its identity is part of the card.

  Returns:
    Paths of the leaves that were written.

  Raises:
    UserError: no backbone given, or deltas that are not PEMT's.
  """
  if backbone is None:
    raise UserError('An expert belongs to a backbone; give --backbone.')
  alone = layout.expert_form is None and not layout.source_lengths
  if alone and not (layout.has_target_adapter or layout.attention_adapter_width
                    or layout.attention_rank):
    raise UserError('The input has no expert of PEMT (LoRA or adapter at mlp/wo), so there is '
                    'nothing to write as an expert.')
  folder = pathlib.Path(folder)
  config, original = huggingface.load_t5(backbone)
  leaves = _changed(trees.flatten(params), trees.flatten(original))
  is_target = not alone and (layout.has_target_adapter or layout.has_mixture)
  bank = set(pemt_original.table_of(layout, _BANK_PARTS).leaf_shapes()) if is_target else set()
  tuned = trees.unflatten({path: leaf for path, leaf in leaves.items() if path not in bank})
  identity = {'backbone_id': backbone, 'backbone_hash': library.backbone_hash(original)}
  describe = _baseline_card if alone else _stage2_card if is_target else _stage1_card
  library.save_expert(folder, tuned, constants, dataclasses.replace(
      describe(folder.name, config, layout, leaves), **identity))
  if is_target:
    _write_sources(folder / 'sources', params, layout, backbone)
  return set(leaves)


def _stage1_card(
    name: str, config: T5Config, layout: PemtLayout, leaves: Mapping[str, Any]) -> ExpertCard:
  options = dataclasses.replace(_stage1_options(layout), tune_norms=_has_norms(leaves))
  plan = pemt.stage1(options, config, layout.prompt_length).plan
  return ExpertCard(
      name=name, method='pemt/stage1', plan=plan_as_json(plan), task=layout.sources[0],
      backbone_id='', backbone_hash='',
      extra={'options': dataclasses.asdict(options), 'sources': []})


def _baseline_card(
    name: str, config: T5Config, layout: PemtLayout, leaves: Mapping[str, Any]) -> ExpertCard:
  """Adapters or attention LoRA without sources; a prompt beside them has no stage."""
  if layout.prompt_length or layout.attention_rank and layout.target:
    raise UserError('The input joins parts that no stage trains together (adapters, LoRA in '
                    'attention, a prompt), so it cannot be an expert; convert it to safetensors.')
  if layout.attention_rank:
    stage, options = 'lora', baselines.LoRAOptions(
        layout.attention_rank, float(layout.attention_rank))
  else:
    stage, options = 'houlsby', adapters.FamilyOptions(
        size=layout.target_width or layout.attention_adapter_width,
        after_self_attention=layout.attention_adapter_width > 0,
        after_mlp=layout.has_target_adapter, pre_norm='pre' in layout.adapter_norms,
        post_norm='post' in layout.adapter_norms, tune_norms=_has_norms(leaves),
        encoder_layers=layout.encoder_adapter_layers,
        decoder_layers=layout.decoder_adapter_layers)
  plan = zoo.make(stage, options, config, 0).plan
  return ExpertCard(
      name=name, method=stage, plan=plan_as_json(plan), task=layout.target or name,
      backbone_id='', backbone_hash='',
      extra={'options': dataclasses.asdict(options), 'sources': []})


def _stage2_card(
    name: str, config: T5Config, layout: PemtLayout, leaves: Mapping[str, Any]) -> ExpertCard:
  if layout.expert_form == 'adapter':
    _stage1_options(layout)  # the sources are written last; an odd width must be told before
  options = _stage2_options(layout, leaves)
  shape = pemt.BankShape(layout.expert_form or 'lora', len(layout.sources), layout.expert_width,
                         prompt_lengths=layout.source_lengths)
  plan = pemt.stage2(options, config, layout.prompt_length, shape).plan
  sources = [{'task': task, 'folder': f'sources/{task}'} for task in layout.sources]
  return ExpertCard(
      name=name, method='pemt/stage2', plan=plan_as_json(plan), task=layout.target or name,
      backbone_id='', backbone_hash='',
      extra={'options': dataclasses.asdict(options), 'sources': sources})


def _has_norms(leaves: Iterable[str]) -> bool:
  return any(path.endswith('_norm/scale') and '/adapter/' not in path for path in leaves)


def _changed(leaves: Mapping[str, Any], original: Mapping[str, Any]) -> dict[str, Any]:
  """Leaves that the backbone lacks or has with other values; of the norms all or none.

  The original cuts the rows of the embedding that no token uses; that is no change.
  """
  changed = {}
  for path, leaf in leaves.items():
    known = original.get(path)
    if known is not None and path == _EMBEDDING:
      known = known[:len(leaf)]
    if known is None or not np.array_equal(known, leaf):
      changed[path] = leaf
  if _has_norms(changed):
    changed |= {path: leaf for path, leaf in leaves.items() if _has_norms([path])}
  return changed


def _reduction(size: int, width: int) -> int:
  """The factor that gives a bottleneck of this width."""
  factor = size // width
  if size // factor != width:
    raise UserError(f'A bottleneck of {width} units cannot be written as {size} // n, which is how '
                    'experts state their width; keep it in another format.')
  return factor


def _stage1_options(layout: PemtLayout) -> pemt.Stage1Options:
  prompt = layout.prompt_length > 0
  if layout.expert_form == 'lora':
    return pemt.Stage1Options('lora', layout.expert_width, float(layout.expert_width),
                              prompt=prompt)
  return pemt.Stage1Options(
      'adapter', reduction=_reduction(layout.mlp, layout.expert_width), prompt=prompt)


def _stage2_options(layout: PemtLayout, leaves: Mapping[str, Any]) -> pemt.Stage2Options:
  width = layout.target_width
  return pemt.Stage2Options(
      prompt=layout.prompt_length > 0, correlation=bool(layout.source_lengths),
      target_adapter=width > 0, reduction=_reduction(layout.embed, width) if width else 16,
      adapter_pre_norm='pre' in layout.adapter_norms,
      adapter_post_norm='post' in layout.adapter_norms,
      encoder_layers=layout.encoder_adapter_layers, decoder_layers=layout.decoder_adapter_layers,
      tune_gate=any(path.endswith('/gate/kernel') for path in leaves),
      tune_norms=_has_norms(leaves))


def _write_sources(
    folder: pathlib.Path, params: Tree, layout: PemtLayout, backbone: str) -> None:
  """Takes the bank apart into stage-1 experts."""
  table = pemt_original.table_of(layout, _BANK_PARTS)
  states = pemt_files.split_sources(name_tables.take_known(params, table), layout)
  for task, state in states.items():
    one = pemt_original.layout_from_state(state, sources=[task])
    tree = pemt_original.state_to_tree(state, one, parts=_EXPERT_PARTS)
    write(guards.inside(folder, task, 'the layout of the input'), tree['params'],
          tree['constants'], one, backbone)
