"""Templates of multi-task ProPETL: class numbers as targets, translation, summaries, tags.

Texts are joined by single blanks and are not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pemt_jax.data.templates import (
    Example, Row, RowError, Template, label_index, structured_field, text_field)
from pemt_jax.data.templates_qa import numbered

Text = Callable[[Row], str]

SEPARATOR = ' $$ '


def texts(source: Text, target: Text) -> Template:
  """Makes source -> target."""
  return lambda row: [Example(source(row), target(row))]


def with_words_in_front(template: Template, words: str) -> Template:
  """Puts words and a blank in front of the source text."""
  return lambda row: [Example(f'{words} {example.source}', example.target, example.extra)
                      for example in template(row)]


def class_in(field: str, words: Sequence[str]) -> Text:
  """Makes row -> number of the class in a field, which holds a number or one of the words."""
  return lambda row: str(label_index(row, field, words))


def place_in(field: str, values: Sequence[str]) -> Text:
  """Makes row -> place, from 0, of the text of a field among values."""
  return lambda row: str(numbered(row, field, values))


def value_in(field: str, values: Sequence[str]) -> Text:
  """Makes row -> text of a field, which must be one of the values."""
  return lambda row: values[numbered(row, field, values)]


def first_class_in(fields: Sequence[str], words: Sequence[str]) -> Text:
  """Makes row -> number of the class in the first of the fields that the row has."""
  def write(row: Row) -> str:
    field = next((name for name in fields if name in row), fields[0])
    return class_in(field, words)(row)
  return write


def choices(head: Text, field: str, names: Sequence[str]) -> Text:
  """Makes `<head> <name>: choice ...` of a field with a list of texts, or `{'text': [...]}`.

  Args:
    head: what stands in front.
    field: field of the choices.
    names: name of each choice.
  """
  def show(row: Row) -> str:
    value = structured_field(row, field)
    listed = value.get('text') if isinstance(value, Mapping) else value
    if isinstance(listed, str) or not isinstance(listed, Sequence) or len(listed) < len(names):
      raise RowError(f"field '{field}' does not hold {len(names)} texts; fix the row or remove it")
    return ' '.join([head(row), *(f'{name}: {text}' for name, text in zip(names, listed))])
  return show


def translated(language: str) -> Text:
  """Makes row -> its text in a language: in `translation`, or in a field called as the language."""
  def show(row: Row) -> str:
    pair = structured_field(row, 'translation') if row.get('translation') is not None else {}
    if not isinstance(pair, Mapping):
      raise RowError("field 'translation' is no object such as {\"ro\": \"...\", \"en\": \"...\"}; "
                     'fix the row or remove it')
    return text_field(pair if language in pair else row, language)
  return show


def first_answer(row: Row) -> str:
  """The first of the answers `{'text': [...]}`."""
  answers = structured_field(row, 'answers')
  found = answers.get('text') if isinstance(answers, Mapping) else answers
  if isinstance(found, str) or not found:
    raise RowError("field 'answers' holds no answer; fix the row or remove it")
  return str(found[0])


def listed(row: Row, field: str) -> list[str]:
  """The texts of a list.

  Raises:
    RowError: the field holds no list.
  """
  value = structured_field(row, field)
  if isinstance(value, str) or not isinstance(value, Sequence):
    raise RowError(f"field '{field}' holds a {type(value).__name__} where a list is expected; "
                   'fix the row or remove it')
  return [str(each) for each in value]


def words_behind(head: str) -> Text:
  """Makes row -> head and its tokens."""
  return lambda row: ' '.join([head, *listed(row, 'tokens')])


def spans(row: Row) -> str:
  """The spans of a row, such as `PER: Ann $$ LOC: Rome`."""
  return SEPARATOR.join(listed(row, 'spans'))


def tags(row: Row) -> str:
  """Tokens with the number of their part of speech, such as `Ann: 7 $$ sings: 16`."""
  pairs = zip(listed(row, 'tokens'), listed(row, 'upos'), strict=False)
  return SEPARATOR.join(f'{token}: {tag}' for token, tag in pairs)
