"""Features of tasks: what is stated of them, what their rows show."""

from __future__ import annotations

import numpy as np

from pemt_jax.data import gym_table
from pemt_jax.data.task_features import feature_table, ontology
from pemt_jax.data.templates import Example

TASKS = ('crossfit/glue-rte', 'crossfit/squad-with_context', 'crossfit/quail', 'playground/omen')


def rows(*pairs, targets=()):
  return [Example(source, target, {'targets': targets} if targets else {})
          for source, target in pairs]


EXAMPLES = {
    TASKS[0]: rows((' [glue-rte] it rains', ' entailment'), (' [glue-rte] so it is', ' neutral')),
    TASKS[1]: rows(('Who is she? context: she is Ann Bell of Rome', '<extra_id_0>Ann Bell'),
                   ('Where is he? context: he is at the old house', '<extra_id_0>Old house'),
                   targets=('a', 'b')),
    TASKS[2]: rows(('why? (A) rain (B) sun', 'rain'), ('why? (A) sea (B) sand', 'sand')),
    TASKS[3]: rows(('a b', 'yes'), ('c d', 'no'))}


def of_task(found, task):
  names, table = found
  return {name for name, has in zip(names, table[TASKS.index(task)]) if has}


def test_the_ontology_is_the_published_one_and_tells_other_tasks_by_their_labels():
  assert ontology(TASKS[0]) == ('classification', 'classification: nli')
  assert ontology(TASKS[1]) == ('qa', 'qa: machine reading comprehension')
  assert ontology(TASKS[3])[0] == 'classification'
  assert len({ontology(f'crossfit/{title}')[1] for title in gym_table.entries()}) == 22


def test_features_are_stated_or_seen_in_most_rows():
  found = feature_table(TASKS, EXAMPLES)
  assert found[1].shape == (4, len(found[0])) and list(found[0]) == sorted(found[0])
  assert not np.any(found[1].all(axis=0)) and np.all(found[1].any(axis=0))
  first, second, third, _ = (of_task(found, task) for task in TASKS)
  assert {'category classification', 'rows drawn by label', 'metric answer_accuracy'} <= first
  assert {'category qa', 'target stands in the input', 'several right answers', 'long input',
          'input has a question mark', 'long target'} <= second
  assert {'input lists options', 'target stands in the input'} <= third
  assert not {'several right answers', 'long target'} & third
  assert 'target stands in the input' not in first


def test_without_rows_only_what_is_stated_is_there():
  assert set(feature_table(TASKS, least=2)[0]) >= {'category qa', 'rows drawn by label'}
  assert feature_table(TASKS, least=2)[1].sum(axis=0).tolist() == [2] * len(
      feature_table(TASKS, least=2)[0])
  names, table = feature_table(TASKS)
  assert 'long input' not in names and 'category qa' in names
  assert feature_table(TASKS[:1])[1].shape == (1, 0)
