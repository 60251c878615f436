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
    FACTS, FILLERS, KINDS, NOUNS, PARTS, RELATIONS, SOURCES, SPECS, TARGETS, PlaySpec)

__all__ = ['PREFIX', 'RELATIONS', 'SOURCES', 'TARGETS', 'SPECS', 'Options', 'named', 'rows',
           'oracle_label', 'get_task', 'corpus', 'vocabulary']

PREFIX = 'playground/'
_TASK_TEXT_SHARE = 0.5     # share of the corpus lines that carry a task's frame and label words
_FACT_TRUTH = 0.9          # share of the corpus statements about a noun that are true


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
    noise), `label_id` (index of `clean` in `label_texts`), `nouns` (list of words), `skill` (of
    the row for `route`, else all skills joined by `+`) and `seen` (1 if made of train nouns).

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
  part = np.array([list(spec.skills).index(row['skill']) if spec.rule == 'route' else 0])
  label = int(_labels(spec, index, part, tables)[0])
  return None if label < 0 else spec.label_texts[label]


def _labels(spec: PlaySpec, nouns: np.ndarray, part: np.ndarray, tables) -> np.ndarray:
  """Label index of each row, -1 for a tie. nouns: [row, slot], -1 empty; part: [row] of a route."""
  score = np.stack([np.append(tables[skill], 0)[nouns].sum(1) for skill in spec.skills])
  bits = (score > 0).astype(int)                                           # both [skill, row]
  if spec.rule == 'vote':
    total = score.sum(0)
    return np.where(total == 0, -1, (total > 0).astype(int))
  if spec.rule == 'pair':
    return np.where((score == 0).any(0), -1, 2 * bits[0] + bits[1])
  row = np.arange(len(part))
  return np.where(score[part, row] == 0, -1, 2 * part + bits[part, row])


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
      drawn = _with_noise(spec, drawn, options.noise, np.random.default_rng([seed, 4]))
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
    frames, route, nouns = _candidates(spec, pool, 2 * count + 64, rng)
    labels = _labels(spec, nouns, route, world.skills)
    for i in np.flatnonzero(labels >= 0):
      words = tuple(NOUNS[noun] for noun in nouns[i] if noun >= 0)
      text = _fill(frames[i], words, rng) if quota[labels[i]] else ''
      if not text or text in used:
        continue
      used.add(text)
      quota[labels[i]] -= 1
      clean = spec.label_texts[labels[i]]
      skill = list(spec.skills)[route[i]] if spec.rule == 'route' else '+'.join(spec.skills)
      out.append({'text': text, 'label': clean, 'clean': clean, 'label_id': int(labels[i]),
                  'nouns': words, 'skill': skill, 'seen': int(part == 'train')})
    if not quota.any():
      return out
    if len(out) == before:
      break
  raise errors.UserError(
      f"playground task '{spec.name}' has fewer than {count} different texts for one split; ask "
      'for fewer rows.')


def _candidates(spec: PlaySpec, pool: np.ndarray, size: int, rng: np.random.Generator):
  """Random frames (list), skill index [row] and distinct nouns [row, slot], -1 where unused."""
  group = rng.integers(len(spec.frames), size=size)
  frames = [spec.frames[g][rng.integers(len(spec.frames[g]))] for g in group]
  nouns = pool[rng.random((size, len(pool))).argsort(1)[:, :world_lib.MAX_NOUNS]]
  filled = np.array([world_lib.nouns_in(frame) for frame in frames])
  return frames, group, np.where(np.arange(world_lib.MAX_NOUNS) < filled[:, None], nouns, -1)


def _quota(spec: PlaySpec, count: int) -> np.ndarray:
  """[label] rows wanted of each label: equal inside a skill, by share over a route's skills."""
  share = np.ones(len(spec.label_texts))
  if spec.rule == 'route':
    share = np.repeat(list(spec.skills.values()), 2)
  edges = np.round(np.cumsum(share) / share.sum() * count).astype(int)
  return np.diff(edges, prepend=0)


def _fill(frame: str, nouns: Sequence[str], rng: np.random.Generator) -> str:
  """Puts nouns and random filler words into a frame."""
  slots = {slot: words[rng.integers(len(words))] for slot, words in FILLERS.items()}
  return frame.format(**slots, **{f'n{i}': noun for i, noun in enumerate(nouns)})


def _with_noise(spec: PlaySpec, drawn, noise: float, rng) -> list[dict[str, Any]]:
  """Replaces the label of round(noise * rows) rows by another label of the same skill."""
  texts = spec.label_texts
  for i in rng.permutation(len(drawn))[:round(noise * len(drawn))]:
    label_id = drawn[i]['label_id']
    first = 2 * (label_id // 2) if spec.rule == 'route' else 0
    span = 2 if spec.rule == 'route' else len(texts)
    other = first + (label_id - first + 1 + rng.integers(span - 1)) % span
    drawn[i] = dict(drawn[i], label=texts[other])
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
      metrics=('accuracy',), description=spec.description, label_words=spec.label_texts,
      splits={split: split for split in PARTS}, target_tokens=3)


def _template(row: templates.Row) -> list[templates.Example]:
  latent = {key: row[key] for key in ('clean', 'nouns', 'skill', 'seen') if key in row}
  return [templates.Example(
      templates.text_field(row, 'text'), templates.text_field(row, 'label'), latent)]


def vocabulary() -> tuple[str, ...]:
  """All words of the playground, sorted."""
  texts = [word for words in (*KINDS.values(), *FILLERS.values(), *FACTS.values())
           for word in words]
  for spec in SPECS.values():
    texts += [spec.description, *spec.label_texts]
    texts += [frame for group in spec.frames for frame in group]
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
  """Unlabelled text for span corruption.

  Lines state facts (mostly true), tell small scenes, name label words at random after a task's
  frame, or are descriptions. Nouns and label words are drawn independently of each other and of
  every hidden class: no world seed enters.

  Args:
    seed: draw seed.
    sentences: number of lines.

  Returns:
    Lines of words separated by blanks.
  """
  rng = np.random.default_rng([seed, 3])
  labels = sorted({word for spec in SPECS.values() for pair in spec.labels for word in pair})
  specs = list(SPECS.values())
  out = []
  for _ in range(sentences):
    if rng.random() < _TASK_TEXT_SHARE:
      out.append(_task_line(_pick(rng, specs), labels, rng))
    elif rng.random() < 0.5:
      out.append(_fact_line(rng))
    else:
      words = {kind: _pick(rng, nouns) for kind, nouns in KINDS.items()}
      words |= {slot: _pick(rng, fillers) for slot, fillers in FILLERS.items()}
      out.append(_pick(rng, _WORLD_FRAMES[1]).format(**words))
  return out


def _pick(rng: np.random.Generator, items: Sequence):
  return items[rng.integers(len(items))]


def _task_line(spec: PlaySpec, labels: Sequence[str], rng: np.random.Generator) -> str:
  """A frame with random nouns and a random label word of any task, or a description."""
  if rng.random() < 0.1:
    return spec.description
  frame = _pick(rng, [frame for group in spec.frames for frame in group])
  nouns = [NOUNS[i] for i in rng.permutation(len(NOUNS))[:world_lib.MAX_NOUNS]]
  return f'{_fill(frame, nouns, rng)} {_pick(rng, labels)} {_pick(rng, labels)}'


def _fact_line(rng: np.random.Generator) -> str:
  """A statement about one noun; each fact is true with probability `_FACT_TRUTH`."""
  noun = int(rng.integers(len(NOUNS)))
  said = {}
  for fact, values in FACTS.items():
    true = values[world_lib.facts()[fact][noun]]
    said[fact] = true if rng.random() < _FACT_TRUTH else _pick(rng, values)
  return _pick(rng, _WORLD_FRAMES[0]).format(n=NOUNS[noun], **said)

