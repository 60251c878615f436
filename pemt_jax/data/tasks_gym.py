"""The registry of the few-shot gym, all 160 tasks, and the lists that weight ensembling uses.

Names are `crossfit/<published name>`; see `gym`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pemt_jax.data import (
    tasks_gym_classes, tasks_gym_open, tasks_gym_qa, tasks_gym_text)
from pemt_jax.data.gym import title_of
from pemt_jax.data.tasks_base import Task

GYM_TASKS: Mapping[str, Task] = MappingProxyType({
    task.name: task for table in (
        tasks_gym_qa, tasks_gym_text, tasks_gym_classes, tasks_gym_open) for task in table.TASKS})

# The 32 source and target tasks in their order, and all 51 target tasks.
QA_TASKS: tuple[str, ...] = tuple(task.name for task in tasks_gym_qa.TASKS)
QUAN_TASKS: tuple[str, ...] = (*QA_TASKS, *(task.name for task in tasks_gym_text.TASKS))

# Family -> its tasks among the 32: what manual division merges.
TASK_FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    family: tuple(task.name for task in tasks_gym_qa.TASKS if task.gym.family == family)
    for family in dict.fromkeys(task.gym.family for task in tasks_gym_qa.TASKS)})


def published_names(names: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the names that published files use."""
  return tuple(title_of(name) for name in names)
