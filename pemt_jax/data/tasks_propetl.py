"""The tasks of multi-task ProPETL, `propetl/<name>`: other texts and scores over the same rows.

Where a task of this library reads the same rows, the ProPETL task takes its data set, folders and
fields. Targets are class numbers, or free text. The published names that mix up '_' and '-' are
aliases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from pemt_jax.data import (
    tasks_glue, tasks_other, tasks_propetl_languages, tasks_superglue, templates,
    templates_propetl as forms)
from pemt_jax.data.tasks_base import Task
from pemt_jax.data.tasks_propetl_base import (
    DIGITS, NATURAL, PROPETL_PREFIX, TEST_ONLY, propetl_task)
from pemt_jax.data.templates import Template
from pemt_jax.data.templates_gym import shown

_SAME_ROWS = {task.name: task for table in (tasks_glue, tasks_superglue, tasks_other)
              for task in table.TASKS}
_PAIR = 'sentence1: {sentence1} sentence2: {sentence2}'
_INFERENCE = 'premise: {premise} hypothesis: {hypothesis}'
_NUMBERS = {'metrics': ('binary_f1', 'accuracy'), 'postprocess': 'integers'}


def _classes(name: str, pattern: str, words: int | tuple[str, ...], field: str = 'label',
             **options: Any) -> Task:
  """A task whose target is the class number of a field."""
  words = DIGITS[:words] if isinstance(words, int) else words
  template = forms.texts(shown(pattern), forms.class_in(field, words))
  return _numbered(name, template, DIGITS[:len(words)], **options)


def _numbered(name: str, template: Template, words: tuple[str, ...], **options: Any) -> Task:
  """A task with digits as label words; rows as the task of this name, where there is one."""
  options.setdefault('metrics', ('accuracy',))
  return propetl_task(name, template, label_words=words, same=_SAME_ROWS.get(name), **options)


def _stsb() -> Task:
  """Scores are written with one decimal, while decoding ends with the longest fifth."""
  grid = tuple(str(round(float(score), 1)) for score in np.arange(26) / 5)
  return propetl_task(
      'stsb', templates.similarity(templates.round_to_tenth), same=_SAME_ROWS['stsb'],
      metrics=('pearson_corrcoef', 'spearman_corrcoef'), size='small', decode_texts=grid,
      postprocess='decimals')


def _yelp() -> Task:
  return _classes('yelp_polarity', 'sentence: {text}', 2, size='large', splits=TEST_ONLY)


def _winogrande() -> Task:
  """The large training part; the target is the number of the option."""
  task = _numbered(
      'winogrande', forms.texts(shown('sentence: {sentence} option1: {option1} option2: {option2}'),
                                forms.value_in('answer', ('1', '2'))), ('1', '2'), size='large')
  return dataclasses.replace(
      task, hf=('winogrande', 'winogrande_l'), tfds_splits={'train': 'train_l'},
      folders=('winogrande/winogrande_l', *task.folders))


def _snli() -> Task:
  """Rows without agreement give no example (not in original: their target is -1)."""
  template = templates.skip_unlabelled(forms.texts(shown(_INFERENCE),
                                                   forms.class_in('label', DIGITS[:3])))
  return _numbered('snli', template, DIGITS[:3], splits=NATURAL)


def _choices() -> tuple[Task, ...]:
  """Multiple choice; the target is the number of the right choice."""
  letters = ('A', 'B', 'C', 'D', 'E')
  question = 'question: {question} context: {context}'
  return (
      _numbered('social_i_qa', forms.texts(
          shown(question + ' answerA: {answerA} answerB: {answerB} answerC: {answerC}'),
          forms.place_in('label', ('1', '2', '3'))), DIGITS[:3], size='large'),
      _classes('cosmos_qa', question + ''.join(f' answer{i}: {{answer{i}}}' for i in range(4)), 4,
               size='large', hf=('cosmos_qa', None), folders=('cosmos_qa/default', 'cosmos_qa'),
               description='Given a question, its context and four answers, the task is to choose '
                           'the answer that common sense suggests.'),
      _winogrande(),
      _numbered('hellaswag', forms.texts(
          forms.choices(shown('ctx: {ctx}'), 'endings', [f'ending{i}' for i in range(4)]),
          forms.class_in('label', DIGITS[:4])), DIGITS[:4], size='large', hf=('hellaswag', None),
          folders=('hellaswag/default', 'hellaswag'),
          description='Given the beginning of a scene and four endings, the task is to choose the '
                      'ending that follows.'),
      _numbered('commonsense_qa', forms.texts(
          forms.choices(shown('question: {question}'), 'choices', letters),
          forms.place_in('answerKey', letters)), DIGITS[:5], size='small'),
  )


def _glue() -> tuple[Task, ...]:
  return (
      _classes('cola', 'sentence: {sentence}', 2, size='small', metrics=('matthews_corrcoef',),
               postprocess='integers'),
      _classes('sst2', 'sentence: {sentence}', 2, size='large'),
      _stsb(),
      _classes('qqp', 'question1: {question1} question2: {question2}', 2, size='large', **_NUMBERS),
      # No colon behind the second name, as published.
      _classes('mnli', 'premise: {premise} hypothesis {hypothesis}', 3,
               splits=_SAME_ROWS['mnli'].splits),
      _classes('qnli', 'question: {question} sentence: {sentence}', 2, size='large'),
      _classes('rte', _PAIR, 2, size='small'),
      _classes('wnli', _PAIR, 2, size='small'),
  )


def _sentences() -> tuple[Task, ...]:
  coarse = forms.first_class_in(('label-coarse', 'coarse_label'), DIGITS[:6])
  return (
      _classes('superglue-boolq', 'question: {question} passage: {passage}', 2, size='small'),
      _classes('superglue-cb', _INFERENCE, 3, size='small'),
      _classes('superglue-rte', _INFERENCE, 2),
      _classes('paws', _PAIR, 2, splits=NATURAL),
      _classes('imdb', '{text}', 2, size='small', splits=TEST_ONLY, hf=('imdb', None),
               folders=('imdb/plain_text', 'imdb'),
               description='Given a movie review, the task is to tell whether its opinion is '
                           'negative or positive.'),
      _snli(),
      _classes('scitail', _PAIR, ('entailment', 'neutral'), 'gold_label', splits=NATURAL),
      _classes('mrpc', _PAIR, 2, size='small', **_NUMBERS),
      _numbered('trec', forms.texts(shown('sentence: {text}'), coarse), DIGITS[:6], size='small',
                splits=TEST_ONLY, hf=('trec', None), folders=('trec/default', 'trec'),
                blank={'label-coarse': 0}, few_shot_label=None,
                description='Given a question, the task is to tell what kind of answer it seeks.'),
      _yelp(),
  )


def _sick() -> Task:
  """SICK with the fields premise, hypothesis and label (a word); there is no data set by name."""
  return _classes('sick', _INFERENCE, ('ENTAILMENT', 'NEUTRAL', 'CONTRADICTION'), size='small',
                  splits=NATURAL, folders=('sick/clean', 'sick'),
                  description='Given a premise and a hypothesis, the task is to tell whether the '
                              'hypothesis follows, stays open or conflicts.')


def _xsum() -> Task:
  return propetl_task(
      'xsum', forms.texts(shown('summarize: {document}'), shown('{summary}')), metrics=('rouge',),
      splits=NATURAL, decoding={'max_length': 64, 'num_beams': 6}, hf=('xsum', None),
      folders=('xsum/default', 'xsum'), blank={'summary': ''}, few_shot_label=None,
      description='Given a news article, the task is to write its summary in one sentence.')


# In the published order.
TASKS = (
    *_sentences(), *tasks_propetl_languages.TRANSLATION, *_glue(), *_choices(), _sick(),
    *tasks_propetl_languages.TASKS, _xsum())

PROPETL_TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in TASKS})
PROPETL_ALIASES: Mapping[str, str] = MappingProxyType(
    {alias: task.name for task in TASKS for alias in task.aliases})

# The tasks of the published GLUE mixture in their order.
GLUE_MIXTURE = tuple(PROPETL_PREFIX + name for name in (
    'rte', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'cola'))
