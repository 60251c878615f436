"""Turns one row of a data set into text-to-text examples.

A template is a pure function `row -> list[Example]`. It reads fields verbatim, joins them with
their names, and writes the label as a word. A row that a template cannot read raises `RowError`;
the caller adds the file and line.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pemt_jax import guards

Row = Mapping[str, Any]

UNLABELLED = -1


@dataclasses.dataclass(frozen=True)
class Example:
  """One text-to-text example.

  Attributes:
    source: encoder input text.
    target: text to produce.
    extra: what post-processing needs besides the texts (MultiRC group, ReCoRD answers).
  """

  source: str
  target: str
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Template = Callable[[Row], list[Example]]


class RowError(ValueError):
  """A row that does not fit the task; the message is the end of a sentence about that row."""


def text_field(row: Row, name: str) -> str:
  """Returns field `name` as text; numbers are written out.

  Raises:
    RowError: the field is missing, null or not text.
  """
  value = _field(row, name)
  if isinstance(value, (bool, Mapping)) or (
      isinstance(value, Sequence) and not isinstance(value, str)):
    raise RowError(f"field '{name}' holds a {type(value).__name__} where text is expected; "
                   'fix the row or remove it')
  return value if isinstance(value, str) else str(value)


def structured_field(row: Row, name: str) -> Any:
  """Returns field `name`; JSON text (how CSV and TSV hold lists and objects) is decoded."""
  value = _field(row, name)
  if isinstance(value, str) and value[:1] in ('[', '{'):
    try:
      return guards.parse_json(value)
    except ValueError:
      return value
  return value


def _field(row: Row, name: str) -> Any:
  if name not in row:
    raise RowError(f"field '{name}' is missing (fields found: {', '.join(map(str, row))}); "
                   'fix the row or remove it')
  if row[name] is None:
    raise RowError(f"field '{name}' is null; fix the row or remove it")
  return row[name]


def label_index(row: Row, name: str, words: Sequence[str]) -> int:
  """Returns the class number in field `name`, given as an integer, its digits or a label word.

  Args:
    row: one row.
    name: field that holds the label.
    words: label words in class order.

  Raises:
    RowError: the value names no class, or marks a row without a label (-1).
  """
  value = _field(row, name)
  if isinstance(value, str) and value in words:
    return list(words).index(value)
  number = _as_integer(value)
  if number == UNLABELLED:
    raise RowError(f"field '{name}' has value -1, which marks a row without a label; choose a "
                   'split that has labels or remove the row')
  if number is None or not 0 <= number < len(words):
    shown = f"'{value}'" if isinstance(value, str) else value
    named = '' if words[0].isdigit() else f" ({', '.join(words)})"
    raise RowError(f"field '{name}' has value {shown}, which is not among "
                   f'0..{len(words) - 1}{named}; fix the row or remove it')
  return number


def _as_integer(value: Any) -> int | None:
  if isinstance(value, str) and re.fullmatch(r'-?\d{1,18}', value.strip()):
    return int(value)
  if isinstance(value, (bool, int)):
    return int(value)
  if isinstance(value, float) and value.is_integer():
    return int(value)
  return None


@lru_cache(maxsize=4096)
def _is_punctuation(char: str) -> bool:
  return not (char == '_' or char.isspace() or unicodedata.category(char)[0] in 'NLM')


def pad_punctuation(text: str) -> str:
  """Puts spaces around every punctuation mark and collapses runs of white space to one space.

  A mark at either end leaves a space there. Underscores, digits, letters and combining marks are
  not punctuation.
  """
  padded = ''.join(f' {char} ' if _is_punctuation(char) else char for char in text)
  return re.sub(r'\s+', ' ', padded)


def fields_to_label(fields: Mapping[str, str], words: Sequence[str],
                    label_field: str = 'label') -> Template:
  """Makes `name: {field} name: {field} ...` -> label word.

  Args:
    fields: prompt name -> row field, in the order of the source text.
    words: label words in class order.
    label_field: field with the class.
  """
  def template(row: Row) -> list[Example]:
    source = ' '.join(f'{name}: {text_field(row, field)}' for name, field in fields.items())
    return [Example(source, words[label_index(row, label_field, words)])]
  return template


def texts_apart(fields: Sequence[str], target: Template) -> Template:
  """Makes one text, or two of which `extra['second']` is the other, without names in front.

  Args:
    fields: one or two row fields.
    target: template whose first example has the target.
  """
  def template(row: Row) -> list[Example]:
    first, *second = (text_field(row, field) for field in fields)
    extra = {'second': second[0]} if second else {}
    return [Example(first, target(row)[0].target, extra)]
  return template


def numbered(template: Template, words: Sequence[str]) -> Template:
  """The same examples with the number of the label word as target."""
  def template_with_numbers(row: Row) -> list[Example]:
    return [dataclasses.replace(example, target=str(words.index(example.target)))
            for example in template(row)]
  return template_with_numbers


def skip_unlabelled(template: Template, label_field: str = 'label') -> Template:
  """Gives no example for rows whose label is -1 (SNLI pairs on which annotators disagreed)."""
  def skipping(row: Row) -> list[Example]:
    if _as_integer(row.get(label_field)) == UNLABELLED:
      return []
    return template(row)
  return skipping


def round_to_tenth(score: float) -> str:
  """Writes an STS-B score with one decimal, the published form.

  The product and quotient by 5 do not snap to steps of 0.2; they only take part in rounding.
  """
  import numpy as np
  return str(float(np.round((float(score) * 5) / 5, decimals=1)))


def round_to_fifth(score: float) -> str:
  """Writes an STS-B score rounded to steps of 0.2."""
  import numpy as np
  return str(float(np.round(np.round(float(score) * 5) / 5, decimals=1)))


def similarity(write_score: Callable[[float], str]) -> Template:
  """Makes `sentence1: {} sentence2: {}` -> score as text (STS-B)."""
  def template(row: Row) -> list[Example]:
    value = _field(row, 'label')
    try:
      score = float(value)
    except (TypeError, ValueError):
      raise RowError(f"field 'label' has value '{value}', which is not a number between 0 and 5; "
                     'fix the row or remove it') from None
    if not 0 <= score <= 5:
      raise RowError(f"field 'label' has value {value}, which is not between 0 and 5; "
                     'fix the row or remove it')
    source = (f"sentence1: {text_field(row, 'sentence1')} "
              f"sentence2: {text_field(row, 'sentence2')}")
    return [Example(source, write_score(score))]
  return template


def multirc(words: Sequence[str]) -> Template:
  """Makes MultiRC examples; `extra['group']` is the question that an answer belongs to."""
  def template(row: Row) -> list[Example]:
    parts = [f'{name}: {_without_markup(text_field(row, name))}'
             for name in ('question', 'answer', 'paragraph')]
    index = structured_field(row, 'idx')
    if not isinstance(index, Mapping) or 'question' not in index:
      raise RowError("field 'idx' does not name the question of the answer, as in "
                     '{"paragraph": 0, "question": 3, "answer": 7}; fix the row or remove it')
    target = words[label_index(row, 'label', words)]
    return [Example(' '.join(parts), target, {'group': index['question']})]
  return template


def _without_markup(text: str) -> str:
  return re.sub(r'</?b>', '', text.replace('<br>', ' '))


def coreference(words: Sequence[str]) -> Template:
  """Makes WSC examples: the first span stands between ` * `, the second between ` # `.

  Word indices of `wsc` rows that `wsc.fixed` repairs point beside the span: the occurrence of the
  span nearest to the index is marked then.
  """
  def template(row: Row) -> list[Example]:
    first, second = (_span_index(row, name) for name in ('span1_index', 'span2_index'))
    text = _mark_span(text_field(row, 'text'), text_field(row, 'span1_text'), first, '*')
    shift = 2 if first < second else 0
    text = _mark_span(text, text_field(row, 'span2_text'), second + shift, '#')
    return [Example(f'text: {text}', words[label_index(row, 'label', words)])]
  return template


def _span_index(row: Row, name: str) -> int:
  index = _as_integer(_field(row, name))
  if index is None or index < 0:
    raise RowError(f"field '{name}' has value '{row[name]}', which is not a word index; "
                   'fix the row or remove it')
  return index


def _mark_span(text: str, span: str, index: int, mark: str) -> str:
  starts = [word.start() for word in re.finditer(r'\S+', text)]
  ranked = sorted(range(len(starts)), key=lambda i: abs(i - index))
  for i in ranked:
    begin = starts[i]
    if text.startswith(span, begin):
      return f'{text[:begin]}{mark} {span} {mark}{text[begin + len(span):]}'
  return text
