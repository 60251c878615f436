"""Templates of the few-shot gym: row -> lines, a line being an input text and its accepted answers.

A row without an example (an empty tweet, a claim without a verdict) gives no line. Fields are those
of the Hugging Face data sets.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pemt_jax.data.templates import (
    Row, RowError, label_index, structured_field, text_field)

Line = tuple[str, tuple[str, ...]]
Lines = Callable[[Row], list[Line]]
Texts = Callable[[Row], tuple[str, ...]]

LETTERS = string.ascii_uppercase
_DRAW_SEED = 42


def flat(text: str) -> str:
  """Replaces each line break and tab by a space."""
  return re.sub(r'[\n\t\r]', ' ', text)


def clean(text: str) -> str:
  """Puts a text on one line: each run of white space, written out breaks too, is one space."""
  return ' '.join(text.replace('\\n', ' ').split())


def shown(pattern: str, how: Callable[[str], str] = str) -> Callable[[Row], str]:
  """Makes row -> `pattern` with its {fields}, each passed through `how`."""
  names = [name for _, name, _, _ in string.Formatter().parse(pattern) if name]

  def show(row: Row) -> str:
    return pattern.format_map({name: how(text_field(row, name)) for name in names})

  return show


def cleaned(head: str, field: str) -> Callable[[Row], str]:
  """Makes row -> `head` and the text of a field, cleaned."""
  return lambda row: head + clean(text_field(row, field))


def answer_in(field: str, how: Callable[[str], str] = str) -> Texts:
  """Makes row -> the text of a field as the only answer."""
  return lambda row: (how(text_field(row, field)),)


def word_of(words: Sequence[str], field: str = 'label') -> Texts:
  """Makes row -> the label word of the class in a field (a number, truth value or word)."""
  return lambda row: (words[label_index(row, field, words)],)


def line(show: Callable[[Row], str], answers: Texts) -> Lines:
  """Makes row -> one line."""
  return lambda row: [(show(row), answers(row))]


def unless(skip: Callable[[Row], bool], lines: Lines) -> Lines:
  """Makes row -> no line where `skip` holds."""
  return lambda row: [] if skip(row) else lines(row)


def option_text(labels: Sequence[str], texts: Sequence[str]) -> str:
  """Writes options as ` (A) first (B) second`, a space in front."""
  return ''.join(f' ({label}) {text}' for label, text in zip(labels, texts, strict=True))


def texts_in(row: Row, name: str) -> list[str]:
  """Returns the list of texts in a field.

  Raises:
    RowError: the field holds something else.
  """
  value = structured_field(row, name)
  if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
    raise RowError(f"field '{name}' holds a {type(value).__name__} where a list of texts is "
                   'expected; fix the row or remove it')
  return [str(item) for item in value]


def _object_in(row: Row, name: str, *keys: str) -> Mapping[str, Any]:
  value = structured_field(row, name)
  if not isinstance(value, Mapping) or not set(keys) <= set(value):
    raise RowError(f"field '{name}' is no object with {' and '.join(keys)}; fix the row or remove "
                   'it')
  return value


def named_choices(show: Callable[[Row], str], key: str = 'answerKey', after: Callable[
    [Row], str] = lambda row: '', letters: bool = False) -> Lines:
  """Makes question + options of `choices` -> text of the option that `key` names.

  Args:
    show: text in front of the options.
    key: field with the right option's label.
    after: text behind the options.
    letters: write A, B, ... in place of the data set's own labels.
  """
  def lines(row: Row) -> list[Line]:
    choices = _object_in(row, 'choices', 'label', 'text')
    texts, labels = list(choices['text']), list(choices['label'])
    right = text_field(row, key)
    if right not in labels:
      raise RowError(f"field '{key}' has value '{right}', which is not among {', '.join(labels)}; "
                     'fix the row or remove it')
    written = LETTERS[:len(texts)] if letters else labels
    text = show(row) + option_text(written, texts) + after(row)
    return [(text, (texts[labels.index(right)],))]
  return lines


def listed_choices(show: Callable[[Row], str], fields: str | Sequence[str], key: str,
                   after: Callable[[Row], str] = lambda row: '', numbers: Sequence[str] = (),
                   write: Callable[[Sequence[str], Sequence[str]], str] = option_text) -> Lines:
  """Makes question + options A, B, ... -> text of the right option.

  Args:
    show: text in front of the options.
    fields: field with a list of options, or the fields with one option each.
    key: field with the right option's number from 0, or with one of `numbers`.
    after: text behind the options.
    numbers: values of `key` in the order of the options.
    write: (labels, options) -> text.
  """
  def lines(row: Row) -> list[Line]:
    texts = texts_in(row, fields) if isinstance(fields, str) else [
        text_field(row, name) for name in fields]
    texts = [flat(text) for text in texts]
    labels = LETTERS[:len(texts)]
    words = numbers or tuple(str(number) for number in range(len(texts)))
    right = texts[label_index(row, key, words)]
    return [(show(row) + write(labels, texts) + after(row), (right,))]
  return lines


def quoted_choices(show: Callable[[Row], str], field: str, key: str) -> Lines:
  """Makes question + options A, B, ... -> the option that `key` holds as text."""
  def lines(row: Row) -> list[Line]:
    texts = texts_in(row, field)
    return [(show(row) + option_text(LETTERS[:len(texts)], texts), (text_field(row, key),))]
  return lines


def tight_options(labels: Sequence[str], texts: Sequence[str]) -> str:
  """Writes options without spaces, as QuAIL's are."""
  return ''.join(f'({label}){text}' for label, text in zip(labels, texts, strict=True))


def first_answer(row: Row) -> tuple[str, ...]:
  """Returns the first text of `answers`, a list or {'text': list}."""
  return all_answers(row)[:1]


def all_answers(row: Row, how: Callable[[str], str] = str) -> tuple[str, ...]:
  """Returns the texts of `answers`, a list or {'text': list}."""
  value = structured_field(row, 'answers')
  texts = value.get('text') if isinstance(value, Mapping) else value
  if not texts:
    raise RowError("field 'answers' holds no answer; fix the row or remove it")
  return tuple(how(str(text)) for text in texts)


def supporting_context(row: Row) -> str:
  """Returns HotpotQA's question with the paragraphs that support its answer, in their order."""
  context = _object_in(row, 'context', 'title', 'sentences')
  titles = set(_object_in(row, 'supporting_facts', 'title')['title'])
  parts = [''.join(sentences) + ' ' for title, sentences
           in zip(context['title'], context['sentences'], strict=True) if title in titles]
  return f"question: {text_field(row, 'question')} context: {''.join(parts).strip()}"


def two_options_inside(row: Row) -> list[Line]:
  """QuaRel: the options stand in the question as `(A) one or (B) two`."""
  question = text_field(row, 'question')
  found = re.search(r'\(A\) (.*?)(?:\bor )?\(B\) (.*)', question, re.S)
  if found is None:
    raise RowError("field 'question' does not hold '(A) ... (B) ...'; fix the row or remove it")
  right = found[1 + label_index(row, 'answer_index', ('0', '1'))]
  return [(question, (right.strip(),))]


def either_choice(row: Row) -> list[Line]:
  """COPA: premise and two alternatives; the question for cause or effect is not shown."""
  return _copa(row, label_index(row, 'label', ('0', '1')))


def either_choice_published(row: Row) -> list[Line]:
  """COPA as published: a row without a label counts for the second alternative."""
  return _copa(row, 0 if row.get('label') == 0 else 1)


def _copa(row: Row, label: int) -> list[Line]:
  choices = [text_field(row, 'choice1'), text_field(row, 'choice2')]
  return [(text_field(row, 'premise') + option_text('AB', choices), (choices[label],))]


def shuffled_choices(rows: Sequence[Row]) -> list[Row]:
  """SciQ: gives each row its `order` of [three distractors, right answer], drawn once per split."""
  stream, ordered = np.random.RandomState(_DRAW_SEED), []
  for row in rows:
    if not row.get('support'):
      ordered.append(row)
      continue
    order = [0, 1, 2, 3]
    stream.shuffle(order)
    ordered.append({**row, 'order': order})
  return ordered


def shuffled_science(row: Row) -> list[Line]:
  """SciQ: question, four shuffled options, support; rows without support give no line."""
  support = flat(text_field(row, 'support'))
  if not support:
    return []
  texts = [text_field(row, name)
           for name in ('distractor1', 'distractor2', 'distractor3', 'correct_answer')]
  options = option_text('ABCD', [texts[place] for place in _list_of_places(row)])
  return [(f"{text_field(row, 'question')}{options} [SEP] {support}", (texts[3],))]


def _list_of_places(row: Row) -> list[int]:
  return [int(place) for place in row.get('order', (0, 1, 2, 3))]


def drawn_first(rows: Sequence[Row]) -> list[Row]:
  """BLiMP: gives each row `good_first`, a coin drawn once per split."""
  draws = np.random.RandomState(_DRAW_SEED).uniform(size=len(rows))
  return [{**row, 'good_first': bool(draw > 0.5)} for row, draw in zip(rows, draws, strict=True)]


def pair_of(good: str, bad: str) -> Lines:
  """Makes row -> the sentences of two fields in drawn order -> which of them is the first field."""
  def lines(row: Row) -> list[Line]:
    texts = text_field(row, good), text_field(row, bad)
    first, second = texts if row.get('good_first', True) else texts[::-1]
    answer = 'sentence 1' if row.get('good_first', True) else 'sentence 2'
    return [(f'sentence 1: {first} [SEP] sentence 2: {second}', (answer,))]
  return lines


def table_rows(row: Row) -> str:
  """TabFact: statement, caption and table, whose lines end with ` [n] `."""
  table = text_field(row, 'table_text').replace('\n', ' [n] ')
  return (f"statement: {text_field(row, 'statement')} [SEP] table_caption: "
          f"{text_field(row, 'table_caption')} [SEP] table_text: {table}")


def filled_relation(row: Row) -> str:
  """LAMA's relations: the template with its subject, the object masked."""
  text = text_field(row, 'template')
  return text.replace('[X]', text_field(row, 'sub_label')).replace('[Y]', '[MASK]')
