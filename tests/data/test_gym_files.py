"""Laws of pre-built folders of the few-shot gym."""

from __future__ import annotations

import json

import pytest

from pemt_jax.data import gym_files
from pemt_jax.data.datasets import DataConfig, load_task
from pemt_jax.errors import UserError

TASK = 'crossfit/web_questions'


def _message(function, *arguments):
  with pytest.raises(UserError) as error:
    function(*arguments)
  return str(error.value)


@pytest.fixture
def folder(tmp_path):
  """Two draws of one task, in the form of tables."""
  folder = tmp_path / 'web_questions'
  folder.mkdir()
  for seed in (13, 42):
    for part in ('train', 'dev', 'test'):
      gym_files.write_lines(folder / f'web_questions_32_{seed}_{part}.tsv', [
          (f'{part} {seed} {i}', ['one', f'two {i}'][:i % 2 + 1]) for i in range(6)])
  return folder


def test_the_seed_or_the_prefix_chooses_the_draw(folder):
  assert gym_files.prefixes(folder, 'web_questions') == (
      'web_questions_32_13', 'web_questions_32_42')
  config = dict(source='crossfit', root=str(folder.parent), template='plain')
  first = lambda **more: load_task(TASK, 'validation', DataConfig(**config, **more)).examples[0]
  assert first().source == 'dev 42 0'
  assert first(few_shot_seed=13).source == 'dev 13 0'
  assert first(prefix='web_questions_32_13').source == 'dev 13 0'
  assert _message(lambda: first(few_shot_seed=7)) == (
      f'{folder} does not have one prefix of seed 7 (it has web_questions_32_13, '
      'web_questions_32_42); name one of them in data.prefix.')
  assert _message(lambda: first(prefix='other')) == (
      f"{folder} does not have prefix 'other' (it has web_questions_32_13, web_questions_32_42); "
      'name one of them in data.prefix.')


def test_lines_keep_all_answers_and_their_order(folder):
  config = DataConfig(source='crossfit', root=str(folder.parent), max_test_rows=4)
  data = load_task(TASK, 'test', config)
  assert [example.extra['answers'] for example in data.examples] == [
      ('one',), ('one', 'two 1'), ('one',), ('one', 'two 3')]
  assert data.provenance['part'] == 'pre-built' and data.provenance['rule'] == 'few-shot gym'
  shots = DataConfig(source='crossfit', root=str(folder.parent), few_shot=2)
  assert len(load_task(TASK, 'train', shots).examples) == 2
  assert len(load_task(TASK, 'validation', shots).examples) == 6


def test_a_line_without_an_answer_is_named(folder):
  path = folder / 'web_questions_32_42_dev.tsv'
  path.write_text('question\tanswer\n\n  lonely \t \n', encoding='utf-8')
  config = DataConfig(source='crossfit', root=str(folder.parent))
  assert _message(load_task, TASK, 'validation', config) == (
      f'line 3 of {path} holds no answer behind a tab; fix the line or remove it.')
  path.unlink()
  assert _message(load_task, TASK, 'validation', config) == (
      f"task 'web_questions' has no {path.name} in {folder}; add it or leave this split out.")


def test_the_rows_of_all_draws_may_be_read_together(folder):
  config = dict(source='crossfit', root=str(folder.parent), template='plain', prefix='*')
  texts = lambda split, **more: [example.source for example in load_task(
      TASK, split, DataConfig(**config, **more)).examples]
  each = lambda part: [f'{part} {seed} {i}' for seed in (13, 42) for i in range(6)]
  assert texts('train') == each('train') and texts('validation') == each('dev')
  assert texts('test') == each('test')[:6]
  assert texts('train', train_on_validation=True) == each('train') + each('dev')
  assert texts('test', train_on_validation=True) == each('test')[:6]


def test_missing_folders_are_named(tmp_path):
  assert _message(load_task, TASK, 'train', DataConfig(source='crossfit')) == (
      'data.root is not set; give the folder that holds <task>/<prefix>_train.tsv.')
  config = DataConfig(source='crossfit', root=str(tmp_path))
  assert _message(load_task, TASK, 'train', config) == (
      f"task 'web_questions' has no folder {tmp_path}/web_questions; correct data.root or make the "
      'folder.')


def test_the_form_with_one_file_for_all_draws(tmp_path):
  folder = tmp_path / 'codah'
  folder.mkdir()
  rows = [{'k': 16, 'seed': seed, 'split': split, 'input': f'{split} {seed}', 'output': 'no',
           'options': ['yes', 'no']} for seed in (13, 42) for split in ('dev', 'train')]
  (folder / 'fewshot.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  (folder / 'test.jsonl').write_text(json.dumps({'input': 'q (A) x', 'output': 'x', 'options': []}))
  assert gym_files.prefixes(folder, 'codah') == ('codah_16_13', 'codah_16_42')
  config = DataConfig(source='crossfit', root=str(tmp_path), few_shot_seed=13)
  load = lambda split: [(e.source, e.target)
                        for e in load_task('crossfit/codah', split, config).examples]
  assert load('train') == [(' [codah] train 13 (A) yes (B) no', '<extra_id_0>no')]
  assert load('validation') == [(' [codah] dev 13 (A) yes (B) no', '<extra_id_0>no')]
  assert load('test') == [(' [codah] q (A) x', '<extra_id_0>x')]


def test_real_folders_are_read(shared_root):
  root = shared_root / 'data' / 'crossfit_gym'
  if not root.is_dir():
    pytest.skip(f'no folder {root}')
  config = DataConfig(source='crossfit', root=str(root), few_shot_seed=87)
  for name in ('crossfit/boolq', 'crossfit/tweet_eval-irony', 'crossfit/openbookqa'):
    for split in ('train', 'validation', 'test'):
      data = load_task(name, split, config)
      assert len(data.examples) >= 16 and data.examples[0].target.startswith('<extra_id_0>')
