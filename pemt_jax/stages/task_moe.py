"""Routed layers as a stage: vectors of the tasks of a run, and experts on unseen tasks.

What an expert has for each task are rows of some leaves. Opened for other tasks, it has their rows:
its own, found by name, or vectors from a folder.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections as mlc
import numpy as np

from pemt_jax.data.gym import title_of
from pemt_jax.data.tasks import get_task
from pemt_jax.errors import UserError
from pemt_jax.experts.library import CARD, ExpertCard, load_card, load_expert
from pemt_jax.interop.task_vector_files import read_task_vectors
from pemt_jax.methods.task_moe import NAME, PLACE, TaskMoEOptions, TaskOptions
from pemt_jax.stages.starts import start_folder
from pemt_jax.trees import Tree, flatten, unflatten

VECTORS = f'{PLACE}/vectors'
# Leaves [task, ...].
_ROWS = (VECTORS, f'{PLACE}/logits', f'{PLACE}/routes')
# Options that decide which leaves there are.
_SHAPE = ('experts', 'routes', 'router', 'hidden', 'plain_encoder_layers', 'plain_decoder_layers')


def for_tasks(options: Any, config: mlc.ConfigDict) -> Any:
  """Options of a stage with the number and the vectors of its tasks; those of others as they are.

  Vectors come from the folder `method.vectors`, or from the expert that training starts from.

  Args:
    options: of a stage.
    config: of the stage.

  Raises:
    UserError: a task has no vector, or another one than the start; several tasks without a mixture;
      other methods beside the routed layers.
  """
  if isinstance(options, dict) and NAME in options:
    raise UserError(f"stage '{config.stage}' joins {NAME} with others, whose places its copies"
                    f' take; choose {NAME} alone.')
  if not isinstance(options, TaskMoEOptions):
    return options
  names = _names_of(config)
  mixed = config.mixture.sampling
  if len(names) > 1 and not mixed:
    raise UserError(f"config.tasks names {len(names)} tasks, which {NAME} trains together; set"
                    " config.mixture.sampling='proportional', or give one task.")
  values = None
  if options.routes == 'router':
    values = _vectors(options.vectors, names) if options.vectors else _of_start(config, names)
    if options.vectors:
      _require_those_of_start(config, options.vectors, names, values)
  one_task = not mixed or config.mixture.batches in ('single', 'drawn')
  return TaskOptions.of(options, len(names), values, one_task)


def _names_of(config: mlc.ConfigDict) -> tuple[str, ...]:
  return tuple(get_task(name).name for name in config.tasks)


def _vectors(folder: str, names: Sequence[str]) -> np.ndarray:
  """Vectors [task, size] of tasks out of a folder, where gym tasks have their published names."""
  found = read_task_vectors(folder)
  own = [name if name in found.names else title_of(name) for name in names]
  try:
    return found.chosen(own).vectors
  except UserError as error:
    raise UserError(f"method.vectors '{folder}': {error}") from error


def _of_start(config: mlc.ConfigDict, names: Sequence[str]) -> np.ndarray | None:
  """Vectors of the expert that training starts from, or None where it has none."""
  if not config.starts:
    return None
  if len(config.starts) > 1:
    raise UserError('config.starts names several experts, each with task vectors of its own; give'
                    ' one of them, or the folder method.vectors.')
  folder = start_folder(config.starts[0], names[0])
  tuned, constants, _ = load_expert(folder)
  rows = (flatten(tuned) | flatten(constants)).get(VECTORS)
  if rows is None:
    return None
  return _chosen(rows, trained_tasks(load_card(folder)), names, str(folder))


def _require_those_of_start(config: mlc.ConfigDict, folder: str, names: Sequence[str],
                            values: np.ndarray) -> None:
  """Refuses vectors that the router of the start has not read: those of a task it trained on."""
  for start in config.starts:
    place = start_folder(start, names[0])
    tuned, constants, _ = load_expert(place)
    rows = (flatten(tuned) | flatten(constants)).get(VECTORS)
    trained = trained_tasks(load_card(place))
    for name, value in zip(names, values, strict=True):
      if rows is not None and name in trained and not np.array_equal(
          np.asarray(rows)[trained.index(name)], value):
        raise UserError(f"expert '{place}' has another vector of '{name}' than method.vectors"
                        f" '{folder}', since it has tuned them; leave method.vectors empty.")


def trained_tasks(card: ExpertCard) -> tuple[str, ...]:
  """Tasks of an expert in the order of its rows."""
  plain = card.extra.get('config', {})
  if plain.get('mixture', {}).get('sampling'):
    return tuple(get_task(name).name for name in plain['tasks'])
  return (card.task,)


def _chosen(rows: np.ndarray, trained: Sequence[str], names: Sequence[str],
            place: str) -> np.ndarray:
  missing = [name for name in names if name not in trained]
  if missing:
    raise UserError(f"expert '{place}' has no vector or routes of '{missing[0]}', which it was not"
                    ' trained on; give a folder with its vector.')
  return np.asarray(rows)[[trained.index(name) for name in names]]


def opened(config: mlc.ConfigDict, trees: tuple[Tree, Tree], card: ExpertCard,
           given: str = '') -> tuple[Tree, Tree]:
  """An expert's (tuned, constants) for the tasks of a config, which are others than it had or not.

  Args:
    config: with the tasks to open it for; it is told the size of the vectors and needs no folder.
    trees: of the expert.
    card: of the expert.
    given: folder of vectors in place of its own; '' for none.

  Raises:
    UserError: no vector or routes of a task.
  """
  if config.stage != NAME:
    return trees
  names, trained = _names_of(config), trained_tasks(card)

  def of_tasks(path: str, rows: np.ndarray) -> np.ndarray:
    if path == VECTORS and given:
      return _vectors(given, names)
    return _chosen(rows, trained, names, card.name)

  found = _on_rows(trees, of_tasks)
  rows = (flatten(found[0]) | flatten(found[1])).get(VECTORS)
  config.method.vectors = ''
  if rows is not None:
    config.method.vector_size = rows.shape[1]
  return found


def _on_rows(trees: tuple[Tree, Tree],
             change: Callable[[str, np.ndarray], np.ndarray]) -> tuple[Tree, Tree]:
  """The trees with the leaves that have rows for tasks changed."""
  first, second = ({path: change(path, leaf) if path in _ROWS else leaf
                    for path, leaf in flatten(tree).items()} for tree in trees)
  return unflatten(first), unflatten(second)


def shape_of(folder: str | pathlib.Path) -> dict[str, Any]:
  """Options that an expert must have in common with what starts from its router.

  Args:
    folder: of the expert; one that is not there yet has none, and is missed by the run.

  Raises:
    UserError: an expert of another method.
  """
  if not (pathlib.Path(folder) / CARD).is_file():
    return {}
  card = load_card(pathlib.Path(folder))
  if card.method != NAME:
    raise UserError(f"expert '{folder}' is of method '{card.method}'; give one of {NAME}.")
  options = card.extra['options']
  return {name: tuple(options[name]) if isinstance(options[name], list) else options[name]
          for name in _SHAPE if name in options}
