"""Checkpoints of the task-level mixture of experts on BART <-> experts of the library.

A checkpoint is a folder with `model.pt`, `id2task.json` and `task_vecs.npy`; `config.json` stands
in it or one folder above, as the original writes it.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pemt_jax.data.gym import GYM_PREFIX, title_of
from pemt_jax.errors import UserError
from pemt_jax.experts import library, tree_files
from pemt_jax.experts.routers import RouterSpec
from pemt_jax.experts.task_vectors import TaskVectors
from pemt_jax.interop import bart_files, cards, files, names, taskmoe_names
from pemt_jax.interop.task_vector_files import read_task_vectors, write_task_vectors
from pemt_jax.methods import task_moe
from pemt_jax.methods.base import FROZEN
from pemt_jax.methods.task_moe import NAME, PLACE, TaskMoEOptions
from pemt_jax.models import bart_config
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.trees import Tree, flatten, unflatten

KIND = 'task_moe'
ABOUT = 'checkpoint of the task-level mixture of experts (BART): model.pt, config.json, vectors'
_MODEL, _CONFIG = 'model.pt', 'config.json'
_ROUTER = {'router_input_dim': 'vector_size', 'router_hidden_dim': 'hidden',
           'router_block_num': 'experts', 'router_mode': 'mode', 'router_nn_type': 'router',
           'encoder_vanilla_layers': 'plain_encoder_layers',
           'decoder_vanilla_layers': 'plain_decoder_layers', 'exploration_epsilon': 'exploration'}
_CLOSE = 1e-6  # largest difference of frozen weights from those of the backbone


def _config_file(folder: pathlib.Path) -> pathlib.Path:
  for place in (folder / _CONFIG, folder.parent / _CONFIG):
    if place.is_file():
      return place
  raise UserError(f"neither '{folder}' nor the folder above has {_CONFIG}; give the folder of a"
                  ' checkpoint.')


def _layers(value: Any) -> tuple[int, ...]:
  """Vanilla layers, a list or numbers with commas."""
  parts = value.split(',') if isinstance(value, str) else value or ()
  return tuple(int(part) for part in parts if str(part).strip())


def options_from(values: Mapping[str, Any], place: str) -> TaskMoEOptions:
  """Options of `config.json`.

  Args:
    values: its fields.
    place: for messages.

  Raises:
    UserError: a field is missing, or has no meaning here.
  """
  missing = [name for name in ('router_input_dim', 'router_block_num', 'router_nn_type')
             if name not in values]
  if missing:
    raise UserError(f"'{place}' has no '{missing[0]}'; give the config of a routed BART.")
  found = {own: values[name] for name, own in _ROUTER.items() if name in values}
  for name in ('plain_encoder_layers', 'plain_decoder_layers'):
    found[name] = _layers(found.get(name))
  return TaskMoEOptions(**found)


def _table(config: BartConfig, options: TaskMoEOptions, inside: bool) -> names.Table:
  """Names of all tensors; `inside`: routers lie inside of the stacks, as in old files."""
  layers = config.encoder_layers + config.decoder_layers
  spec = RouterSpec(options.router, options.vector_size, options.hidden, layers, options.experts)
  router = taskmoe_names.router_table(spec, f'{PLACE}/router_',
                                      'model.' if inside else 'router.model.',
                                      config.encoder_layers if inside else None)
  chosen = task_moe.layers_with_experts(options, config)
  return taskmoe_names.model_table(config, chosen, options.experts, router)


def to_expert(source: str | pathlib.Path, target: str | pathlib.Path,
              backbone: str | None = None) -> list[str]:
  """Reads a checkpoint of the original program and writes an expert.

  Vectors become constants. Where `task_vecs.npy` holds routes, one for each layer and expert, those
  of the expert are fixed. The file does not know the temperature; it is the published last one.

  Args:
    source: folder of the checkpoint.
    target: folder of the expert.
    backbone: BART that it started from.

  Returns:
    Paths of the arrays that have no place: a router beside fixed routes.

  Raises:
    UserError: no backbone, or files that do not fit.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  if backbone is None:
    raise UserError('An expert belongs to a backbone; give --backbone with the BART that the'
                    ' checkpoint started from.')
  place = _config_file(source)
  values = tree_files.read_json(place)
  options, config = options_from(values, str(place)), bart_config.from_hf(values, str(place))
  _, params = bart_files.load_bart(backbone)
  state = files.read_tensors(source / _MODEL)
  table = _table(config, options, any('.routers.' in name for name in state))
  flat = flatten(names.load(state, table, str(source / _MODEL)))
  vectors = read_task_vectors(source)
  tasks = [cards.task_here(name, GYM_PREFIX) for name in vectors.names]
  experts = config.encoder_layers + config.decoder_layers, options.experts
  left: list[str] = []
  own: dict[str, Any] = {'tune_vectors': False, 'tasks': len(tasks)}
  if _are_routes(vectors.vectors, experts):
    constants = {'routes': vectors.vectors.reshape(-1, *experts)}
    own['routes'] = 'fixed'
    left = [path for path in flat if path.startswith(f'{PLACE}/')]
  elif vectors.width == options.vector_size:
    constants = {'vectors': vectors.vectors, 'closed': np.zeros(experts, np.float32),
                 'temperature': np.float32(options.minimum_temperature)}
  else:
    raise UserError(f"'{source}' has vectors of {vectors.width} numbers, but its router reads"
                    f' {options.vector_size}; give the vectors of this checkpoint.')
  options = task_moe.TaskMoEOptions(**vars(options) | own)
  method = task_moe.task_moe(options, config, 0)
  tuned = _tuned({path: leaf for path, leaf in flat.items() if path not in left}, flatten(params),
                 method.tuned, f"'{source}' has other values of {{}} than backbone '{backbone}';"
                 ' give --backbone with the BART that it started from.')
  library.save_expert(target, tuned, {'deltas': {NAME: constants}}, cards.card_of(
      target.name, NAME, method, options, tasks[0], (backbone, params), tasks=tasks,
      mixture={'sampling': 'proportional'}))
  return left


def _are_routes(rows: np.ndarray, experts: tuple[int, int]) -> bool:
  """Whether rows [task, ...] are weights over the experts of each layer (layers, experts)."""
  if rows.shape[1] != experts[0] * experts[1]:
    return False
  return bool(np.all(rows >= 0) and np.allclose(rows.reshape(-1, *experts).sum(-1), 1.0))


def _tuned(flat: Mapping[str, np.ndarray], backbone: Mapping[str, np.ndarray],
           rules: tuple[tuple[str, str], ...], refusal: str) -> Tree:
  """The leaves that are tuned; all others must be those of the backbone."""
  tuned = {}
  for path, leaf in flat.items():
    group = next(group for pattern, group in rules if re.fullmatch(pattern, path))
    if group != FROZEN[1]:
      tuned[path] = leaf
    elif path not in backbone or np.max(np.abs(leaf - backbone[path])) > _CLOSE:
      raise UserError(refusal.format(path))
  return unflatten(tuned)


def from_expert(source: str | pathlib.Path, target: str | pathlib.Path) -> list[str]:
  """Reads an expert and writes a checkpoint of the original program.

  Args:
    source: folder of the expert.
    target: folder to write, with config.json inside.

  Returns:
    No paths; temperature and closed experts belong to a run there.

  Raises:
    UserError: an expert that the original program has no form for.
  """
  tuned, constants, card = library.load_expert(source)
  if card.method != NAME or card.extra['options'].get('routes') != 'router':
    raise UserError(f"expert '{card.name}' is no mixture of layers under a router, which is what"
                    ' the original program has; convert another one.')
  config, params = _bart_of(card)
  flat = flatten(tuned) | flatten(constants)
  vectors = flat.pop(f'{PLACE}/vectors')
  options = cards.options_of(TaskMoEOptions, card.extra['options'] | {
      'vector_size': vectors.shape[1]})
  table = _table(config, options, inside=False)
  wanted = table.leaf_shapes()
  whole = flatten(params) | flat
  state = names.dump(unflatten({path: leaf for path, leaf in whole.items() if path in wanted}),
                     table, aliases=True)
  target = pathlib.Path(target)
  target.mkdir(parents=True, exist_ok=True)
  fields = {name: list(found) if isinstance(found := getattr(options, own), tuple) else found
            for name, own in _ROUTER.items()}
  files.write_text(target / _CONFIG, json.dumps(
      bart_config.to_hf(config) | fields, indent=2, sort_keys=True) + '\n')
  tasks = [title_of(task) for task in cards.tasks_of(card)]
  write_task_vectors(target, TaskVectors(tuple(tasks), np.asarray(vectors)))
  files.write_tensors(target / _MODEL, state)
  return []


def _bart_of(card: library.ExpertCard) -> tuple[BartConfig, Tree]:
  config, params = bart_files.load_bart(card.backbone_id)
  library.check_backbone(card, card.backbone_id, library.backbone_hash(params))
  return config, params
