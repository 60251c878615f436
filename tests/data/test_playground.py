"""Laws of the playground: what relates a target to its sources, and that nothing else does."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest

from pemt_jax.data import datasets
from pemt_jax.data import playground
from pemt_jax.data import playground_world as world_lib
from pemt_jax.data import tasks
from pemt_jax.errors import UserError

OPTIONS = playground.Options(source_train=400, target_train=256)
ALL = playground.SOURCES + playground.TARGETS
NOUN = {noun: index for index, noun in enumerate(world_lib.NOUNS)}


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


def test_all_labels_are_equally_frequent():
  for name, split in itertools.product(ALL, world_lib.PARTS):
    spec = playground.SPECS[name]
    counts = collections.Counter(row['clean'] for row in draw(name, split))
    share = np.ones(len(spec.label_texts))
    if spec.rule == 'route':
      share = np.repeat(list(spec.skills.values()), 2)
    wanted = share / share.sum() * sum(counts.values())
    found = [counts[text] for text in spec.label_texts]
    assert np.abs(found - wanted).max() <= 1, (name, split)


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


def test_targets_share_neither_frames_nor_label_words_with_any_source():
  def frames(name):
    return {frame for group in playground.SPECS[name].frames for frame in group}

  def words(name):
    return {word for text in playground.SPECS[name].label_texts for word in text.split()}

  for one, two in itertools.combinations(ALL, 2):
    assert words(one).isdisjoint(words(two))
    if two in playground.TARGETS:
      assert frames(one).isdisjoint(frames(two))


def test_relations_name_the_sources_among_a_targets_skills():
  assert tuple(playground.RELATIONS) == playground.TARGETS
  sizes = collections.Counter(len(sources) for sources in playground.RELATIONS.values())
  assert sizes == {1: 3, 2: 3, 0: 2}
  for sources in playground.RELATIONS.values():
    assert set(sources) <= set(playground.SOURCES)
    assert not sources or sum(sources.values()) == pytest.approx(1)


@pytest.mark.parametrize('name', ALL)
def test_the_tables_of_the_related_skills_give_every_label(name):
  for split in world_lib.PARTS:
    assert oracle_accuracy(name, draw(name, split), true_tables(name)) == 1.0


@pytest.mark.parametrize('name', ALL)
def test_the_tables_of_unrelated_skills_are_at_chance(name):
  spec = playground.SPECS[name]
  options = playground.Options(source_train=1, target_train=1, test=600, seen=0.0)
  rows = draw(name, 'test', options=options)
  skills = world_lib.make_world(0).skills
  unrelated = [s for s in world_lib.LEXICONS if s not in spec.skills]
  chance = {'vote': 0.5, 'pair': 0.25, 'route': 0.5}[spec.rule]
  found = [oracle_accuracy(name, rows, dict(zip(spec.skills, (skills[one], skills[two]))))
           for one, two in itertools.pairwise(unrelated + unrelated[:1])]
  assert np.mean(found) == pytest.approx(chance, abs=0.04)
  assert np.abs(np.array(found) - chance).max() < 0.15


@pytest.mark.parametrize('name', [n for n, s in playground.RELATIONS.items() if len(s) == 2])
def test_a_mixture_needs_both_of_its_skills(name):
  rows = draw(name, 'test')
  tables = true_tables(name)
  for skill in tables:
    without = {**tables, skill: world_lib.make_world(0).skills['rune']}
    assert oracle_accuracy(name, rows, without) < 0.9


def test_the_share_of_a_route_is_the_share_of_its_rows():
  rows = draw('errand', 'test')
  for skill, share in playground.RELATIONS['errand'].items():
    assert np.mean([row['skill'] == skill for row in rows]) == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize('name', ['charm', 'voyage', 'errand'])
def test_noise_replaces_the_stated_share_of_train_labels_only(name):
  options = playground.Options(target_train=200, noise=0.25)
  rows = draw(name, 'train', options=options)
  assert oracle_accuracy(name, rows, true_tables(name)) == 0.75
  assert {row['label'] for row in rows} <= set(playground.SPECS[name].label_texts)
  assert all(row['label'] == row['clean'] for row in draw(name, 'test', options=options))
  clean = playground.Options(target_train=200)
  assert ([row['text'] for row in rows]
          == [row['text'] for row in draw(name, 'train', options=clean)])


def noun_word_dependence(lines, words):
  """Standard score of Pearson's chi-square between nouns and label words that share a line."""
  column = {word: index for index, word in enumerate(sorted(words))}
  table = np.zeros((len(NOUN), len(column)))
  for line in lines:
    tokens = line.split()
    for noun, word in itertools.product(tokens, tokens):
      if noun in NOUN and word in column:
        table[NOUN[noun], column[word]] += 1
  table = table[:, table.sum(0) > 0]
  expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
  freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
  return (((table - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


def test_the_corpus_tells_nothing_about_hidden_classes():
  words = {word for name in ALL for text in playground.SPECS[name].label_texts
           for word in text.split()}
  assert abs(noun_word_dependence(playground.corpus(0, 30000), words)) < 4
  leaking = [f"{row['text']} {row['label']}" for row in playground.rows('omen', 'train')]
  assert noun_word_dependence(leaking, set('doomed lucky'.split())) > 20


def test_the_corpus_tells_the_facts():
  said = collections.Counter()
  for line in playground.corpus(1, 6000):
    tokens = line.split()
    nouns = {token for token in tokens if token in NOUN}
    if len(nouns) == 1 and ('big' in tokens) != ('little' in tokens):
      true = world_lib.FACTS['size'][world_lib.facts()['size'][NOUN[nouns.pop()]]]
      said[true in tokens] += 1
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
      assert len(row['text'].split()) <= 40 and len(row['label'].split()) <= 2


def test_options_in_the_name_reach_the_rows():
  named = playground.rows('playground/charm@world=2,noise=0.1,target_train=100', 'train', 3)
  options = playground.Options(world=2, noise=0.1, target_train=100)
  assert named == playground.rows('charm', 'train', 3, options)


def test_few_shot_draws_k_rows_of_each_label_through_the_data_layer():
  config = datasets.DataConfig(source='playground', few_shot=16)
  data = datasets.load_task('playground/voyage', 'train', config)
  counts = collections.Counter(example.target for example in data.examples)
  assert counts == {text: 16 for text in playground.SPECS['voyage'].label_texts}
  task = tasks.get_task('playground/voyage')
  assert task.label_words == playground.SPECS['voyage'].label_texts
  assert task.description.split()[0] == 'given'


@pytest.mark.parametrize('call, sentence', [
    (lambda: tasks.get_task('playground/charms'),
     "there is no playground task 'playground/charms'; the names are omen, trade, guild, tide, "
     'song, seal, charm, cargo, oath, quest, voyage, errand, breath, rune.'),
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
