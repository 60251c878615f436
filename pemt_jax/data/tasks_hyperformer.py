"""The tasks of HyperFormer and MPOE, `hyperformer/<name>`.

Multi-task ProPETL has taken its rows, splits, class numbers and scores from them; the texts differ
for translations only. The template `name_in_front` is that of full tuning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from pemt_jax.data.tasks_base import Task
from pemt_jax.data.tasks_propetl import PROPETL_TASKS
from pemt_jax.data.tasks_propetl_base import PROPETL_PREFIX
from pemt_jax.data.tasks_propetl_languages import translation

HYPERFORMER_PREFIX = 'hyperformer/'

GLUE = ('cola', 'sst2', 'stsb', 'mrpc', 'qqp', 'mnli', 'qnli', 'rte', 'wnli')
_SAME = (
    *GLUE, 'superglue-boolq', 'superglue-rte', 'superglue-cb', 'paws', 'imdb', 'snli', 'scitail',
    'trec', 'yelp_polarity', 'social_i_qa', 'cosmos_qa', 'winogrande', 'hellaswag',
    'commonsense_qa', 'sick')
# Published name, data, languages, language of the inputs, language of the targets.
_TRANSLATIONS = (
    ('wmt16-en-ro', 'wmt16', 'ro-en', 'en', 'ro'), ('wmt16-ro-en', 'wmt16', 'ro-en', 'ro', 'en'),
    ('wmt16-en-cs', 'wmt16', 'cs-en', 'en', 'cs'), ('wmt16-en-fi', 'wmt16', 'fi-en', 'en', 'fi'),
    # Translates from English, whatever the published name says.
    ('wmt14-hi-en', 'wmt14', 'hi-en', 'en', 'hi'),
    ('iwslt2017-ro-nl', 'iwslt2017', 'ro-nl', 'ro', 'nl'),
    ('iwslt2017-en-nl', 'iwslt2017', 'en-nl', 'en', 'nl'))


def _named(task: Task) -> Task:
  """A task of ProPETL under the name that it has here."""
  name = HYPERFORMER_PREFIX + task.name.removeprefix(PROPETL_PREFIX)
  return dataclasses.replace(task, name=name, benchmark='hyperformer', aliases=())


TASKS = (*(_named(PROPETL_TASKS[PROPETL_PREFIX + name]) for name in _SAME),
         *(_named(translation(*each, plain=True)) for each in _TRANSLATIONS))

HYPERFORMER_TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in TASKS})

# The tasks of the published mixture in their order.
MIXTURE = tuple(HYPERFORMER_PREFIX + name for name in (
    'rte', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'cola'))
