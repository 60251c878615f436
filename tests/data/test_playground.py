"""Laws of the playground: what relates a target to its sources, and that nothing else does."""

from __future__ import annotations

import collections
import functools
import itertools
import pathlib
import re

import numpy as np
import pytest

from pemt_jax.data import datasets
from pemt_jax.data import playground
from pemt_jax.data import playground_world as world_lib
from pemt_jax.data import tasks
from pemt_jax.data.tokenizer import load_tokenizer
from pemt_jax.errors import UserError

SHIPPED = pathlib.Path(playground.__file__).parents[1] / 'assets' / 'playground_t5'
OPTIONS = playground.Options(source_train=400, target_train=256)
ALL = playground.SOURCES + playground.TARGETS
NOUN = {noun: index for index, noun in enumerate(world_lib.NOUNS)}
MIXTURES = [name for name, sources in playground.RELATIONS.items() if len(sources) == 2]


def draw(name, split, seed=0, options=OPTIONS):
  return playground.rows(name, split, seed, options)


def oracle_accuracy(name, rows, tables):
  """Share of rows whose label the tables give; a tie counts as one half of a two-way choice."""
  hits = [0.5 if (said := playground.oracle_label(name, row, tables)) is None
          else float(said == row['label']) for row in rows]
  return float(np.mean(hits))


def true_tables(name, world=0):
  skills = world_lib.make_world(world).skills
  return {skill: skills[skill] for skill in playground.SPECS[name].skills}


def asking(name, rows):
  """Rows of parts that ask for a skill."""
  return [row for row in rows if playground.SPECS[name].parts[row['part']].skills]


def test_rows_depend_on_the_seeds_alone():
  first = draw('charm', 'test')
  playground._all_rows.cache_clear()
  assert draw('charm', 'test') == first
  assert draw('charm', 'test', seed=1) != first
  other_world = playground.Options(source_train=400, target_train=256, world=1)
  assert draw('charm', 'test', options=other_world) != first


def test_a_caller_cannot_change_later_draws():
  draw('charm', 'test')[0]['nouns'].append('x')
  assert 'x' not in draw('charm', 'test')[0]['nouns']


def test_hidden_classes_do_not_depend_on_the_draw_seed_but_on_the_world():
  one, two = world_lib.make_world(0), world_lib.make_world(1)
  for lexicon in world_lib.LEXICONS:
    assert (one.skills[lexicon] != two.skills[lexicon]).any()
  for fact in world_lib.VISIBLE:
    np.testing.assert_array_equal(one.skills[fact], two.skills[fact])


@pytest.mark.parametrize('world', range(4))
def test_lexicons_are_balanced_and_nearly_uncorrelated_in_every_part(world):
  drawn = world_lib.make_world(world)
  kind = np.repeat(np.arange(len(world_lib.KINDS)), world_lib.PER_KIND)
  hidden = np.stack([drawn.skills[name] for name in world_lib.LEXICONS])
  known = np.stack(list(drawn.skills.values()))
  for part in range(len(world_lib.PARTS)):
    inside = drawn.part == part
    for k in range(len(world_lib.KINDS)):
      assert not hidden[:, inside & (kind == k)].sum(1).any()
    correlation = hidden[:, inside] @ known[:, inside].T / inside.sum()
    others = correlation[np.abs(correlation) < 1]
    assert others.size == correlation.size - len(hidden)
    assert np.abs(others).max() < 0.2


def test_inside_a_kind_the_facts_name_the_noun():
  facts = np.stack(list(world_lib.facts().values()), axis=1)
  for start in range(0, len(NOUN), world_lib.PER_KIND):
    assert len({tuple(row) for row in facts[start:start + world_lib.PER_KIND]}) == 16


def test_both_labels_are_equally_frequent():
  for name, split in itertools.product(ALL, world_lib.PARTS):
    counts = collections.Counter(row['clean'] for row in draw(name, split))
    assert set(counts) == set(world_lib.LABELS)
    assert abs(counts['yes'] - counts['no']) <= 1, (name, split)


def test_a_quarter_of_a_targets_rows_is_void_and_never_yes():
  for name, split in itertools.product(ALL, world_lib.PARTS):
    rows = draw(name, split)
    parts = playground.SPECS[name].parts
    asked = asking(name, rows)
    void = [row for row in rows if not parts[row['part']].skills]
    assert {row['clean'] for row in void} <= {'no'}
    assert {row['clean'] for row in asked} == {'no', 'yes'}
    wanted = 0.25 if name in playground.TARGETS else 0
    assert len(void) / len(rows) == pytest.approx(wanted, abs=2 / len(rows)), (name, split)


@functools.cache
def frame_pattern(frame):
  """Regular expression of a frame's texts; one group for each noun."""
  slots = {slot: f"(?:{'|'.join(words)})" for slot, words in world_lib.FILLERS.items()}
  nouns = {f'n{i}': f"({'|'.join(NOUN)})" for i in range(world_lib.MAX_NOUNS)}
  return re.compile(frame.replace('.', '[.]').replace('?', '[?]').format(**slots, **nouns))


def nouns_of(frames, text):
  """Nouns of a text for each of the frames that it fits."""
  found = [frame_pattern(frame).fullmatch(text) for frame in frames]
  return [list(match.groups()) for match in found if match]


def test_the_frame_of_a_row_tells_its_part_and_its_nouns():
  for name in ALL:
    for row in draw(name, 'test'):
      fits = [(index, nouns) for index, part in enumerate(playground.SPECS[name].parts)
              for nouns in nouns_of(part.frames, row['text'])]
      assert fits == [(row['part'], row['nouns'])]


def test_nouns_of_unseen_rows_never_occur_in_a_targets_train_rows():
  for name in playground.TARGETS:
    train = {noun for row in draw(name, 'train') for noun in row['nouns']}
    for split in ('validation', 'test'):
      rows = draw(name, split)
      assert np.mean([row['seen'] for row in rows]) == pytest.approx(0.25, abs=0.01)
      for row in rows:
        assert set(row['nouns']).isdisjoint(train) or row['seen']
        assert set(row['nouns']) <= train or not row['seen']
  split_nouns = [{noun for row in draw('charm', split) if not row['seen'] for noun in row['nouns']}
                 for split in ('validation', 'test')]
  assert split_nouns[0].isdisjoint(split_nouns[1])


def test_a_source_shows_every_noun_in_training():
  for name in playground.SOURCES:
    rows = playground.rows(name, 'train', 0)
    assert {noun for row in rows for noun in row['nouns']} == set(NOUN)


def test_no_text_occurs_twice_in_a_task_or_in_a_source_and_a_target():
  texts = {name: [row['text'] for split in world_lib.PARTS for row in draw(name, split)]
           for name in ALL}
  for name in ALL:
    assert len(set(texts[name])) == len(texts[name])
  of_sources = {text for name in playground.SOURCES for text in texts[name]}
  for name in playground.TARGETS:
    assert of_sources.isdisjoint(texts[name])


def test_targets_share_no_frame_with_a_source_or_with_each_other():
  for one, two in itertools.combinations(ALL, 2):
    if two in playground.TARGETS:
      assert set(playground.SPECS[one].frames).isdisjoint(playground.SPECS[two].frames)
  for spec in playground.SPECS.values():
    assert len(set(spec.frames)) == len(spec.frames)


def test_every_task_has_a_question_of_its_own_that_the_text_never_answers():
  questions = [playground.SPECS[name].description for name in ALL]
  assert len(set(questions)) == len(questions)
  answered = {line.split(' ?')[0] + ' ?' for line in playground.corpus(0, 4000) if '\t' in line}
  assert len(answered) == 15 and answered.isdisjoint(questions)


def test_frames_have_an_odd_number_of_nouns_so_that_one_skill_has_no_tie():
  for spec in playground.SPECS.values():
    assert {world_lib.nouns_in(frame) for frame in spec.frames} <= {1, 3}
    assert sum(part.share for part in spec.parts) == pytest.approx(1)


def test_relations_name_the_sources_among_a_targets_skills():
  assert tuple(playground.RELATIONS) == playground.TARGETS
  assert {name: set(sources) for name, sources in playground.RELATIONS.items()} == {
      name: set(playground.SPECS[name].skills) & set(playground.SOURCES)
      for name in playground.TARGETS}
  sizes = collections.Counter(len(sources) for sources in playground.RELATIONS.values())
  assert sizes == {1: 3, 2: 2, 0: 2}
  for sources in playground.RELATIONS.values():
    assert not sources or sum(sources.values()) == pytest.approx(1)


@pytest.mark.parametrize('name', ALL)
def test_the_tables_of_the_related_skills_give_every_label(name):
  for split in world_lib.PARTS:
    assert oracle_accuracy(name, draw(name, split), true_tables(name)) == 1.0


@pytest.mark.parametrize('name', ALL)
def test_the_tables_of_unrelated_skills_are_at_chance(name):
  spec = playground.SPECS[name]
  options = playground.Options(source_train=1, target_train=1, test=800, seen=0.0)
  rows = asking(name, draw(name, 'test', options=options))
  skills = world_lib.make_world(0).skills
  unrelated = [s for s in world_lib.LEXICONS if s not in spec.skills]
  found = [oracle_accuracy(name, rows, dict(zip(spec.skills, (skills[one], skills[two]))))
           for one, two in itertools.pairwise(unrelated + unrelated[:1])]
  assert np.mean(found) == pytest.approx(0.5, abs=0.04)
  assert np.abs(np.array(found) - 0.5).max() < 0.12


@pytest.mark.parametrize('name', MIXTURES)
@pytest.mark.parametrize('world', range(3))
def test_a_mixture_needs_both_of_its_skills(name, world):
  options = playground.Options(world=world, target_train=1, validation=1, test=2000, seen=0.0)
  rows = asking(name, draw(name, 'test', options=options))
  tables = true_tables(name, world)
  assert oracle_accuracy(name, rows, tables) == 1.0
  for skill in tables:
    alone = {other: table * (other == skill) for other, table in tables.items()}
    # Of the 64 sign patterns 20 are ties, and in 38 of the other 44 one skill has the sum's sign.
    assert oracle_accuracy(name, rows, alone) == pytest.approx(38 / 44, abs=0.03)
    unrelated = {**tables, skill: world_lib.make_world(world).skills['rune']}
    assert oracle_accuracy(name, rows, unrelated) < 0.75


def test_unknown_classes_leave_a_tie_and_void_rows_need_no_table():
  unknown = {'omen': np.zeros(len(NOUN), int)}
  found = collections.Counter((row['part'], playground.oracle_label('charm', row, unknown))
                              for row in draw('charm', 'test'))
  assert set(found) == {(0, None), (1, 'no')}


@pytest.mark.parametrize('name', ['charm', 'voyage', 'omen'])
def test_noise_turns_the_stated_share_of_train_labels_only(name):
  options = playground.Options(source_train=200, target_train=200, noise=0.25)
  rows = draw(name, 'train', options=options)
  assert oracle_accuracy(name, rows, true_tables(name)) == 0.75
  assert all(row['clean'] == world_lib.LABELS[row['label_id']] for row in rows)
  assert all(row['label'] == row['clean'] for row in draw(name, 'test', options=options))
  clean = playground.Options(source_train=200, target_train=200)
  assert ([row['text'] for row in rows]
          == [row['text'] for row in draw(name, 'train', options=clean)])


@functools.cache
def answered_lines(seed=0, sentences=40000):
  """(question, nouns, answer) of the lines of the corpus that state an answer."""
  frames = sorted({frame for name in ALL for frame in playground.SPECS[name].frames})
  found = []
  for line in playground.corpus(seed, sentences):
    text, _, answer = line.partition('\t')
    if answer:
      question, text = text.split(' ? ', 1)
      found.append((question, *nouns_of(frames, text), answer))   # it fits one frame
  return found


def lexicon_correlations(lines, worlds=range(3)):
  """[question, lexicon of a world] correlation of the nouns' yes-rates with hidden classes."""
  column = {question: index for index, question in enumerate(sorted({line[0] for line in lines}))}
  counts = np.zeros((2, len(column), len(NOUN)))
  for question, nouns, answer in lines:
    for noun in nouns:
      counts[:, column[question], NOUN[noun]] += 1, answer == 'yes'
  rates = counts[1] / np.maximum(counts[0], 1)
  rates -= rates.mean(1, keepdims=True)
  rates /= np.linalg.norm(rates, axis=1, keepdims=True)
  hidden = np.stack([world_lib.make_world(world).skills[name]
                     for world in worlds for name in world_lib.LEXICONS])
  return rates @ hidden.T / np.sqrt(len(NOUN))


def test_the_answers_of_the_corpus_tell_nothing_about_hidden_classes():
  found = lexicon_correlations(answered_lines())
  assert found.shape == (15, 21)
  assert np.abs(found).max() < 4 / np.sqrt(len(NOUN))
  assert len(NOUN) * np.mean(found ** 2) < 1.3   # about 1 for independent columns
  leaking = [('is it lucky', row['nouns'], row['label']) for row in draw('omen', 'train')]
  assert lexicon_correlations(leaking, [0])[0, world_lib.LEXICONS.index('omen')] > 0.6


def test_the_corpus_does_not_depend_on_a_world(monkeypatch):
  lines, real = playground.corpus(0, 1000), world_lib.make_world
  monkeypatch.setattr(world_lib, 'make_world', lambda seed=0: real(seed + 1))
  monkeypatch.setattr(playground, '_questions', functools.cache(playground._questions.__wrapped__))
  assert playground.corpus(0, 1000) == lines


def truth(noun, value):
  """Whether a visible property holds for a noun."""
  for fact, values in world_lib.FACTS.items():
    if value in values:
      return values[world_lib.facts()[fact][NOUN[noun]]] == value
  kinds = ('animal', 'person', 'plant') if value == 'living' else (value,)
  return any(noun in world_lib.KINDS[kind] for kind in kinds)


def test_answers_of_the_corpus_are_true_to_the_facts():
  lines = answered_lines()
  for question, nouns, answer in lines:
    votes = sum(truth(noun, question.removeprefix('is it ')) for noun in nouns)
    assert len(nouns) in (1, 3) and answer == ('yes' if 2 * votes > len(nouns) else 'no')
  assert 0.2 < np.mean([answer == 'yes' for *_, answer in lines]) < 0.5
  assert {nouns[0] for _, nouns, _ in lines if len(nouns) == 1} == set(NOUN)


def test_more_than_half_of_the_corpus_are_answered_questions():
  assert len(answered_lines()) / 40000 == pytest.approx(0.54, abs=0.02)


def test_statements_of_the_corpus_are_mostly_true():
  said = collections.Counter()
  for line in playground.corpus(1, 12000):
    tokens = line.split()
    nouns = {token for token in tokens if token in NOUN}
    if '\t' not in line and len(nouns) == 1 and ('big' in tokens) != ('little' in tokens):
      true = world_lib.FACTS['size'][world_lib.facts()['size'][NOUN[nouns.pop()]]]
      said[true in tokens] += 1
  assert sum(said.values()) > 1000
  assert said[True] / sum(said.values()) == pytest.approx(0.95, abs=0.02)


def test_the_corpus_is_deterministic_and_shows_the_whole_vocabulary():
  lines = playground.corpus(0, 4000)
  assert lines == playground.corpus(0, 4000) != playground.corpus(1, 4000)
  assert {word for line in lines for word in line.split()} == set(playground.vocabulary())


def test_rows_are_short_and_inside_the_vocabulary():
  known = set(playground.vocabulary())
  for name in ALL:
    for row in draw(name, 'test'):
      assert set(row['text'].split()) | set(row['label'].split()) <= known
      # With the end marks they fill the shape of the configs, 13 by 2.
      assert len(row['text'].split()) <= 12 and row['label'] in world_lib.LABELS


def test_the_shipped_tokenizer_has_one_id_for_every_word():
  tokenizer = load_tokenizer(SHIPPED)
  ids = tokenizer.encode_batch(list(playground.vocabulary()), add_eos=False)
  assert {len(row) for row in ids} == {1}
  assert len({row[0] for row in ids}) == len(playground.vocabulary())


def test_options_in_the_name_reach_the_rows():
  named = playground.rows('playground/charm@world=2,noise=0.1,target_train=100', 'train', 3)
  options = playground.Options(world=2, noise=0.1, target_train=100)
  assert named == playground.rows('charm', 'train', 3, options)


def test_few_shot_draws_k_rows_of_each_label_through_the_data_layer():
  config = datasets.DataConfig(source='playground', few_shot=16)
  data = datasets.load_task('playground/voyage', 'train', config)
  counts = collections.Counter(example.target for example in data.examples)
  assert counts == {'no': 16, 'yes': 16}
  task = tasks.get_task('playground/voyage')
  assert task.label_words == ('no', 'yes')
  assert task.description == 'is it short ?'


@pytest.mark.parametrize('call, sentence', [
    (lambda: tasks.get_task('playground/charms'),
     "there is no playground task 'playground/charms'; the names are omen, trade, guild, tide, "
     'song, seal, charm, oath, cargo, quest, voyage, breath, rune.'),
    (lambda: playground.rows('charm@wrld=1', 'train'),
     "playground task 'charm@wrld=1' has the option 'wrld=1'; write key=number with one of the "
     'keys world, source_train, target_train, validation, test, noise, seen.'),
    (lambda: playground.get_task('playground/charm@noise=1'),
     'playground option noise is 1.0; give a share from 0 to below 1.'),
    (lambda: playground.rows('charm', 'dev'),
     "the playground has no split 'dev'; choose one of train, validation, test."),
    (lambda: playground.Options(test=0),
     'playground option test is 0; give a number of at least 1.'),
    (lambda: playground.Options(world=-1),
     'playground option world is -1; give a seed of at least 0.'),
    (lambda: playground.rows('charm@target_train=7000', 'train'),
     "playground task 'charm' has fewer than 7000 different texts for one split; ask for "
     'fewer rows.'),
])
def test_user_errors_name_value_and_remedy(call, sentence):
  with pytest.raises(UserError) as caught:
    call()
  assert str(caught.value) == sentence
