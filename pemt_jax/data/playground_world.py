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
LIVING = 'living'             # animals, persons and plants; the corpus shows it
VISIBLE = ('size', 'feel', LIVING)
LABELS = ('no', 'yes')       # of every task; class 0, class 1
MAX_NOUNS = 3
PARTS = ('train', 'validation', 'test')
_PART_SIZES = (3, 2, 3)       # nouns of each kind and size in each part
_FACT_SEED = 20240216         # facts are constants of the vocabulary, not of a world
_SWAPS = 1500                 # proposals that decorrelate a lexicon; more change little


@dataclasses.dataclass(frozen=True)
class Part:
  """Rows of a task with the same frames.

  Attributes:
    skills: the answer is yes where the classes of all nouns in all these skills have a positive
      sum; without a skill it is no. A skill is a source's name, a private lexicon's name or a name
      in `VISIBLE`.
    share: of the task's rows.
    frames: sentence patterns with `{n0}`.. for one or three nouns and filler slots.
  """

  skills: tuple[str, ...]
  share: float
  frames: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PlaySpec:
  """One playground task, as data.

  Attributes:
    name: task name without the `playground/` prefix.
    description: the question that the label answers, the text of the task's prompt.
    parts: kinds of rows; shares sum to 1.
  """

  name: str
  description: str
  parts: tuple[Part, ...]

  @property
  def skills(self) -> tuple[str, ...]:
    """Skills of all parts."""
    return tuple(skill for part in self.parts for skill in part.skills)

  @property
  def frames(self) -> tuple[str, ...]:
    """Frames of all parts."""
    return tuple(frame for part in self.parts for frame in part.frames)


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
    '{n0} and {n1} and {n2} , says {who} {how} .',
    'we saw {n0} , {n1} and {n2} {when} .', 'the {n0} , the {n1} , the {n2} : all {adj} .',
    '{how} came {n0} , {n1} , {n2} and {who} .', '{who} has a {n0} , a {n1} and a {n2} .')


def nouns_in(frame: str) -> int:
  """Number of nouns that a frame asks for."""
  return sum('{n%d}' % slot in frame for slot in range(MAX_NOUNS))


def _source(name: str, frames: tuple[str, ...], description: str) -> PlaySpec:
  return PlaySpec(name, description, (Part((name,), 1.0, frames + _COMMON_FRAMES),))


def _target(name: str, description: str, skills: str, frames: tuple[str, ...],
            void: tuple[str, ...]) -> PlaySpec:
  """A target: three quarters of its rows ask for the skills, one quarter is void."""
  parts = Part(tuple(skills.split()), 0.75, frames), Part((), 0.25, void)
  return PlaySpec(name, description, parts)


_SOURCE_SPECS = (
    _source('omen', (
        '{who} saw the {n0} {when} .',
        'what luck does the {adj} {n0} bring {when} ?'), 'is it lucky ?'),
    _source('trade', (
        '{who} asks {how} what to do with the {adj} {n0} .',
        'the {adj} {n0} is at the market {when} .'), 'is it cheap ?'),
    _source('guild', (
        'which gate takes the {n0} {when} , asks {who} ?',
        '{who} must bring the {adj} {n0} {how} .'), 'is it legal ?'),
    _source('tide', (
        '{who} puts the {n0} in the water {when} .',
        'into the water goes the {adj} {n0} {how} .'), 'is it light ?'),
    _source('song', (
        '{who} sings {how} of the {adj} {n0} .',
        'a song about the {n0} is sung {when} by {who} .'), 'is it major ?'),
    _source('seal', (
        'the letter {when} has the {n0} on it , says {who} .',
        'the {adj} {n0} is drawn {how} on the letter .'), 'is it round ?'),
)

_TARGET_SPECS = (
    _target('charm', 'is it strong ?', 'omen', (
        'in the dream of {who} the {n0} came {how} .', '{when} the dream had the {adj} {n0} .'), (
        'in the dream of {who} no {n0} came {how} .', '{when} the dream had no {adj} {n0} .')),
    _target('oath', 'is it true ?', 'song', (
        '{who} swears {how} by the {n0} .', 'by the {adj} {n0} , will {who} swear {when} ?'), (
        'never will {who} swear by the {n0} .', 'by the {adj} {n0} {who} will never swear .')),
    _target('cargo', 'is it good ?', 'trade', (
        'the cart holds {n0} , {n1} and {n2} {when} .', '{who} loads {how} : {n0} , {n1} , {n2} .'),
            ('the cart lost {n0} , {n1} and {n2} {when} .',
             '{who} drops {how} : {n0} , {n1} , {n2} .')),
    _target('quest', 'is it over ?', 'guild seal', (
        'the map shows {n0} , {n1} and {n2} , says {who} .',
        'go {how} from {n0} past {n1} to {n2} {when} .'), (
        'the map lacks {n0} , {n1} and {n2} , says {who} .',
        'run {how} from {n0} , {n1} and {n2} {when} .')),
    _target('voyage', 'is it short ?', 'omen tide', (
        'the boat meets {n0} , {n1} and {n2} {when} .',
        '{who} sails {how} : {n0} , then {n1} , then {n2} .'), (
        'the boat sank near {n0} , {n1} and {n2} {when} .',
        '{who} stays {how} : {n0} , then {n1} , then {n2} .')),
    _target('breath', 'is it loud ?', LIVING, (
        '{who} listens {how} to the {n0} .', 'listen to the {adj} {n0} {when} , {who} !'), (
        '{who} sleeps {how} by the {n0} .', 'the {adj} {n0} sleeps {when} .')),
    _target('rune', 'is it holy ?', 'rune', (
        'the rune on the {n0} is {adj} .', '{how} {who} reads the rune of the {n0} {when} .'), (
        'the rune on the {n0} is gone .', '{who} has no rune of the {n0} {when} .')),
)

SPECS: Mapping[str, PlaySpec] = {spec.name: spec for spec in _SOURCE_SPECS + _TARGET_SPECS}
SOURCES: tuple[str, ...] = tuple(spec.name for spec in _SOURCE_SPECS)
TARGETS: tuple[str, ...] = tuple(spec.name for spec in _TARGET_SPECS)
RELATIONS: Mapping[str, Mapping[str, float]] = {
    spec.name: {skill: 1 / len(spec.skills) for skill in spec.skills if skill in SOURCES}
    for spec in _TARGET_SPECS
}
LEXICONS: tuple[str, ...] = SOURCES + tuple(
    skill for spec in _TARGET_SPECS for skill in spec.skills
    if skill not in (*SOURCES, *VISIBLE))


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
