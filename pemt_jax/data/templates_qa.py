"""Templates of question answering: reading, cloze and multiple choice."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from pemt_jax.data.templates import (
    Example, Row, RowError, Template, label_index, pad_punctuation, structured_field, text_field)


def record(row: Row) -> list[Example]:
  """Makes one ReCoRD example per gold answer; `extra['answers']` holds all of them."""
  source, answers = _record_parts(row)
  return [Example(source, answer, {'answers': answers}) for answer in answers]


def record_once(row: Row) -> list[Example]:
  """Makes one ReCoRD example per query, with the first gold answer as target."""
  return record(row)[:1]


def _record_parts(row: Row) -> tuple[str, list[str]]:
  passage = text_field(row, 'passage')
  passage = re.sub(r'([.?!"\'])\n@highlight\n', r'\1 ', passage)
  passage = passage.replace('\n@highlight\n', '. ')
  entities = ', '.join(_text_list(row, 'entities'))
  source = f"record query: {text_field(row, 'query')} entities: {entities} passage: {passage}"
  return source, _text_list(row, 'answers') or ['<unk>']


def _text_list(row: Row, name: str) -> list[str]:
  value = structured_field(row, name)
  if isinstance(value, str) or not isinstance(value, Sequence):
    raise RowError(f"field '{name}' holds a {type(value).__name__} where a list of texts is "
                   'expected; fix the row or remove it')
  return [str(item) for item in value]


def reading(row: Row) -> list[Example]:
  """Makes extractive question answering examples; question, context and answer get padded marks.

  The answer is field `answer`, or the first of `answers` (list or `{'text': [...]}`). The context
  is text, or HotpotQA's `{'title': [...], 'sentences': [[...], ...]}`, whose paragraphs are joined.
  """
  source = (f"question: {pad_punctuation(text_field(row, 'question'))} "
            f'context: {pad_punctuation(_context(row))}')
  return [Example(source, pad_punctuation(_first_answer(row)))]


def _context(row: Row) -> str:
  value = structured_field(row, 'context')
  if not isinstance(value, Mapping):
    return text_field(row, 'context')
  if not {'title', 'sentences'} <= set(value):
    raise RowError("field 'context' is an object without 'title' and 'sentences'; "
                   'fix the row or remove it')
  return ' '.join(f"{title}: {''.join(sentences)}"
                  for title, sentences in zip(value['title'], value['sentences'], strict=True))


def _first_answer(row: Row) -> str:
  if row.get('answer') is not None:
    return text_field(row, 'answer')
  if 'answers' not in row:
    raise RowError(f"field 'answer' is missing (fields found: {', '.join(map(str, row))}); "
                   'fix the row or remove it')
  value = structured_field(row, 'answers')
  texts = value.get('text') if isinstance(value, Mapping) else value
  texts = [texts] if isinstance(texts, str) else texts
  if not texts:
    raise RowError("field 'answers' holds no answer; fix the row or remove it")
  return str(texts[0])


def drop(row: Row) -> list[Example]:
  """Makes DROP examples: the first answer span is the target."""
  source = (f"question: {pad_punctuation(text_field(row, 'question'))} "
            f"context: {pad_punctuation(text_field(row, 'passage'))}")
  if 'answers_spans' not in row:
    return [Example(source, pad_punctuation(text_field(row, 'answer')))]
  spans = structured_field(row, 'answers_spans')
  texts = spans.get('spans') if isinstance(spans, Mapping) else spans
  if not texts:
    raise RowError("field 'answers_spans' holds no span; fix the row or remove it")
  return [Example(source, pad_punctuation(str(texts[0])))]


def whole_text(text: str) -> str:
  """Shows an answer choice in full."""
  return text


def first_character(text: str) -> str:
  """Shows only the first character of an answer choice, the published PIQA and Social IQa form."""
  return text[:1]


def two_solutions(show: Callable[[str], str]) -> Template:
  """Makes `question: {goal} choice1: {} choice2: {}` -> 0 or 1 (PIQA)."""
  def template(row: Row) -> list[Example]:
    source = (f"question: {text_field(row, 'goal')} choice1: {show(text_field(row, 'sol1'))} "
              f"choice2: {show(text_field(row, 'sol2'))}")
    return [Example(source, str(label_index(row, 'label', ('0', '1'))))]
  return template


def social_choices(show: Callable[[str], str]) -> Template:
  """Makes `question: {} context: {} || choice0: {} ...` -> 0 to 2 (Social IQa; labels 1 to 3)."""
  def template(row: Row) -> list[Example]:
    choices = ' '.join(f'|| choice{i}: {show(text_field(row, name))}'
                       for i, name in enumerate(('answerA', 'answerB', 'answerC')))
    source = (f"question: {text_field(row, 'question')} context: {text_field(row, 'context')} "
              f'{choices}')
    return [Example(source, str(numbered(row, 'label', ('1', '2', '3'))))]
  return template


def five_choices(row: Row) -> list[Example]:
  """Makes `question: {} choice1: {} ... choice5: {}` -> 0 to 4 for A to E (CommonsenseQA)."""
  value = structured_field(row, 'choices')
  texts = value.get('text') if isinstance(value, Mapping) else value
  if isinstance(texts, str) or not isinstance(texts, Sequence) or len(texts) != 5:
    raise RowError("field 'choices' does not hold five texts; fix the row or remove it")
  choices = ' '.join(f'choice{i}: {text}' for i, text in enumerate(texts, start=1))
  source = f"question: {text_field(row, 'question')} {choices}"
  return [Example(source, str(numbered(row, 'answerKey', ('A', 'B', 'C', 'D', 'E'))))]


def two_options(row: Row) -> list[Example]:
  """Makes `sentence: {} option1: {} option2: {}` -> the text of the right option (WinoGrande)."""
  options = (text_field(row, 'option1'), text_field(row, 'option2'))
  source = f"sentence: {text_field(row, 'sentence')} option1: {options[0]} option2: {options[1]}"
  return [Example(source, options[numbered(row, 'answer', ('1', '2'))])]


def numbered(row: Row, name: str, values: Sequence[str]) -> int:
  """Returns the place of field `name` among values such as 1, 2, 3 or A, B, C.

  Raises:
    RowError: it is none of them.
  """
  value = text_field(row, name).strip()
  if value not in values:
    raise RowError(f"field '{name}' has value '{value}', which is not among {', '.join(values)}; "
                   'fix the row or remove it')
  return values.index(value)
