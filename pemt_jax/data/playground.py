"""The playground: a generated world of text tasks whose relations are known.

Rows, task objects and unlabelled text over the vocabulary and task table of `playground_world`.
Every function is a pure function of its arguments; rows depend on a draw seed and a world seed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pemt_jax import errors
from pemt_jax.data import playground_world as world_lib
from pemt_jax.data import tasks_base, templates
from pemt_jax.data.playground_world import (
    FACTS, FILLERS, KINDS, LABELS, LIVING, NOUNS, PARTS, RELATIONS, SOURCES, SPECS, TARGETS,
    PlaySpec)

__all__ = ['PREFIX', 'RELATIONS', 'SOURCES', 'TARGETS', 'SPECS', 'Options', 'named', 'rows',
           'oracle_label', 'get_task', 'corpus', 'vocabulary']

PREFIX = 'playground/'
_QUESTION_SHARE = 0.6      # share of the corpus lines that carry a question
_FACT_TRUTH = 0.9          # share of the stated facts that are true, the others are random


@dataclasses.dataclass(frozen=True)
class Options:
  """Sizes and difficulty of a draw.

  Attributes:
    world: seed of the hidden lexicons and of the parts of the nouns.
    source_train: rows of a source's train split.
    target_train: rows of a target's train split, from which few-shot draws choose.
    validation: rows of the validation split.
    test: rows of the test split.
    noise: share of the train rows whose label is replaced by another one, in [0, 1).
    seen: share of a target's validation and test rows whose nouns are train nouns, in [0, 1].
  """

  world: int = 0
  source_train: int = 4000
  target_train: int = 512
  validation: int = 200
  test: int = 400
  noise: float = 0.0
  seen: float = 0.25

  def __post_init__(self):
    """Checks values.

    Raises:
      UserError: a value is out of range.
    """
    for field in ('source_train', 'target_train', 'validation', 'test'):
      if getattr(self, field) < 1:
        raise errors.UserError(
            f'playground option {field} is {getattr(self, field)}; give a number of at least 1.')
    if self.world < 0:
      raise errors.UserError(f'playground option world is {self.world}; give a seed of at least 0.')
    for field, allowed in (('noise', 0 <= self.noise < 1), ('seen', 0 <= self.seen <= 1)):
      if not allowed:
        raise errors.UserError(
            f'playground option {field} is {getattr(self, field)}; give a share from 0 to '
            f'{"below 1" if field == "noise" else 1}.')


def named(name: str) -> tuple[PlaySpec, dict[str, Any]]:
  """Splits a task name into its specification and the options that it states.

  Args:
    name: `charm`, `playground/charm` or with options `playground/charm@world=1,noise=0.1`.

  Raises:
    UserError: no such task or option, or a value that is no number.
  """
  short, _, stated = name.removeprefix(PREFIX).partition('@')
  if short not in SPECS:
    raise errors.UserError(
        f"there is no playground task '{name}'; the names are {', '.join(SPECS)}.")
  types = {field.name: type(field.default) for field in dataclasses.fields(Options)}
  options = {}
  for item in filter(None, stated.split(',')):
    key, _, value = item.partition('=')
    try:
      options[key] = types[key](value)
    except (KeyError, ValueError):
      raise errors.UserError(
          f"playground task '{name}' has the option '{item}'; write key=number with one of the "
          f"keys {', '.join(types)}.") from None
  return SPECS[short], options


def rows(name: str, split: str, seed: int = 0, options: Options | None = None
         ) -> list[dict[str, Any]]:
  """Draws the rows of one split.

  All labels are equally frequent (to one row; before noise). Texts are unique over the splits of a
  task. A source's rows use all nouns; a target's train rows use train nouns and its other rows
  nouns of their own part, apart from the `seen` share.

  Args:
    name: task name, with or without prefix; options stated in it win over `options`.
    split: `train`, `validation` or `test`.
    seed: draw seed.
    options: sizes, noise, world.

  Returns:
    Rows with the fields `text`, `label` (target text) and the latent fields `clean` (label before
    noise), `label_id` (index of `clean` in `LABELS`), `nouns` (list of words), `part`
    (index into the task's parts) and `seen` (1 if made of train nouns).

  Raises:
    UserError: unknown task or split, or more rows wanted than different texts exist.
  """
  if split not in PARTS:
    raise errors.UserError(
        f"the playground has no split '{split}'; choose one of {', '.join(PARTS)}.")
  spec, stated = named(name)
  drawn = _all_rows(spec.name, seed, dataclasses.replace(options or Options(), **stated))
  return [dict(row, nouns=list(row['nouns'])) for row in drawn[split]]


def oracle_label(name: str, row: Mapping[str, Any], tables: Mapping[str, np.ndarray]
                 ) -> str | None:
  """The label that given skill tables assign to a row.

  Args:
    name: task name.
    row: a row of `rows`.
    tables: skill of the task -> [noun] class (-1, 0 = unknown, +1), possibly another one's table.

  Returns:
    The target text, or None where the tables leave a tie.
  """
  spec = named(name)[0]
  nouns = [NOUNS.index(noun) for noun in row['nouns']]
  index = np.array([nouns + [-1] * (world_lib.MAX_NOUNS - len(nouns))])
  label = int(_labels(spec, index, np.array([row['part']]), tables)[0])
  return None if label < 0 else LABELS[label]


def _labels(spec: PlaySpec, nouns: np.ndarray, parts: np.ndarray, tables) -> np.ndarray:
  """Label index of each row, -1 for a tie; nouns: [row, slot], -1 where empty; parts: [row]."""
  void = -np.ones(len(NOUNS), int)
  classes = [sum((tables[skill] for skill in part.skills), 0) if part.skills else void
             for part in spec.parts]
  score = np.stack([np.append(own, 0)[nouns].sum(1) for own in classes])
  score = score[parts, np.arange(len(parts))]
  return np.where(score == 0, -1, (score > 0).astype(int))


@functools.lru_cache(maxsize=256)
def _all_rows(name: str, seed: int, options: Options) -> dict[str, list[dict[str, Any]]]:
  """All splits of one task, so that no text occurs in two of them."""
  spec = SPECS[name]
  world = world_lib.make_world(options.world)
  rng = np.random.default_rng([seed, options.world, list(SPECS).index(name), 2])
  used: set[str] = set()
  out = {}
  for split in PARTS:
    size = getattr(options, split if split != 'train' else
                   'source_train' if name in SOURCES else 'target_train')
    seen = 1.0 if split == 'train' else options.seen
    parts = [('train', round(size * seen)), (split, size - round(size * seen))]
    if name in SOURCES:
      parts = [(None, size)]
    drawn = [row for part, count in parts if count
             for row in _draw(spec, world, part, count, (rng, used))]
    if split == 'train':
      drawn = _with_noise(drawn, options.noise, np.random.default_rng([seed, 4]))
    out[split] = [drawn[i] for i in rng.permutation(len(drawn))]
  return out


def _draw(spec: PlaySpec, world, part: str | None, count: int, state) -> list[dict[str, Any]]:
  """`count` rows with new texts over the nouns of `part` (None: all), labels balanced."""
  rng, used = state
  pool = np.arange(len(NOUNS))
  if part is not None:
    pool = pool[world.part == PARTS.index(part)]
  quota = _quota(spec, count)
  out: list[dict[str, Any]] = []
  while True:
    before = len(out)
    frames, parts, nouns = _candidates(spec, pool, 2 * count + 64, rng)
    labels = _labels(spec, nouns, parts, world.skills)
    for i in np.flatnonzero(labels >= 0):
      words = tuple(NOUNS[noun] for noun in nouns[i] if noun >= 0)
      cell = parts[i], labels[i]
      text = _fill(frames[i], words, rng) if quota[cell] else ''
      if not text or text in used:
        continue
      used.add(text)
      quota[cell] -= 1
      clean = LABELS[labels[i]]
      out.append({'text': text, 'label': clean, 'clean': clean, 'label_id': int(labels[i]),
                  'nouns': words, 'part': int(parts[i]), 'seen': int(part == 'train')})
    if not quota.any():
      return out
    if len(out) == before:
      break
  raise errors.UserError(
      f"playground task '{spec.name}' has fewer than {count} different texts for one split; ask "
      'for fewer rows.')


def _candidates(spec: PlaySpec, pool: np.ndarray, size: int, rng: np.random.Generator):
  """Random frames (list), part index [row] and distinct nouns [row, slot], -1 where unused."""
  part_of = np.repeat(np.arange(len(spec.parts)), [len(part.frames) for part in spec.parts])
  chosen = rng.integers(len(part_of), size=size)
  nouns = pool[rng.random((size, len(pool))).argsort(1)[:, :world_lib.MAX_NOUNS]]
  filled = np.array([world_lib.nouns_in(frame) for frame in spec.frames])[chosen]
  return ([spec.frames[i] for i in chosen], part_of[chosen],
          np.where(np.arange(world_lib.MAX_NOUNS) < filled[:, None], nouns, -1))


def _quota(spec: PlaySpec, count: int) -> np.ndarray:
  """[part, label] rows wanted: parts by their shares, both labels equally often in all."""
  asking = sum(part.share for part in spec.parts if part.skills)
  yes = [0.5 * part.share / asking if part.skills else 0.0 for part in spec.parts]
  cells = np.array([(part.share - own, own) for part, own in zip(spec.parts, yes)])
  edges = np.round(np.cumsum(cells.ravel()) * count).astype(int)
  return np.diff(edges, prepend=0).reshape(cells.shape)


def _fill(frame: str, nouns: Sequence[str], rng: np.random.Generator) -> str:
  """Puts nouns and random filler words into a frame."""
  slots = {slot: words[rng.integers(len(words))] for slot, words in FILLERS.items()}
  return frame.format(**slots, **{f'n{i}': noun for i, noun in enumerate(nouns)})


def _with_noise(drawn, noise: float, rng) -> list[dict[str, Any]]:
  """Turns the label of round(noise * rows) rows."""
  for i in rng.permutation(len(drawn))[:round(noise * len(drawn))]:
    drawn[i] = dict(drawn[i], label=LABELS[1 - drawn[i]['label_id']])
  return drawn


def get_task(name: str) -> tasks_base.Task:
  """The task object of `playground/<task>`, options in the name included.

  Raises:
    UserError: no such task or option.
  """
  spec, stated = named(name)
  Options(**stated)   # a value out of range ends here, not in the middle of a run
  return tasks_base.Task(
      name=PREFIX + name.removeprefix(PREFIX), benchmark=PREFIX.rstrip('/'), template=_template,
      metrics=('accuracy',), description=spec.description, label_words=LABELS,
      splits={split: split for split in PARTS}, target_tokens=2)


def _template(row: templates.Row) -> list[templates.Example]:
  latent = {key: row[key] for key in ('clean', 'nouns', 'part', 'seen') if key in row}
  return [templates.Example(
      templates.text_field(row, 'text'), templates.text_field(row, 'label'), latent)]


def vocabulary() -> tuple[str, ...]:
  """All words of the playground, sorted."""
  texts = [word for words in (*KINDS.values(), *FILLERS.values(), *FACTS.values())
           for word in words]
  for spec in SPECS.values():
    texts += [spec.description, *spec.frames]
  texts += [*LABELS, *(question for question, _ in _questions())]
  texts += [pattern for patterns in _WORLD_FRAMES for pattern in patterns]
  words = {word for text in texts for word in text.split() if not word.startswith('{')}
  return tuple(sorted(words))


_WORLD_FRAMES: tuple[tuple[str, ...], ...] = (
    ('the {size} {n} is {feel} and {shade} .', 'this {n} is {size} , that {n} is {feel} .',
     'the {shade} {n} is {size} . the {n} is {feel} .', 'is the {n} {size} ? the {n} is {feel} .'),
    ('the {animal} eats the {food} near the {place} . the {animal} likes the {food} .',
     '{who} gave the {animal} to the {person} {when} . the {person} has the {animal} .',
     'the {person} works {how} with the {tool} at the {place} . the {tool} is {adj} .',
     'the {plant} grows by the {place} . {who} saw the {plant} {when} .',
     'the {person} cooks the {food} {how} . {who} eats the {food} .',
     'the {animal} sleeps under the {plant} . {when} the {animal} left the {plant} .'),
)


def corpus(seed: int, sentences: int) -> list[str]:
  """Text for a backbone's pretraining.

  Lines state facts (mostly true), tell small scenes, or ask: a question about a visible property
  before a sentence of some task, with its answer behind a tab, or a task's own question alone. No
  label of a task and no world seed enters.

  Args:
    seed: draw seed.
    sentences: number of lines.

  Returns:
    Lines of words separated by blanks; an answer is separated by a tab.
  """
  rng = np.random.default_rng([seed, 3])
  specs = list(SPECS.values())
  out = []
  for _ in range(sentences):
    if rng.random() < _QUESTION_SHARE:
      out.append(_question_line(_pick(rng, specs), rng))
    elif rng.random() < 0.5:
      out.append(_fact_line(rng))
    else:
      words = {kind: _pick(rng, nouns) for kind, nouns in KINDS.items()}
      words |= {slot: _pick(rng, fillers) for slot, fillers in FILLERS.items()}
      out.append(_pick(rng, _WORLD_FRAMES[1]).format(**words))
  return out


def _pick(rng: np.random.Generator, items: Sequence):
  return items[rng.integers(len(items))]


def _question_line(spec: PlaySpec, rng: np.random.Generator) -> str:
  """A task's own question alone, or a visible one before a frame with random nouns, answered."""
  if rng.random() < 0.1:
    return spec.description
  frame = _pick(rng, spec.frames)
  nouns = rng.permutation(len(NOUNS))[:world_lib.nouns_in(frame)]
  text = _fill(frame, [NOUNS[i] for i in nouns], rng)
  question, classes = _pick(rng, _questions())
  said = classes[nouns].sum() > 0
  return f'{question} {text}\t{LABELS[int(said)]}'   # a tab makes it a text-to-text line


@functools.cache
def _questions() -> list[tuple[str, np.ndarray]]:
  """All questions about visible properties, with [noun] classes -1 or +1."""
  found = {LIVING: world_lib.make_world(0).skills[LIVING] > 0}
  for fact, values in FACTS.items():
    found |= {value: world_lib.facts()[fact] == i for i, value in enumerate(values)}
  kind = np.repeat(list(KINDS), world_lib.PER_KIND)
  found |= {name: kind == name for name in KINDS}
  return [(f'is it {value} ?', 2 * true.astype(int) - 1) for value, true in found.items()]


def _fact_line(rng: np.random.Generator) -> str:
  """A statement about one noun; a share `_FACT_TRUTH` of its facts is true, the rest random."""
  noun = int(rng.integers(len(NOUNS)))
  said = {}
  for fact, values in FACTS.items():
    true = values[world_lib.facts()[fact][noun]]
    said[fact] = true if rng.random() < _FACT_TRUTH else _pick(rng, values)
  return _pick(rng, _WORLD_FRAMES[0]).format(n=NOUNS[noun], **said)
