"""What experts from folders of other programs have in common: card, options, tasks, backbone."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

from pemt_jax.data.tasks import get_task
from pemt_jax.errors import UserError
from pemt_jax.experts import library
from pemt_jax.experts.library import ExpertCard
from pemt_jax.methods.base import Method
from pemt_jax.models.sites import plan_as_json
from pemt_jax.trees import Tree

Options = TypeVar('Options')


def card_of(name: str, stage: str, method: Method, options: Any, task: str,
            backbone: tuple[str, Tree], **config: Any) -> ExpertCard:
  """The card of an expert that a stage of the library could have trained.

  Args:
    name: of the expert.
    stage: name of its method.
    method: what was trained.
    options: of the method, a dataclass; {name: options} where several are joined.
    task: it was trained on, the first one of several.
    backbone: name and parameters.
    **config: further fields of the stage's config.
  """
  joined = isinstance(options, dict)
  values = ({own: dataclasses.asdict(value) for own, value in options.items()} if joined
            else dataclasses.asdict(options))
  return ExpertCard(
      name=name, method=stage, plan=plan_as_json(method.plan), task=task, backbone_id=backbone[0],
      backbone_hash=library.backbone_hash(backbone[1]),
      extra={'options': values, 'sources': [],
             'config': {'stage': stage, 'method': values, 'model': {'name': backbone[0]},
                        **config}})


def options_of(kind: type[Options], values: Mapping[str, Any]) -> Options:
  """Options from JSON; fields that `kind` has not are left out, lists become tuples."""
  as_tuple = lambda value: tuple(map(as_tuple, value)) if isinstance(value, list) else value
  known = {field.name for field in dataclasses.fields(kind)}
  return kind(**{name: as_tuple(value) for name, value in values.items() if name in known})


def tasks_of(card: ExpertCard) -> list[str]:
  """All tasks that an expert was trained on."""
  return card.extra.get('config', {}).get('tasks') or [card.task]


def joined_tasks(tasks: list[str], batches: str) -> dict[str, Any]:
  """Fields of a stage's config for tasks that were trained together.

  Args:
    tasks: their names.
    batches: how batches were drawn, see `data.mixture.Mixing`.
  """
  mixture = {'sampling': 'temperature', 'batches': batches} if len(tasks) > 1 else {}
  return {'tasks': tasks, 'mixture': mixture}


def task_here(task: str, prefix: str) -> str:
  """Name of another program's task here; one that is not known keeps its own."""
  try:
    return get_task(prefix + task).name
  except UserError:
    return task


def backbone_named(flags: Mapping[str, Any], file: pathlib.Path, backbone: str | None) -> str:
  """`backbone`, or else the one that the arguments of a run name.

  Raises:
    UserError: neither.
  """
  name = backbone or flags.get('model_name_or_path')
  if not name:
    raise UserError(f"'{file}' names no backbone ('model_name_or_path'); give --backbone.")
  return name
