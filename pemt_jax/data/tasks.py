"""The table of tasks and the look-up by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from pemt_jax.data import tasks_glue, tasks_other, tasks_qa, tasks_superglue
from pemt_jax.data.gym import GYM_PREFIX
from pemt_jax.data.tasks_base import SPLITS, Task
from pemt_jax.data.tasks_gym import GYM_TASKS
from pemt_jax.data.tasks_hyperformer import HYPERFORMER_PREFIX, HYPERFORMER_TASKS
from pemt_jax.data.tasks_propetl import PROPETL_ALIASES, PROPETL_TASKS
from pemt_jax.data.tasks_propetl_base import PROPETL_PREFIX
from pemt_jax.data.templates import Example, Row, RowError, Template
from pemt_jax.errors import UserError

__all__ = ['Example', 'Row', 'RowError', 'SPLITS', 'Task', 'TASKS', 'Template', 'get_task']

FILE_PREFIX = 'file/'
PLAYGROUND_PREFIX = 'playground/'

TASKS = MappingProxyType({
    task.name: task
    for table in (tasks_glue, tasks_superglue, tasks_qa, tasks_other) for task in table.TASKS})

_ALIASES = {alias: task.name for task in TASKS.values() for alias in task.aliases}


def get_task(name: str) -> Task:
  """Returns the task called `name`, or one of its aliases.

  `playground/...` names are looked up in the playground, `crossfit/...` names in the few-shot gym
  (some of its names, such as `glue-mrpc`, are other tasks without the prefix), `propetl/...` and
  `hyperformer/...` names among the tasks of multi-task ProPETL and of HyperFormer; `file/<name>` is
  a task of the user's own whose rows have the columns `source` and `target` and which is scored by
  accuracy.

  Raises:
    UserError: there is no such task.
  """
  if name.startswith(PLAYGROUND_PREFIX):
    from pemt_jax.data import playground
    return playground.get_task(name)
  if name.startswith(GYM_PREFIX):
    return _named(name, GYM_TASKS, {})
  if name.startswith(PROPETL_PREFIX):
    return _named(name, PROPETL_TASKS, PROPETL_ALIASES)
  if name.startswith(HYPERFORMER_PREFIX):
    return _named(name, HYPERFORMER_TASKS, {})
  if name.startswith(FILE_PREFIX) and name != FILE_PREFIX:
    return _file_task(name)
  return _named(name, TASKS, _ALIASES)


def _named(name: str, tasks: Mapping[str, Task], aliases: Mapping[str, str]) -> Task:
  name = aliases.get(name, name)
  if name not in tasks:
    close = [each for each in tasks if name and name in each]
    close = close or difflib.get_close_matches(name, [*tasks, *aliases], n=3)
    near = f"close names are {', '.join(close)}" if close else f"the names are {', '.join(tasks)}"
    raise UserError(f"there is no task '{name}'; {near}.")
  return tasks[name]


def _file_task(name: str) -> Task:
  title = name.removeprefix(FILE_PREFIX)
  return Task(
      name=name, benchmark='file', template=_no_template, metrics=('accuracy',),
      few_shot_label=None, folders=(title,),
      description=f'Given the input text, the task is to {title}.',
      splits={split: split for split in SPLITS})


def _no_template(row: Row) -> list[Example]:
  raise RowError(f"columns 'source' and 'target' are missing (fields found: "
                 f"{', '.join(map(str, row))}); add them")
