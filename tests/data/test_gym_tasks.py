"""Laws of all 160 tasks of the few-shot gym: tables, splits, the lines that rows become."""

from __future__ import annotations

import json

import pytest

from pemt_jax.data import gym, gym_table, tasks_gym
from pemt_jax.data.gym import METRIC_NAMES, PLAIN, SPACED
from pemt_jax.data.tasks import get_task
from pemt_jax.data.templates import RowError
from pemt_jax.errors import UserError

# Title, row, input text, accepted answers.
LINES = [
    ('acronym_identification', {'tokens': ['the', 'large', 'hadron', 'one', '(', 'LH', ')'],
                                'labels': [4, 0, 2, 4, 4, 1, 4]},
     'the large hadron one ( LH ) [SEP] acronym: LH', ('large hadron',)),
    ('aqua_rat', {'question': 'a\nb', 'options': ['A)21', 'B)x y'], 'correct': 'B'},
     'a b (A) 21 (B) x y', ('x y',)),
    ('math_qa', {'Problem': 'p', 'options': 'a ) 38 , b ) 27.6 , c ) 30 , d ) no data , e ) none',
                 'correct': 'e'}, 'p (A) 38 (B) 27.6 (C) 30 (D) no data (E) none', ('none',)),
    ('social_i_qa', {'question': 'q', 'context': 'c', 'answerA': 'x', 'answerB': 'y',
                     'answerC': 'z', 'label': '2'}, 'q (A) x (B) y (C) z [SEP] c', ('y',)),
    ('definite_pronoun_resolution', {'sentence': 's', 'pronoun': 'it', 'candidates': ['a', 'b'],
                                     'label': 1}, 's [SEP] it [SEP] (A) a (B) b', ('b',)),
    ('art', {'observation_1': 'a', 'observation_2': 'b', 'hypothesis_1': 'c', 'hypothesis_2': 'd',
             'label': 2}, 'observation 1: a [SEP] observation 2: b [SEP] hypothesis 1: c [SEP] '
     'hypothesis 2: d', ('hypothesis 2',)),
    ('piqa', {'goal': 'g', 'sol1': 'x', 'sol2': 'y', 'label': 1},
     'goal: g [SEP] solution 1x [SEP] solution 2y', ('1',)),
    ('superglue-wsc', {'text': 't', 'span1_text': 'a', 'span2_text': 'b', 'label': 1},
     'text: t [SEP] span1_texta [SEP] span2_text: b', ('true',)),
    ('circa', {'context': 'c', 'question-X': 'q', 'answer-Y': 'a', 'goldstandard2': 2},
     'context: c [SEP] question X: q [SEP] answer Y: a', ('In the middle, neither yes nor no',)),
    ('hatexplain', {'post_tokens': ['a', 'b'], 'annotators': {'label': [2, 1, 2]}}, 'a b',
     ('offensive',)),
    ('google_wellformed_query', {'content': ' q ', 'rating': 0.2}, 'q', ('not well-formed',)),
    ('scicite', {'string': 'as in X', 'citeStart': 3, 'citeEnd': 5, 'sectionName': 'Intro',
                 'label': 1}, 'in [SEP] as in X [SEP] Intro', ('background',)),
    ('trec-finegrained', {'text': 'how?', 'label-fine': 3}, 'how?', ('exp',)),
    ('yelp_review_full', {'text': 'a\\nb', 'label': 4}, 'a b', ('5',)),
    ('onestop_english', {'text': 'Intermediate  a\nb', 'label': 1}, 'a b',
     ('intermediate',)),
    ('ethos-directed_vs_generalized', {'text': ' t ', 'directed_vs_generalized': 0}, 't',
     ('generalied',)),
    ('crows_pairs', {'sent_more': 'a', 'sent_less': 'b', 'good_first': False},
     'sentence 1: b [SEP] sentence 2: a', ('sentence 2',)),
    ('kilt_nq', {'input': 'q\nr', 'output': [{'answer': 'b'}, {'answer': ''}, {'answer': 'a'},
                                             {'answer': 'b'}]}, 'q r', ('a', 'b')),
    ('kilt_ay2', {'input': 'q', 'output': {'answer': ['b', 'a', 'b']}}, 'q', ('b', 'a', 'b')),
    ('lama-trex', {'template': '[X] is [Y] .', 'sub_label': 'Ann', 'obj_label': 'old'},
     'Ann is [MASK] .', ('old',)),
    ('freebase_qa', {'RawQuestion': 'q', 'Parses': [{'Answers': [
        {'AnswersMid': 'm', 'AnswersName': ['b', 'a']}, {'AnswersName': [['a']]}]}]}, 'q',
     ('a', 'b')),
    ('squad-with_context', {'question': 'q', 'context': 'a \n b', 'answers': {'text': ['y', 'x']}},
     'question: q context: a b', ('x', 'y')),
    ('duorc', {'question': 'q', 'plot': 'p', 'answers': ['z'], 'no_answer': False},
     'question: q context: p', ('z',)),
    ('jeopardy', {'question': "'clue'", 'category': 'C', 'answer': 'a'},
     'question: clue [SEP] category: C', ('a',)),
    ('qa_srl', {'question': ['who', '_', '?'], 'sentence': 's', 'answers': ['b', 'a']},
     'question: who _ ? context: s', ('b', 'a')),
    ('proto_qa', {'question': {'normalized': 'n'}, 'answers': {'raw': {'x': 3, 'y': 1}}}, 'n',
     ('x', 'y')),
    ('limit', {'sentence': ' s ', 'motion': 'yes', 'motion_entities': [
        {'entity': 'a', 'start_index': 0}, {'entity': 'b', 'start_index': 3}]}, 's',
     ('a [SEP] b',)),
    ('crawl_domain', {'example': 'The Blue Web'}, 'theblueweb', ('The Blue Web',)),
    ('wiki_bio', {'input_text': {'context': ' Ann ', 'table': {
        'column_header': ['name', 'born'], 'content': ['Ann', '1990']}}, 'target_text': 'a\nb'},
     'Ann [SEP] name: Ann [n] born: 1990 [n] ', ('a b',)),
    ('wikisql', {'question': ' q\tr ', 'sql': {'human_readable': ' SELECT x '}}, 'q r',
     ('SELECT x',)),
    ('mocha', {'question': 'q', 'context': 'c', 'reference': 'r', 'candidate': 'x', 'score': 4.0},
     'question: q [SEP] context: c [SEP] reference: r [SEP] candidatex', ('4',)),
    ('tweet_qa', {'Question': 'q', 'Tweet': 'a\nb', 'Answer': ['x ', 'y']},
     'question: q context: a b', ('x', 'y')),
    ('cos_e', {'question': 'q', 'choices': ['x', 'y'], 'abstractive_explanation': 'e'},
     'q (A) x (B) y', ('e',)),
    ('wiki_auto', {'normal_sentence': 'a', 'simple_sentence': 'b', 'alignment_label': 1},
     'normal sentence: a [SEP] simple_sentence: b', ('aligned',))]
# Rows that give no line.
DROPPED = [
    ('acronym_identification', {'tokens': ['a', 'b'], 'labels': [0, 4]}),
    ('hatexplain', {'post_tokens': ['a'], 'annotators': {'label': [0, 1, 2]}}),
    ('google_wellformed_query', {'content': 'q', 'rating': 0.5}),
    ('circa', {'goldstandard2': -1}), ('hate_speech18', {'text': 't', 'label': 2}),
    ('duorc', {'question': 'q', 'plot': "This article's plot summary may be too long", 'answers': [
        'a'], 'no_answer': False}),
    ('limit', {'sentence': 's', 'motion': 'no'}), ('mocha', {'score': 2.5}),
    ('wiki_bio', {'input_text': {'table': {'column_header': ['a'], 'content': []}}}),
    ('empathetic_dialogues', {'prompt': 'p', 'context': 'c', 'utterance': 'hit:1 conv'})]


def test_tasks_are_those_of_the_table():
  entries = gym_table.entries()
  assert {gym.title_of(name) for name in tasks_gym.GYM_TASKS} == set(entries)
  for title, entry in entries.items():
    task = get_task(gym.GYM_PREFIX + title)
    assert (task.gym.kind, task.gym.family, task.metrics) == (
        entry.kind, entry.family, (METRIC_NAMES[entry.metric],)), title
  assert len({(entry.category, entry.group) for entry in entries.values()}) == 22


@pytest.mark.parametrize('title, row, text, answers', LINES, ids=[line[0] for line in LINES])
def test_rows_become_lines(title, row, text, answers):
  example, = get_task(f'crossfit/{title}').variants[PLAIN](row)
  assert (example.source, example.extra['answers']) == (text, answers)


@pytest.mark.parametrize('title, row', DROPPED, ids=[line[0] for line in DROPPED])
def test_rows_without_an_example_give_no_line(title, row):
  assert not get_task(f'crossfit/{title}').template(row)


def test_rows_of_a_group_become_one_line():
  task = get_task('crossfit/superglue-multirc')
  rows = [{'question': q, 'paragraph': 'p', 'answer': f'{q}{i}', 'label': label,
           'idx': {'paragraph': 0, 'question': number}}
          for number, q in enumerate('uv') for i, label in enumerate((number, 1, number))]
  lines = [line for row in task.prepare(rows) for line in task.variants[PLAIN](row)]
  assert [(line.source, line.target) for line in lines] == [
      ('question: u (A) u0 (B) u1 (C) u2 context: p', 'u1'),
      ('question: v (A) v0 (B) v1 (C) v2 context: p', 'v0 [SEP] v1 [SEP] v2')]
  assert task.variants[PLAIN]({**rows[0], 'label': 0})[0].target == 'NO ANSWER!'
  task = get_task('crossfit/empathetic_dialogues')
  rows = [{'prompt': 'a_comma_ b', 'context': 'c', 'utterance': text}
          for text in ('x_comma_ y', 'hit:2', 'z')]
  line, = [line for row in task.prepare(rows) for line in task.variants[PLAIN](row)]
  assert (line.source, line.extra['answers']) == ('a, b [SEP] c', ('x, y', 'z'))
  task = get_task('crossfit/common_gen')
  rows = [{'concept_set_idx': i, 'concepts': ['dog', 'run'], 'target': t}
          for i, t in ((0, 'p'), (1, 'q'), (0, 'r'))]
  lines = [line for row in task.prepare(rows) for line in task.variants[PLAIN](row)]
  assert [line.extra['answers'] for line in lines] == [('p', 'r'), ('q',)]
  assert lines[0].source == 'dog, run'


def test_the_spaced_form_is_that_of_bart():
  example, = get_task('crossfit/glue-sst2').variants[SPACED]({'sentence': 's', 'label': 1})
  assert (example.source, example.target) == (' [glue-sst2] sentence: s', ' positive')


def test_splits_of_tasks_name_tasks_and_share_none_of_their_parts():
  assert len(gym_table.partition_names()) == 8
  for name in gym_table.partition_names():
    split = gym_table.partition(name)
    assert set(split) == set(gym_table.PARTS)
    assert {title for titles in split.values() for title in titles} <= set(gym_table.entries())
    shared = set(split['train']) & {*split['dev'], *split['test']}
    assert shared <= {'sick'}, name  # One published list trains on a task that it selects on.
  assert [len(titles) for titles in gym_table.partition('random').values()] == [120, 20, 20]
  with pytest.raises(UserError, match="the split of tasks is 'other'; choose one of random"):
    gym_table.partition('other')


def test_splits_are_the_published_ones(shared_root):
  folder = shared_root / 'data' / 'crossfit_gym' / 'task_splits'
  if not folder.is_dir():
    pytest.skip(f'no folder {folder}')
  files = {path.stem: json.loads(path.read_text()) for path in folder.glob('*.json')}
  assert set(files) == set(gym_table.partition_names())
  for name, published in files.items():
    for part, titles in gym_table.partition(name).items():
      assert set(titles) == set(published.get(part, ())), (name, part)


def test_classes_of_recorded_rows_are_known(shared_root):
  """Labels of the pre-built rows are words of the tasks that have many of them."""
  import gzip
  root = shared_root / 'data' / 'crossfit_gym'
  if not root.is_dir():
    pytest.skip(f'no folder {root}')
  for title in ('discovery', 'trec-finegrained', 'tweet_eval-emoji'):
    with gzip.open(root / title / 'fewshot.jsonl.gz', 'rt') as file:
      found = {json.loads(line)['output'] for line in file}
    assert len(found) > 10 and found <= set(gym_table.words_of(title)), title


@pytest.mark.parametrize('title, row', [
    ('social_i_qa', {'question': 'q', 'context': 'c', 'answerA': 'x', 'answerB': 'y',
                     'answerC': 'z', 'label': '4'}),
    ('kilt_nq', {'input': 'q', 'output': []}), ('kilt_nq', {'input': 'q', 'output': 'a'}),
    ('wikisql', {'question': 'q', 'sql': {}}),
    ('aqua_rat', {'question': 'q', 'options': ['A)1'], 'correct': 'B'})])
def test_rows_that_do_not_fit_are_named(title, row):
  with pytest.raises(RowError, match='fix the row or remove it'):
    get_task(f'crossfit/{title}').template(row)
