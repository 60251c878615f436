"""What the tasks of multi-task ProPETL share."""

from __future__ import annotations

import dataclasses
from typing import Any

from pemt_jax.data import templates
from pemt_jax.data.tasks_base import Task
from pemt_jax.data.tasks_glue import PAIR
from pemt_jax.data.templates import Template
from pemt_jax.data.templates_propetl import with_words_in_front

PROPETL_PREFIX = 'propetl/'
NAME_IN_FRONT = 'name_in_front'  # template with the task's name, published for full fine-tuning
DIGITS = ('0', '1', '2', '3', '4', '5')

NATURAL = {'train': 'train', 'validation': 'validation', 'test': 'test'}
NO_TEST = {'train': 'train', 'validation': 'validation', 'test': 'validation'}
TEST_ONLY = {'train': 'train', 'validation': 'test', 'test': 'test'}


def propetl_task(name: str, template: Template, same: Task | None = None, front: str | None = None,
                 aliases: tuple[str, ...] = (), **options: Any) -> Task:
  """Builds a task.

  Args:
    name: published name.
    template: row -> examples, without the task's name.
    same: task of this library that reads the same rows.
    front: words in front of the source text of the template `name_in_front`; the name otherwise.
    aliases: other published names.
    **options: fields of `Task`.
  """
  variants = {NAME_IN_FRONT: with_words_in_front(template, front or name)}
  pair = same.variants.get(PAIR) if same else None
  if pair is not None:
    variants[PAIR] = templates.numbered(pair, same.label_words) if same.label_words else pair
  fields = {'splits': NO_TEST, 'size': 'mapped', 'postprocess': 'text', 'reported': (),
            'fixed_row_limits': {}, 'target_tokens': None, 'label_words': ()} | options
  fields |= {'name': PROPETL_PREFIX + name, 'benchmark': 'propetl', 'template': template,
             'variants': variants, 'aliases': tuple(PROPETL_PREFIX + alias for alias in aliases)}
  return Task(**fields) if same is None else dataclasses.replace(same, **fields)
