"""The few-shot gym: how its tasks are stated, how a line becomes an example, how rows are drawn.

A gym task is a `Task` called `crossfit/<name>`, since several of its names belong to other tasks of
this library with other templates (`glue-mrpc`, `superglue-record`); `title_of` gives the published
name, which also names its folders and files. Beside the template it has a `GymRule`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from pemt_jax.data import gym_table
from pemt_jax.data.tasks_base import GymRule, Task
from pemt_jax.data.templates import Example, Row, RowError, Template
from pemt_jax.data.templates_gym import LETTERS, Line, Lines, option_text

GYM_PREFIX = 'crossfit/'
SENTINEL = '<extra_id_0>'
PLAIN, SPACED = 'plain', 'spaced'
ROW_LIMIT = 400_000  # published limit of train rows
_POOL_SEED = 42
_BLANK = {'answers': ['']}

# Metric of the gym -> metric of this library.
METRIC_NAMES: Mapping[str, str] = MappingProxyType({
    'ACC': 'answer_accuracy', 'EM': 'answer_em', 'QA-F1': 'answer_f1',
    'Rouge-L': 'answer_rouge_l', 'Classification-F1': 'gold_class_f1',
    'Matthew-Correlation': 'acceptable_matthews', 'Pearson-Correlation': 'strict_pearson'})

# data.gym_scores -> metric -> the form of it that is used.
SCORES: Mapping[str, Mapping[str, str]] = MappingProxyType({
    'gold_classes': MappingProxyType({}),
    'all_classes': MappingProxyType(
        {'gold_class_f1': 'all_class_f1', 'strict_pearson': 'lenient_pearson'})})


def scored(task: Task, scores: str) -> Task:
  """Returns the task with metrics in the form `scores`, a key of `SCORES`."""
  forms = SCORES[scores]
  if task.gym is None or not forms:
    return task
  return dataclasses.replace(task, metrics=tuple(forms.get(name, name) for name in task.metrics))


def title_of(name: str) -> str:
  """Returns the published name of a gym task: `glue-mrpc` for `crossfit/glue-mrpc`."""
  return name.removeprefix(GYM_PREFIX)


def tagged(title: str, line: Line) -> Example:
  """Makes the example ` [title] input` -> `<extra_id_0>answer`, the published form."""
  text, answers = line
  targets = tuple(SENTINEL + answer for answer in answers)
  return Example(f' [{title}] {text}', targets[0], {'answers': answers, 'targets': targets})


def spaced(title: str, line: Line) -> Example:
  """Makes the example ` [title] input` -> ` answer`, the published form for BART."""
  text, answers = line
  targets = tuple(f' {answer}' for answer in answers)
  return Example(f' [{title}] {text}', targets[0], {'answers': answers, 'targets': targets})


def plain(title: str, line: Line) -> Example:
  """Makes the example input -> answer."""
  del title
  text, answers = line
  return Example(text, answers[0], {'answers': answers, 'targets': answers})


_FORMS: Mapping[str, Callable[[str, Line], Example]] = MappingProxyType(
    {PLAIN: plain, SPACED: spaced})


def targets_of(example: Example) -> tuple[str, ...]:
  """Returns all texts that may be the target of an example."""
  return tuple(example.extra.get('targets') or (example.target,))


def misaligned(examples: Sequence[Example]) -> list[Example]:
  """Gives example i the i-th target of all examples, one after the other (published behaviour)."""
  every = [target for example in examples for target in targets_of(example)]
  return [dataclasses.replace(example, target=target)
          for example, target in zip(examples, every)]


def dressed(example: Example, lowercase: bool, bos: bool) -> Example:
  """Returns the example with its texts, targets too, in lower case and behind `<s> `."""
  if not (lowercase or bos):
    return example
  head = '<s> ' if bos else ''

  def dress(text: str) -> str:
    return head + (text.lower() if lowercase else text)

  extra = dict(example.extra)
  if 'targets' in extra:
    extra['targets'] = tuple(map(dress, extra['targets']))
  return Example(dress(example.source), dress(example.target), extra)


def prebuilt_line(row: Row, options: bool) -> Line:
  """Returns the line of a row `input`, `answers` (and `options`) that was made before.

  Args:
    row: the row.
    options: whether to put the row's options behind an input that does not show them.

  Raises:
    RowError: `answers` is no list of texts.
  """
  answers = row['answers']
  if isinstance(answers, str) or not answers:
    raise RowError("field 'answers' holds no answer; fix the row or remove it")
  text = str(row['input'])
  if options and row.get('options') and '(A)' not in text:
    text += option_text(LETTERS[:len(row['options'])], [str(each) for each in row['options']])
  return text, tuple(map(str, answers))


def _template(title: str, lines: Lines, form: Callable[[str, Line], Example],
              options: bool) -> Template:
  def template(row: Row) -> list[Example]:
    made = [prebuilt_line(row, options)] if {'input', 'answers'} <= set(row) else lines(row)
    return [form(title, line) for line in made]
  return template


def gym_task(title: str, rule: GymRule, lines: Lines, metric: str,
             hf: tuple[str, str | None], **options: Any) -> Task:
  """Builds the task of a gym data set.

  Args:
    title: published name.
    rule: how rows are drawn.
    lines: row -> lines.
    metric: a key of `METRIC_NAMES`.
    hf: Hugging Face data set and config.
    **options: fields of `Task`, of which `blank` is joined with that of pre-built rows; and
      `published`, the lines as published where the task's own differ.
  """
  shows_options = rule.family == 'multiple_choice_qa'
  published = options.pop('published', None)
  forms = {name: _template(title, lines, form, shows_options) for name, form in _FORMS.items()}
  if published is not None:
    forms['published'] = _template(title, published, tagged, shows_options)
    forms |= {f'published_{name}': _template(title, published, form, shows_options)
              for name, form in _FORMS.items()}
  path, config = hf
  folders = (path,) if config is None else (f'{path}/{config}', path)
  return Task(
      name=GYM_PREFIX + title, benchmark='crossfit', template=_template(
          title, lines, tagged, shows_options), variants=forms, metrics=(METRIC_NAMES[metric],),
      description=DESCRIPTIONS[rule.family], hf=hf, gym=rule, postprocess='all_answers',
      folders=(*options.pop('more_folders', ()), *folders), few_shot_label=None,
      # QuAIL's field `answers` holds the options, which must stay.
      blank=options.pop('blank', {}) | ({} if title == 'quail' else _BLANK),
      fixed_row_limits={'train': ROW_LIMIT}, **options)


DESCRIPTIONS: Mapping[str, str] = MappingProxyType({
    'machine_reading_comprehension': (
        'Given a question and a text that holds its answer, the task is to write the answer.'),
    'multiple_choice_qa': (
        'Given a question and several lettered options, the task is to write the right option.'),
    'binary': 'Given a question and a text about it, the task is to answer with yes or no.',
    'long_form_qa': 'Given a question that somebody asked, the task is to explain the matter.',
    'closed_book_qa': (
        'Given a question or a sentence with a gap, the task is to recall the missing fact.'),
    'classification': 'Given a text, the task is to write the name of the class it belongs to.',
    'paraphrase': 'Given two sentences or questions, the task is to tell if they mean the same.',
    'summarization': 'Given a long text, the task is to write a short summary of what it says.',
    'linguistics': 'Given two sentences, the task is to tell which of them is good English.',
    'other': 'Given a text, the task is to write what follows from it.'})


def listed(title: str, lines: Lines, hf: tuple[str, str | None], **options: Any) -> Task:
  """Builds a task whose metric, family and kind of draw are those of `gym_table`.

  Args:
    title: published name.
    lines: row -> lines.
    hf: Hugging Face data set and config.
    **options: fields of `GymRule` (test, rows, share, official_test) and those of `gym_task`.
  """
  entry = gym_table.entries()[title]
  rule = GymRule(entry.kind, entry.family, **{
      name: options.pop(name) for name in ('test', 'rows', 'official_test', 'share')
      if name in options})
  return gym_task(title, rule, lines, entry.metric, hf, **options)


def shuffled(count: int, seed: int) -> list[int]:
  """Returns range(count) after NumPy's legacy `seed` and `shuffle` of a list."""
  order = list(range(count))
  np.random.RandomState(seed).shuffle(order)
  return order


def pool_and_test(rule: GymRule, count: int, test_count: int | None) -> tuple[list[int], list[int]]:
  """Returns the rows that few-shot rows are drawn from, and the test rows.

  Args:
    rule: of the task.
    count: lines of the pool's data set split.
    test_count: lines of the test part's data set split, or None where one split serves both.
  """
  if rule.test == 'split':
    return list(range(count)), list(range(test_count))
  if rule.test == 'first_share':
    return list(range(count)), shuffled(test_count, _POOL_SEED)[:int(rule.share * test_count)]
  order = shuffled(count, _POOL_SEED)
  if rule.test == 'last_share':
    return order[:int(0.8 * count)], order[int((1.0 - rule.share) * count):]
  kept, more = rule.rows
  return order[:kept], order[kept:kept + more]


def few_shot_rows(kind: str, labels: Sequence[str], shots: int, seed: int
                  ) -> tuple[list[int], list[int]]:
  """Draws train and validation rows: positions in the pool.

  Args:
    kind: 'text' takes `shots` rows in all, 'classification' as many of each label, the labels in
      the order of their first appearance after the shuffle.
    labels: answer of each row of the pool.
    shots: rows of train, and again of validation.
    seed: of the shuffle.
  """
  order = shuffled(len(labels), seed)
  if kind == 'text':
    return order[:shots], order[shots:2 * shots]
  groups: dict[str, list[int]] = {}
  for row in order:
    groups.setdefault(labels[row], []).append(row)
  return ([row for group in groups.values() for row in group[:shots]],
          [row for group in groups.values() for row in group[shots:2 * shots]])
