"""Experts that a stage leaves: folders of the expert library."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import ml_collections as mlc
import numpy as np

from pemt_jax import guards
from pemt_jax.errors import UserError
from pemt_jax.experts.library import (
    CARD, FOLDER, ExpertCard, check_backbone, expert_folder, load_card, load_expert, save_expert,
    source_folders)
from pemt_jax.experts.tree_files import check_description, describe
from pemt_jax.models.segments import cut, join, join_shapes
from pemt_jax.models.sites import plan_as_json
from pemt_jax.sharding import processes
from pemt_jax.stages import task_moe
from pemt_jax.stages.backbone import Backbone, load_backbone
from pemt_jax.stages.build import Stage, build
from pemt_jax.stages.config import base_config, is_stage, stage_names
from pemt_jax.stages.prompts import prompt_place, trim
from pemt_jax.stages.sources import COPIES, copy_name
from pemt_jax.trees import Tree, flatten, unflatten


def save_experts(stage: Stage, tuned: Tree, constants: Tree, results: dict[str, dict[str, Any]],
                 workdir: pathlib.Path) -> dict[str, pathlib.Path]:
  """Writes one expert per replica below the workdir; of several processes the first one does.

  Args:
    stage: what was trained.
    tuned: best tuned trees, leaves [replica, ...].
    constants: method state, leaves [replica, ...].
    results: replica name -> its result.
    workdir: folder of the run.

  Returns:
    Replica name -> folder of its expert.
  """
  folders = {}
  for index, (name, spec) in enumerate(stage.specs.items()):
    own = lambda tree, index=index: join(jax.tree.map(lambda a: np.asarray(a[index]), tree))
    folders[name] = folder = expert_folder(workdir, name)
    if not processes.is_first():
      continue
    save_expert(folder, *_without_padding(own(tuned), own(constants)), ExpertCard(
        name=name, method=stage.method.name, plan=plan_as_json(stage.method.plan),
        backbone_id=stage.backbone.name, backbone_hash=stage.backbone.hash, task=spec.task,
        metrics=results[name]['final_metrics'],
        extra={'options': stage.config.method.to_dict(), 'seed': spec.seed,
               'config': stage.config.to_dict(),
               'sources': _sources(stage)}))
  return folders


def _without_padding(tuned: Tree, constants: Tree) -> tuple[Tree, Tree]:
  """Drops the rows that pad a prompt to the longest one of its program."""
  flat, state = flatten(tuned), flatten(constants)
  place = prompt_place(flat)
  mask = state.get(f'{place}/mask')
  if mask is None:
    return tuned, constants
  flat[f'{place}/table'] = trim(flat[f'{place}/table'], mask)
  state[f'{place}/mask'] = mask[mask > 0]
  return unflatten(flat), unflatten(state)


def _as_tuples(value: Any) -> Any:
  return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def config_from_json(values: dict[str, Any]) -> mlc.ConfigDict:
  """Rebuilds the config of a stage from the plain values of a card or config.json."""
  config = base_config(values['stage'])

  def fill(node, plain):
    with node.unlocked():
      for key, value in plain.items():
        if isinstance(value, dict) and isinstance(node.get(key), mlc.ConfigDict):
          fill(node[key], value)
        else:
          node[key] = _as_tuples(value)

  model = values.get('model', {})
  if isinstance(model.get('remat'), bool):  # a card of an earlier version
    values = {**values, 'model': {**model, 'remat': 'full' if model['remat'] else 'none'}}
  fill(config, values)
  return config


@dataclasses.dataclass(frozen=True)
class LoadedExpert:
  """An expert with everything that its predictions need.

  Attributes:
    stage: built for the expert's task.
    name: replica name within the stage.
    tuned: leaves [1, ...].
    constants: leaves [1, ...].
    card: of the expert.
  """

  stage: Stage
  name: str
  tuned: Tree
  constants: Tree
  card: ExpertCard


def config_of(card: ExpertCard) -> mlc.ConfigDict:
  """The config that an expert was trained with; an imported expert has only its options.

  Its mesh is the default one: the devices are those of this call, not those of the training.

  Raises:
    UserError: an expert of an unknown method.
  """
  with guards.reading(f'card of {card.name}'):
    return _config_of(card)


def _config_of(card):
  if 'config' in card.extra:
    return config_from_json({**card.extra['config'], 'mesh': {}})
  if not is_stage(card.method):
    raise UserError(f"expert '{card.name}' is of method '{card.method}', which is none of"
                    f" {', '.join(stage_names())}; install the version of pemt_jax that wrote it.")
  known = set(base_config(card.method).method)
  options = {name: value for name, value in card.extra.get('options', {}).items() if name in known}
  return config_from_json(
      {'stage': card.method, 'method': options, 'model': {'name': card.backbone_id}})


def open_expert(folder: pathlib.Path, backbone: Backbone | None = None,
                overrides: dict[str, Any] | None = None) -> LoadedExpert:
  """Loads an expert folder and builds its stage.

  Args:
    folder: `<workdir>/experts/<name>`, or another folder that holds an expert.
    backbone: a backbone that is loaded already.
    overrides: dotted config path -> value in place of the trained config's.

  Raises:
    UserError: no expert, another backbone, missing source experts, or other tasks for an expert of
      one task.
  """
  folder = pathlib.Path(folder)
  card = load_card(folder)
  tuned, constants, _ = load_expert(folder)
  with guards.reading(folder / CARD):  # A card can ask for what no stage can be built of.
    return _opened(folder, card, (tuned, constants), backbone, overrides or {})


def _opened(folder, card, trees, backbone, overrides):
  config, (tuned, constants) = config_of(card), trees
  with config.unlocked():
    config.data.cache_dir = ''  # A card names no place to write to.
    config.update_from_flattened_dict(overrides)
  backbone = backbone or load_backbone(config, config.seeds[0])
  check_backbone(card, backbone.name, backbone.hash)
  flat = flatten(tuned)
  table = flat.get(f'{prompt_place(flat)}/table')
  with config.unlocked():
    config.tasks = _tasks_of(config, card, 'tasks' in overrides)
    config.learning_rates = ()
    if config.prompt.init == 'sources':  # The start is over and its sources may be gone.
      config.prompt.init = 'uniform'
    config.seeds = (card.extra.get('seed', 0),)
    config.prompt.length = 0 if table is None else len(table)
    config.sources = tuple(map(str, _source_folders(folder, card)))
    config.starts = ()
    tuned, constants = task_moe.opened(config, (tuned, constants), card,
                                       overrides.get('method.vectors', ''))
  place = folder.resolve()
  stage = build(config, place.parents[1] if place.parent.name == FOLDER else place, backbone)
  expected = stage.start.tuned_shapes()
  check_description(describe(tuned), describe(join_shapes(expected)), folder)
  first = lambda tree: jax.tree.map(lambda a: np.asarray(a)[None], cut(tree, expected))
  lifted = jax.tree.map(lambda a: np.asarray(a)[None], constants)
  return LoadedExpert(stage, next(iter(stage.specs)), first(tuned), lifted, card)


def _tasks_of(config: mlc.ConfigDict, card: ExpertCard, given: bool) -> tuple[str, ...]:
  """Tasks that an expert is opened for: those of the config, or the one that it belongs to."""
  if config.mixture.sampling:
    return config.tasks
  if given and config.stage != task_moe.NAME:
    raise UserError(f"expert '{card.name}' belongs to the task '{card.task}' alone; leave other"
                    ' tasks out.')
  return config.tasks if given else (card.task,)


def _source_folders(folder: pathlib.Path, card: ExpertCard) -> list[pathlib.Path]:
  found = [source.resolve() for _, source in source_folders(folder, card)]
  for source in found:
    if not ((source / CARD).is_file() or source.is_file()):
      raise UserError(f"expert '{card.name}' needs its source expert {source}, which is not there;"
                      ' copy the folder of the whole run.')
  return found


def _sources(stage: Stage) -> list[dict[str, str]]:
  """Source experts, relative to the folder of an expert of the same run."""
  if stage.sources is None:
    return []
  folders = [f'../../{COPIES}/{copy_name(folder)}' for folder in stage.source_folders]
  return [{'task': task, 'folder': folder}
          for task, folder in zip(stage.sources.by_folder(), folders, strict=True)]
