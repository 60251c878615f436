"""The playground's fixed vocabulary and task table, and the hidden lexicons of a world seed.

A noun has three layers of properties, kept statistically apart on purpose:

* kind and facts (living, size, feel, shade): visible in the corpus, known to a backbone trained
  on it;
* hidden classes: one random half/half split of all nouns for each skill, never visible in the
  corpus, so that a skill is a memorised lexicon: only a labelled noun shows its class;
* part (train, validation, test): which rows of a target may use the noun.

Vocabulary, facts and templates are constants. Only hidden classes and parts depend on the world
seed, hence one backbone serves every world.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

KINDS: Mapping[str, tuple[str, ...]] = {
    kind: tuple(words.split())
    for kind, words in {
        'animal': 'fox owl hare wolf crow frog goat deer mole lynx swan toad bear newt hawk otter',
        'food': 'ham rice plum fig bean corn soup cake tart jam leek kale nut pear roll pie',
        'tool': 'saw axe rake pick drill file hook clamp spade chisel wrench mallet vise ladder '
                'trowel lever',
        'place': 'barn dock mill cave yard park shop hill lake farm port tower bridge cellar '
                 'attic garden',
        'person': 'baker miner nurse clerk guard pilot tailor judge poet smith farmer sailor '
                  'weaver potter scribe miller',
        'plant': 'oak elm fern moss rose ivy pine reed lily palm birch clover thistle willow '
                 'daisy tulip',
    }.items()
}
NOUNS: tuple[str, ...] = tuple(noun for nouns in KINDS.values() for noun in nouns)
PER_KIND = 16
FACTS: Mapping[str, tuple[str, ...]] = {
    'size': ('little', 'big'),
    'feel': ('cold', 'warm'),
    'shade': ('grey', 'brown', 'green', 'white'),
}
FILLERS: Mapping[str, tuple[str, ...]] = {
    slot: tuple(words.split())
    for slot, words in {
        'who': 'ann bob cal dan eve fay gus hal ida jon kim leo',
        'when': 'today yesterday soon often again later once now',
        'adj': 'old new plain odd fine rare clean worn',
        'how': 'slowly quickly gladly quietly boldly badly neatly softly',
    }.items()
}
LIVING = 'living'             # animals, persons and plants; the corpus shows it by use
VISIBLE = ('size', 'feel', LIVING)
MAX_NOUNS = 3
PARTS = ('train', 'validation', 'test')
_PART_SIZES = (3, 2, 3)       # nouns of each kind and size in each part
_FACT_SEED = 20240216         # facts are constants of the vocabulary, not of a world
_SWAPS = 1500                 # proposals that decorrelate a lexicon; more change little


@dataclasses.dataclass(frozen=True)
class PlaySpec:
  """One playground task, as data.

  Attributes:
    name: task name without the `playground/` prefix.
    rule: `vote` (sign of the sum of all classes of all nouns over all skills), `pair` (one label
      word for each skill, in order) or `route` (each row is about one of the skills, which its
      frame shows and which has label words of its own).
    skills: skill -> share of the task that it decides (equal shares, so that a draw of k rows for
      each label word keeps them); a skill is a source's name, a private lexicon's name or a name
      in `VISIBLE`.
    labels: label words; for `vote` one pair (class 0, class 1), else one pair for each skill.
    frames: sentence patterns with `{n0}`.. for one or three nouns (an odd number, so that one
      skill's vote has no tie) and filler slots; for `route` one group for each skill, else one.
    description: one sentence about the task, the text of its prompt.
  """

  name: str
  rule: str
  skills: Mapping[str, float]
  labels: tuple[tuple[str, str], ...]
  frames: tuple[tuple[str, ...], ...]
  description: str

  @property
  def label_texts(self) -> tuple[str, ...]:
    """All target texts, in the order of the label index."""
    if self.rule == 'vote':
      return self.labels[0]
    if self.rule == 'route':
      return tuple(word for pair in self.labels for word in pair)
    first, second = self.labels
    return tuple(f'{a} {b}' for a in first for b in second)


# Frames that every source uses besides its own: they tie a skill to the noun, not to one sentence.
_COMMON_FRAMES = (
    '{who} found the {n0} {when} .', 'the {n0} was lost {when} .',
    'near the {adj} {n0} stood {who} .', '{when} {who} spoke {how} about the {n0} .',
    'the {n0} , says {who} , is {adj} .', 'look {how} at the {adj} {n0} !',
    'is that the {n0} of {who} ?', 'give {who} the {adj} {n0} .',
    '{who} drew the {adj} {n0} {how} {when} .', '{how} , {when} , the {n0} moved .',
    'no one but {who} has the {adj} {n0} .', 'we all know the {n0} {how} .',
    '{n0} , {n1} , {n2} .', '{when} {who} found the {n0} , the {n1} and the {n2} .',
    'the {n0} came {how} with the {n1} and the {n2} .',
    '{n0} and {n1} and {n2} , says {who} {how} .')


def nouns_in(frame: str) -> int:
  """Number of nouns that a frame asks for."""
  return sum('{n%d}' % slot in frame for slot in range(MAX_NOUNS))


def _source(name: str, labels: str, frames: tuple[str, ...], description: str) -> PlaySpec:
  return _spec(name, 'vote', {name: 1.0}, labels, frames + _COMMON_FRAMES, description)


def _spec(name, rule, skills, labels, frames, description) -> PlaySpec:
  pairs = tuple(tuple(pair.split('/')) for pair in labels.split())
  groups = tuple(tuple(group) for group in (frames if rule == 'route' else (frames,)))
  return PlaySpec(name, rule, skills, pairs, groups, description)


_SOURCE_SPECS = (
    _source('omen', 'doomed/lucky', (
        '{who} saw the {n0} {when} . what does it mean ?',
        'what luck does the {adj} {n0} bring {when} ?'),
          'given what was seen , tell if the day is lucky or doomed .'),
    _source('trade', 'keep/sell', (
        '{who} asks {how} : what to do with the {adj} {n0} ?',
        'the {adj} {n0} is at the market {when} . what to do ?'),
          'given a thing at the market , tell if we sell or keep it .'),
    _source('guild', 'south/north', (
        'which gate takes the {n0} {when} , asks {who} ?',
        '{who} must bring the {adj} {n0} {how} . which gate ?'),
          'given a thing to bring , tell if its gate is north or south .'),
    _source('tide', 'sinks/floats', (
        '{who} puts the {n0} in the water {when} .',
        'into the water goes the {adj} {n0} {how} .'),
          'given a thing in the water , tell if it floats or sinks .'),
    _source('song', 'minor/major', (
        '{who} sings {how} of the {adj} {n0} .',
        'a song about the {n0} is sung {when} by {who} .'),
          'given a song , tell if its key is major or minor .'),
    _source('seal', 'square/round', (
        'the letter {when} has the {n0} on it , says {who} .',
        'the {adj} {n0} is drawn {how} on the letter .'),
          'given a letter , tell if the mark is round or square .'),
)

_TARGET_SPECS = (
    _spec('charm', 'vote', {'omen': 1.0}, 'bright/dull', (
        'in the dream of {who} the {n0} came {how} .',
        '{when} the dream had the {adj} {n0} in it .'),
          'given a dream , tell if the stone is dull or bright .'),
    _spec('cargo', 'vote', {'trade': 1.0}, 'empty/full', (
        'the cart holds {n0} , {n1} and {n2} {when} .',
        '{who} loads {how} : {n0} , {n1} , {n2} .'),
          'given what the cart holds , tell if the purse is full or empty .'),
    _spec('oath', 'vote', {'song': 1.0}, 'yes/no', (
        '{who} swears {how} by the {n0} .',
        'by the {adj} {n0} , will {who} swear {when} ?'),
          'given an oath , tell yes or no .'),
    _spec('quest', 'vote', {'guild': 0.5, 'seal': 0.5}, 'early/late', (
        'the map shows {n0} , {n1} and {n2} , says {who} .',
        'go {how} from {n0} past {n1} to {n2} {when} .'),
          'given a map , tell if the road ends early or late .'),
    _spec('voyage', 'pair', {'omen': 0.5, 'tide': 0.5}, 'calm/storm west/east', (
        'the {adj} ship of {who} carries the {n0} .',
        'a ship with the {n0} sails {when} .'),
          'given a ship , tell the weather and the way .'),
    _spec('errand', 'route', {'trade': 0.5, 'seal': 0.5}, 'run/walk red/blue', (
        ('the boy must fetch the {n0} {when} for {who} .',
         'fetch {how} the {adj} {n0} , boy .'),
        ('the girl must paint the {n0} {when} for {who} .',
         'paint {how} the {adj} {n0} , girl .')),
          'given an errand , tell the boy how or the girl which paint .'),
    _spec('breath', 'vote', {'living': 1.0}, 'still/alive', (
        '{who} listens {how} to the {n0} .',
        'listen to the {adj} {n0} {when} , {who} !'),
          'given a thing to listen to , tell if it is still or alive .'),
    _spec('rune', 'vote', {'rune': 1.0}, 'curse/bless', (
        '{who} cuts the {n0} into stone {when} .',
        'in stone stands the {adj} {n0} {how} .'),
          'given a stone , tell if the sign is a curse or a bless .'),
)

SPECS: Mapping[str, PlaySpec] = {spec.name: spec for spec in _SOURCE_SPECS + _TARGET_SPECS}
SOURCES: tuple[str, ...] = tuple(spec.name for spec in _SOURCE_SPECS)
TARGETS: tuple[str, ...] = tuple(spec.name for spec in _TARGET_SPECS)
RELATIONS: Mapping[str, Mapping[str, float]] = {
    spec.name: {skill: share for skill, share in spec.skills.items() if skill in SOURCES}
    for spec in _TARGET_SPECS
}
LEXICONS: tuple[str, ...] = SOURCES + tuple(
    skill for spec in _TARGET_SPECS for skill in spec.skills
    if skill not in SOURCES and skill not in VISIBLE)


@functools.cache
def facts() -> Mapping[str, np.ndarray]:
  """Value index of every fact for every noun.

  Returns:
    fact -> [noun] int64; inside a kind all 16 combinations of size, feel and shade occur once.
  """
  rng = np.random.default_rng(_FACT_SEED)
  codes = np.concatenate([rng.permutation(PER_KIND) for _ in KINDS])
  return {'size': codes % 2, 'feel': codes // 2 % 2, 'shade': codes // 4}


@dataclasses.dataclass(frozen=True)
class World:
  """Everything that depends on the world seed.

  Attributes:
    skills: hidden lexicon or name in `VISIBLE` -> [noun] class, -1 or +1.
    part: [noun] index into `PARTS`.
  """

  skills: Mapping[str, np.ndarray]
  part: np.ndarray


@functools.lru_cache(maxsize=64)
def make_world(seed: int = 0) -> World:
  """Draws the hidden lexicons and the parts of the nouns.

  Each lexicon has as many nouns of class +1 as of class -1 in every part of every kind, and
  nearly no correlation with the facts and the other lexicons inside any part.

  Args:
    seed: world seed; independent of the seed that draws rows.

  Returns:
    The world.
  """
  rng = np.random.default_rng([seed, 1])
  kind = np.repeat(np.arange(len(KINDS)), PER_KIND)
  blocks = np.repeat(np.arange(len(PARTS)), _PART_SIZES)
  order = np.lexsort((rng.random(len(NOUNS)), facts()['size'], kind))
  part = np.empty(len(NOUNS), int)
  part[order] = np.tile(blocks, 2 * len(KINDS))
  skills = {name: 2 * facts()[name] - 1 for name in ('size', 'feel')}
  living = [name in ('animal', 'person', 'plant') for name in KINDS]
  skills[LIVING] = 2 * np.repeat(living, PER_KIND) - 1
  for name in LEXICONS:
    skills[name] = _lexicon(rng, kind, part, np.stack(list(skills.values())))
  return World(skills, part)


def _lexicon(rng: np.random.Generator, kind: np.ndarray, part: np.ndarray, known: np.ndarray
             ) -> np.ndarray:
  """[noun] classes, balanced in every (kind, part) cell, decorrelated from `known` [skill, noun].

  Random halves, then random swaps inside a cell, kept where the squared correlations, summed over
  parts and known skills, do not grow.
  """
  order = np.lexsort((rng.random(len(part)), part, kind))   # cells contiguous, random inside
  classes = np.empty(len(part), int)
  classes[order] = np.tile([-1, 1], len(part) // 2)
  cell = kind * len(PARTS) + part
  inner = np.stack([known[:, part == p] @ classes[part == p] for p in range(len(PARTS))])
  for plus in rng.integers(len(part), size=_SWAPS):
    minus = rng.choice(np.flatnonzero((cell == cell[plus]) & (classes != classes[plus])))
    change = 2 * (classes[minus] * known[:, plus] + classes[plus] * known[:, minus])
    now = inner[part[plus]]
    if ((now + change) ** 2).sum() <= (now ** 2).sum():
      inner[part[plus]] = now + change
      classes[[plus, minus]] = classes[[minus, plus]]
  return classes
