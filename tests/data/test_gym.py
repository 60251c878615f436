"""Laws of the few-shot gym: its tables, templates, draws and splits."""

from __future__ import annotations

import collections
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from pemt_jax.data import gym, gym_table, tasks_gym, templates_gym
from pemt_jax.data.datasets import DataConfig, load_all_splits, load_task
from pemt_jax.data.tasks import TASKS, get_task
from pemt_jax.data.tasks_base import GYM_TESTS, GymRule, SPLITS
from pemt_jax.data.templates import Example, RowError
from pemt_jax.errors import UserError
from pemt_jax.evaluation.metrics import get_metric
from pemt_jax.evaluation.postprocess import POSTPROCESS, score

WORDS = st.lists(st.sampled_from('abc'), min_size=1, max_size=40)


def _message(function, *arguments):
  with pytest.raises(UserError) as error:
    function(*arguments)
  return str(error.value)


def _texts(data):
  return [example.source for example in data.examples]


def test_tables_name_only_known_parts():
  assert [len(names) for names in (tasks_gym.GYM_TASKS, tasks_gym.QUAN_TASKS, tasks_gym.QA_TASKS)
          ] == [160, 51, 32]
  assert {name: len(members) for name, members in tasks_gym.TASK_FAMILIES.items()} == {
      'machine_reading_comprehension': 3, 'multiple_choice_qa': 19, 'binary': 2,
      'long_form_qa': 3, 'closed_book_qa': 5}
  assert sum(tasks_gym.TASK_FAMILIES.values(), ()) == tasks_gym.QA_TASKS
  for name, task in tasks_gym.GYM_TASKS.items():
    assert get_task(name) is task and set(task.splits) == set(SPLITS)
    assert task.gym.test in GYM_TESTS and task.postprocess in POSTPROCESS
    assert all(get_metric(metric) for metric in task.metrics)
    assert task.folders and task.description.startswith('Given ')


def test_names_of_the_gym_never_hide_those_of_other_tasks():
  for name in tasks_gym.GYM_TASKS:
    title, = tasks_gym.published_names((name,))
    assert name == f'crossfit/{title}' and name not in TASKS
  assert get_task('glue-mrpc').template is not get_task('crossfit/glue-mrpc').template
  assert _message(get_task, 'crossfit/glue-mrpx') == (
      "there is no task 'crossfit/glue-mrpx'; close names are crossfit/glue-mrpc, "
      'crossfit/glue-rte, crossfit/glue-qqp.')


@hypothesis.given(WORDS, st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_few_shot_rows_are_distinct_and_balanced(labels, shots, seed):
  train, other = gym.few_shot_rows('classification', labels, shots, seed)
  assert len(set(train + other)) == len(train + other)
  counts = collections.Counter(labels)
  for rows, sizes in ((train, {c: min(shots, n) for c, n in counts.items()}),
                      (other, {c: min(shots, max(n - shots, 0)) for c, n in counts.items()})):
    found = collections.Counter(labels[row] for row in rows)
    assert found == {c: n for c, n in sizes.items() if n}
  first, second = gym.few_shot_rows('text', labels, shots, seed)
  assert first + second == gym.shuffled(len(labels), seed)[:2 * shots]


def test_rows_without_labels_have_their_text(golden_root):
  stored = golden_root / 'ensembling' / 'data_tasks' / 'inputs.json'
  labels = ('label', 'answerKey', 'answer_index', 'correct_answer_idx', 'correct_answer_id',
            'gold_label', 'claim_label', 'obj_label', 'target', 'summary', 'answer_label_as_choice')
  for title, given in json.loads(stored.read_text(encoding='utf-8')).items():
    task = get_task(f'crossfit/{title}')
    rows = [row for row in next(iter(given['splits'].values())) if task.template_named(
        'published' if 'published' in task.variants else 'default')(row)]
    for row in rows:
      if row.get('choices') and row['choices'].get('label', 'A')[0] != 'A':
        continue
      wanted = (task.variants.get('published') or task.template)(row)[0].source
      bare = {name: value for name, value in row.items() if name not in labels}
      assert task.template({**bare, **task.blank})[0].source == wanted, title


def test_draws_are_those_of_the_legacy_shuffle():
  rows = list(range(9))
  np.random.seed(13)
  np.random.shuffle(rows)
  assert gym.shuffled(9, 13) == rows


@hypothesis.given(st.integers(0, 60), st.sampled_from(['last_share', 'next_rows']))
def test_pool_and_test_of_one_split_share_no_row(count, test):
  pool, rest = gym.pool_and_test(GymRule('text', 'x', test, (20, 10)), count, None)
  assert not set(pool) & set(rest)
  assert len(pool) == (int(0.8 * count) if test == 'last_share' else min(count, 20))


def test_a_tenth_of_the_test_split_is_kept():
  pool, rest = gym.pool_and_test(GymRule('text', 'x', 'first_share', share=0.1), 3, 25)
  assert pool == [0, 1, 2] and rest == gym.shuffled(25, 42)[:2]


@pytest.fixture
def root(tmp_path):
  """MRPC rows with a labelled test split."""
  folder = tmp_path / 'glue' / 'mrpc'
  folder.mkdir(parents=True)
  for split, size in (('train', 30), ('validation', 10), ('test', 4)):
    rows = [{'sentence1': f'{split}{i}', 'sentence2': 'b', 'label': i % 2} for i in range(size)]
    (folder / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  return tmp_path


def test_few_shot_splits(root):
  config = DataConfig(root=str(root), few_shot=64, few_shot_per_class=4)
  loaded = load_all_splits('crossfit/glue-mrpc', config)
  train, validation, test = (_texts(loaded[split]) for split in SPLITS)
  assert (len(train), len(validation), len(test)) == (8, 8, 10)
  assert not set(train) & set(validation) and all(' train' in text for text in train + validation)
  assert test[0] == ' [glue-mrpc] sentence 1: validation0 [SEP] sentence 2: b'
  assert loaded['train'].provenance['part'] == 'few-shot draw'
  other = load_task('crossfit/glue-mrpc', 'train', DataConfig(
      root=str(root), few_shot=64, few_shot_per_class=4, few_shot_seed=7))
  assert _texts(other) != train
  assert len(load_task('crossfit/glue-mrpc', 'test', DataConfig(
      root=str(root), few_shot=4, gym_test='official')).examples) == 4


def test_full_data_splits(root):
  loaded = load_all_splits('crossfit/glue-mrpc', DataConfig(root=str(root)))
  validation, test = _texts(loaded['validation']), _texts(loaded['test'])
  assert len(loaded['train'].examples) == 30 and len(validation) == len(test) == 5
  assert len(set(validation + test)) == 10
  official = load_all_splits('crossfit/glue-mrpc', DataConfig(root=str(root), gym_test='official'))
  assert [len(official[split].examples) for split in SPLITS] == [30, 10, 4]
  limited = load_task('crossfit/glue-mrpc', 'train', DataConfig(root=str(root), max_train_rows=3))
  assert _texts(limited) == _texts(loaded['train'])[:3]
  assert get_task('crossfit/xsum').fixed_row_limits == {'train': 400_000}


def test_natural_and_given_files_stand_beside_the_rule(root):
  natural = DataConfig(root=str(root), split_rule='natural')
  assert len(load_task('crossfit/glue-mrpc', 'test', natural).examples) == 4
  given = DataConfig(files={'test': str(root / 'glue/mrpc/train.jsonl')})
  assert len(load_task('crossfit/glue-mrpc', 'test', given).examples) == 30


def test_forms_of_the_texts(root):
  def first(**options):
    return load_task('crossfit/glue-mrpc', 'test', DataConfig(
        root=str(root), few_shot=1, **options)).examples[0]
  assert first().target == '<extra_id_0>not_equivalent'
  assert first(template='plain') == Example(
      'sentence 1: validation0 [SEP] sentence 2: b', 'not_equivalent',
      {'answers': ('not_equivalent',), 'targets': ('not_equivalent',)})
  dressed = first(lowercase=True, extra_bos=True)
  assert dressed.source == '<s>  [glue-mrpc] sentence 1: validation0 [sep] sentence 2: b'
  assert dressed.extra == {'answers': ('not_equivalent',),
                           'targets': ('<s> <extra_id_0>not_equivalent',)}


def test_all_answers_count_for_the_score():
  task = get_task('crossfit/web_questions')
  examples = task.template({'question': 'who?', 'answers': ['Ann Lee', 'Bo']})
  assert score(task, [' the bo '], examples)['average_metrics'] == 100.0


def test_misaligned_labels_change_targets_and_not_answers():
  rows = [Example('a', '1', {'targets': ('1', '2')}), Example('b', '3'), Example('c', '4')]
  assert [example.target for example in gym.misaligned(rows)] == ['1', '2', '3']
  assert [example.source for example in gym.misaligned(rows)] == ['a', 'b', 'c']


def test_rows_without_a_label_are_named_unless_the_published_form_is_chosen():
  row = {'premise': 'p', 'choice1': 'x', 'choice2': 'y', 'label': -1}
  task = get_task('crossfit/superglue-copa')
  with pytest.raises(RowError, match='marks a row without a label'):
    task.template(row)
  assert task.template_named('published')(row)[0].target == '<extra_id_0>y'


@pytest.mark.parametrize('title, row, end', [
    ('ai2_arc', {'question': 'q', 'choices': {'label': ['A'], 'text': ['x']}, 'answerKey': 'B'},
     "field 'answerKey' has value 'B', which is not among A; fix the row or remove it"),
    ('quarel', {'question': 'q', 'answer_index': 0},
     "field 'question' does not hold '(A) ... (B) ...'; fix the row or remove it"),
    ('web_questions', {'question': 'q', 'answers': []},
     "field 'answers' holds no answer; fix the row or remove it"),
    ('hotpot_qa', {'question': 'q', 'answer': 'a', 'context': 'c'},
     "field 'context' is no object with title and sentences; fix the row or remove it"),
    ('hellaswag', {'ctx': 'c', 'endings': 'x', 'label': 0},
     "field 'endings' holds a str where a list of texts is expected; fix the row or remove it")])
def test_rows_that_do_not_fit_are_named(title, row, end):
  with pytest.raises(RowError) as error:
    get_task(f'crossfit/{title}').template(row)
  assert str(error.value) == end


def test_an_option_that_ends_in_or_stays_whole():
  row = {'question': 'Which? (A) the color or (B) the tailor', 'answer_index': 0}
  assert templates_gym.two_options_inside(row)[0][1] == ('the color',)
  row = {'question': 'Which? (A) the color (B) the tailor', 'answer_index': 1}
  assert templates_gym.two_options_inside(row)[0][1] == ('the tailor',)


def test_a_task_of_another_registry_has_no_pre_built_rows():
  assert _message(load_task, 'cola', 'train', DataConfig(source='crossfit')) == (
      "task 'cola' is not part of the few-shot gym; choose a name that starts with crossfit/, or "
      'another data.source.')
  assert _message(lambda: DataConfig(gym_test='all')) == (
      "data.gym_test 'all' is not known; choose one of gym, official.")


def test_the_table_of_the_documentation_is_that_of_the_code(repo_root):
  lines = (repo_root / 'docs' / 'data.md').read_text(encoding='utf-8').splitlines()
  stated = [[cell.strip() for cell in line.strip('|').split('|')]
            for line in lines if line.startswith('| crossfit/')]
  parts = {'split': '{test}', 'last_share': 'last {share:.0%} of {train}',
           'first_share': 'first {share:.0%} of {test}', 'next_rows': 'rows behind the pool'}
  entries = gym_table.entries()
  assert stated == [
      [task.name, '{0.category}: {0.group}'.format(entries[title]),
       'k for each label' if task.gym.kind == 'classification' else 'k',
       parts[task.gym.test].format(share=task.gym.share, **task.splits),
       task.gym.official_test or '-', task.metrics[0], entries[title].part]
      for title, task in ((gym.title_of(name), task)
                          for name, task in sorted(tasks_gym.GYM_TASKS.items()))]
