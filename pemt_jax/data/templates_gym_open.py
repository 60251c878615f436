"""Templates of the few-shot gym for rows with lists, spans, tables or groups in them.

See `templates_gym`; fields are those of the Hugging Face data sets.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pemt_jax.data.templates import Row, RowError, structured_field, text_field
from pemt_jax.data.templates_gym import (
    LETTERS, Line, Lines, Texts, clean, flat, option_text, texts_in)

_LONG_PLOT = 'plot summary may be too long'  # DuoRC: what the plot says in place of a plot
_SHORT, _LONG = (1, 3), (0, 2)               # acronyms: labels of a first and of a later token


def column(row: Row, field: str, name: str) -> list[Any]:
  """Returns the values called `name` of a list of objects, or of an object of lists.

  Raises:
    RowError: the field holds something else.
  """
  value = structured_field(row, field)
  if isinstance(value, Mapping) and name in value:
    return list(value[name])
  if isinstance(value, Sequence) and all(isinstance(item, Mapping) for item in value):
    return [item[name] for item in value if item.get(name) is not None]
  raise RowError(f"field '{field}' holds no objects with {name}; fix the row or remove it")


def inside(row: Row, *names: str) -> Any:
  """Returns what stands below nested names.

  Raises:
    RowError: a name is missing.
  """
  value = structured_field(row, names[0])
  for name in names[1:]:
    if not isinstance(value, Mapping) or name not in value:
      raise RowError(f"field '{names[0]}' is no object with {name}; fix the row or remove it")
    value = value[name]
  return value


def numbered(field: str, words: Sequence[str], first: int = 1) -> Texts:
  """Makes row -> the word of the class in a field that counts from `first`."""
  numbers = [str(first + place) for place in range(len(words))]

  def answers(row: Row) -> tuple[str, ...]:
    value = text_field(row, field)
    if value not in numbers:
      raise RowError(f"field '{field}' has value '{value}', which is not among "
                     f"{', '.join(numbers)}; fix the row or remove it")
    return (words[numbers.index(value)],)
  return answers


def distinct(texts: Sequence[Any], how: Callable[[str], str] = str) -> tuple[str, ...]:
  """Returns different texts in sorted order; those without a letter are left out.

  Raises:
    RowError: none is left.
  """
  found = tuple(sorted({how(str(text)) for text in texts if str(text).strip()}))
  if not found:
    raise RowError('it holds no answer; fix the row or remove it')
  return found


def several(field: str, how: Callable[[str], str] = str) -> Texts:
  """Makes row -> the different texts of a list, or of {'text': list}, in sorted order."""
  def answers(row: Row) -> tuple[str, ...]:
    value = structured_field(row, field)
    return distinct(value['text'] if isinstance(value, Mapping) else value, how)
  return answers


def listed_answers(field: str, how: Callable[[str], str] = str) -> Texts:
  """Makes row -> the texts of a list, or of {'text': list}, as they stand."""
  def answers(row: Row) -> tuple[str, ...]:
    value = structured_field(row, field)
    texts = value['text'] if isinstance(value, Mapping) else value
    if isinstance(texts, str) or not texts:
      raise RowError(f"field '{field}' holds no answer; fix the row or remove it")
    return tuple(how(str(text)) for text in texts)
  return answers


def kilt_answers(row: Row) -> tuple[str, ...]:
  """KILT: all answers as they stand."""
  found = tuple(str(text) for text in column(row, 'output', 'answer'))
  return found or distinct(())


def kilt_distinct(row: Row) -> tuple[str, ...]:
  """KILT: different answers."""
  return distinct(column(row, 'output', 'answer'))


def acronym(row: Row) -> list[Line]:
  """Tokens with one acronym and one full name, told by their labels -> the full name."""
  tokens, labels = texts_in(row, 'tokens'), [int(label) for label in texts_in(row, 'labels')]
  if any(labels.count(begin) != 1 for begin, _ in (_SHORT, _LONG)):
    return []

  def span(begin: int, later: int) -> str:
    start = stop = labels.index(begin)
    while stop + 1 < len(labels) and labels[stop + 1] == later:
      stop += 1
    return ' '.join(tokens[start:stop + 1])
  return [(f"{' '.join(tokens)} [SEP] acronym: {span(*_SHORT)}", (span(*_LONG),))]


def cut_options(row: Row) -> list[Line]:
  """AQuA-RAT: options such as `A)21`, whose letter and bracket stand apart in the text."""
  options = texts_in(row, 'options')
  right = text_field(row, 'correct')
  wanted = [option[2:] for option in options if option[:1] == right]
  if not wanted:
    raise RowError(f"field 'correct' has value '{right}', which names none of the options; fix the "
                   'row or remove it')
  shown = ''.join(f' ({option[:2]} {option[2:]}' for option in options)
  return [(flat(text_field(row, 'question')) + shown, (wanted[0],))]


def comma_options(row: Row) -> list[Line]:
  """MathQA: five options in one text, `a ) 38 , b ) 27.675 , ...`; the first five parts count."""
  parts = text_field(row, 'options').split(',')[:5]
  texts = [part[(4 if place == 0 else 5):(None if place == 4 else -1)]
           for place, part in enumerate(parts)]
  right = 'abcde'.find(text_field(row, 'correct'))
  if not 0 <= right < len(texts):
    raise RowError("field 'correct' names none of the options; fix the row or remove it")
  return [(text_field(row, 'Problem') + option_text(LETTERS[:len(texts)], texts), (texts[right],))]


def two_candidates(row: Row) -> list[Line]:
  """Pronouns: sentence, pronoun, two candidates -> the right one."""
  names = texts_in(row, 'candidates')
  text = (f"{text_field(row, 'sentence')} [SEP] {text_field(row, 'pronoun')} [SEP]"
          f'{option_text(LETTERS[:len(names)], names)}')
  return [(text, numbered('label', names, 0)(row))]


def story_options(row: Row) -> list[Line]:
  """Social IQa: question, three answers, context -> the right one."""
  texts = [text_field(row, name) for name in ('answerA', 'answerB', 'answerC')]
  text = f"{text_field(row, 'question')}{option_text('ABC', texts)} [SEP] {row['context']}"
  return [(text, numbered('label', texts)(row))]


def explained_choice(row: Row) -> str:
  """CoS-E: question and its choices."""
  texts = texts_in(row, 'choices')
  return clean(text_field(row, 'question')) + option_text(LETTERS[:len(texts)], texts)


def grouped(key: Callable[[Row], Any], field: str) -> Callable[[Sequence[Row]], list[Row]]:
  """Makes rows -> the first row of each key, in order, with the `rows` of the group.

  Args:
    key: row -> what rows of a group share; None leaves a row out.
    field: name for the list of rows.
  """
  def group(rows: Sequence[Row]) -> list[Row]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
      name = key(row)
      if name is not None:
        groups.setdefault(name, []).append(row)
    return [{**own[0], field: own} for own in groups.values()]
  return group


def members(row: Row) -> list[Row]:
  """The rows of a group of `grouped`; a row of its own otherwise."""
  return list(row.get('rows') or [row])


def multirc_key(row: Row) -> tuple[int, int]:
  """MultiRC: the question that a row's answer belongs to."""
  return inside(row, 'idx', 'paragraph'), inside(row, 'idx', 'question')


def multirc(row: Row) -> list[Line]:
  """MultiRC: question, all its answers, paragraph -> the right answers."""
  own = members(row)
  texts = [flat(text_field(one, 'answer')) for one in own]
  right = [text for one, text in zip(own, texts) if int(text_field(one, 'label')) == 1]
  options = ''.join(f' ({label}) {text}' for label, text in zip(_letters(len(texts)), texts))
  text = f"question: {row['question']}{options} context: {row['paragraph']}"
  return [(flat(text), (' [SEP] '.join(right) or 'NO ANSWER!',))]


def _letters(count: int) -> list[str]:
  """A to Z, then AA, AB and so on."""
  return [LETTERS[i] if i < 26 else LETTERS[i // 26 - 1] + LETTERS[i % 26] for i in range(count)]


def dialogue_text(row: Row) -> str:
  """Empathetic dialogues: situation and context."""
  text = f"{text_field(row, 'prompt')} [SEP] {text_field(row, 'context')}"
  return clean(text.replace('_comma_', ','))


def dialogue_key(row: Row) -> str | None:
  """Empathetic dialogues: rows with the same input belong together; ratings are no dialogue."""
  return None if 'hit:' in text_field(row, 'utterance') else dialogue_text(row)


def dialogue(row: Row) -> list[Line]:
  """Empathetic dialogues: situation and context -> what is said next."""
  own = [one for one in members(row) if dialogue_key(one) is not None]
  texts = tuple(clean(text_field(one, 'utterance').replace('_comma_', ',')) for one in own)
  return [(dialogue_text(row), texts)] if own else []


def concepts(row: Row) -> list[Line]:
  """CommonGen: concepts -> any sentence with them."""
  return [(', '.join(texts_in(row, 'concepts')),
           tuple(text_field(one, 'target') for one in members(row)))]


def moving(row: Row) -> list[Line]:
  """LiMiT: a sentence about motion -> what moves."""
  if str(row.get('motion')).strip().lower() not in ('yes', '1'):
    return []
  names = [str(name) for name in column(row, 'motion_entities', 'entity')]
  return [(text_field(row, 'sentence').strip(), (' [SEP] '.join(names),))]


def majority(words: Sequence[str]) -> Lines:
  """Makes row -> the label that most annotators chose; a tie gives no line (HateXplain)."""
  def lines(row: Row) -> list[Line]:
    labels = column(row, 'annotators', 'label')
    (best, most), *others = collections.Counter(labels).most_common(2)
    if others and others[0][1] == most:
      return []
    word = best if best in words else words[int(best)]
    return [(' '.join(texts_in(row, 'post_tokens')), (word,))]
  return lines


def wellformed(row: Row) -> list[Line]:
  """Queries: rated below 0.4 or above 0.6; those between give no line."""
  rating = float(text_field(row, 'rating'))
  if 0.4 <= rating <= 0.6:
    return []
  answer = 'well-formed' if rating > 0.6 else 'not well-formed'
  return [(text_field(row, 'content').strip(), (answer,))]


def citation(row: Row) -> str:
  """SciCite: the citation, the text around it, the section."""
  text = text_field(row, 'string')
  start, stop = (int(float(text_field(row, name))) for name in ('citeStart', 'citeEnd'))
  return clean(f"{text[start:stop]} [SEP] {text} [SEP] {row.get('sectionName') or ''}")


def levelled(row: Row) -> str:
  """OneStopEnglish: the text without the word that names its level."""
  return text_field(row, 'text').replace('\n', ' ').removeprefix('Intermediate  ')


def biography(row: Row) -> list[Line]:
  """WikiBio: an infobox -> the first sentences of the article."""
  headers = inside(row, 'input_text', 'table', 'column_header')
  contents = inside(row, 'input_text', 'table', 'content')
  if len(headers) != len(contents):
    return []
  cells = ''.join(f'{header}: {flat(str(content))} [n] '
                  for header, content in zip(headers, contents))
  title = flat(str(inside(row, 'input_text', 'context')).strip())
  return [(f'{title} [SEP] {cells}', (flat(text_field(row, 'target_text')),))]


def freebase_names(row: Row) -> tuple[str, ...]:
  """FreebaseQA: the different names of all answers of all parses."""
  def names(value: Any, under: bool) -> list[str]:
    if isinstance(value, str):
      return [value] if under else []
    if isinstance(value, Mapping):
      return [text for key, item in value.items()
              for text in names(item, under or key == 'AnswersName')]
    return [text for item in value or () for text in names(item, under)] if isinstance(
        value, Sequence) else []
  return distinct(names(structured_field(row, 'Parses'), False))


def no_plot(row: Row) -> bool:
  """DuoRC: whether the row has no answer or no plot."""
  return bool(row.get('no_answer')) or _LONG_PLOT in str(row.get('plot') or '')[:200]


def whole_score(row: Row) -> list[Line]:
  """MOCHA: question, context, reference, candidate -> a whole score; others give no line."""
  score = float(text_field(row, 'score'))
  if not score.is_integer():
    return []
  text = (f"question: {row['question']} [SEP] context: {row['context']} [SEP] reference: "
          f"{row['reference']} [SEP] candidate{row['candidate']}")
  return [(flat(text), (str(int(score)),))]
