"""The registry of the few-shot gym and the lists of tasks that weight ensembling uses.

Names are `crossfit/<published name>`; see `gym`. Tasks of the gym that are added later take a row
in a table of their own and enter `GYM_TASKS`; the lists below stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pemt_jax.data import tasks_gym_qa, tasks_gym_text
from pemt_jax.data.gym import title_of
from pemt_jax.data.tasks_base import Task

GYM_TASKS: Mapping[str, Task] = MappingProxyType({
    task.name: task for table in (tasks_gym_qa, tasks_gym_text) for task in table.TASKS})

# The 32 source and target tasks in their order, and all 51 target tasks.
QA_TASKS: tuple[str, ...] = tuple(task.name for task in tasks_gym_qa.TASKS)
QUAN_TASKS: tuple[str, ...] = tuple(GYM_TASKS)

# Family -> its tasks among the 32: what manual division merges.
TASK_FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    family: tuple(task.name for task in tasks_gym_qa.TASKS if task.gym.family == family)
    for family in dict.fromkeys(task.gym.family for task in tasks_gym_qa.TASKS)})


def published_names(names: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the names that published files use."""
  return tuple(title_of(name) for name in names)
