"""Laws of loading: which rows make a split, what provenance records, how mistakes are told."""

from __future__ import annotations

import json
import sys
import types

import pytest

from pemt_jax.data import splits
from pemt_jax.data.datasets import DataConfig, load_all_splits, load_task
from pemt_jax.data.tasks import SPLITS, Task
from pemt_jax.data.templates import Example
from pemt_jax.errors import UserError


def _write(path, rows) -> str:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
  return str(path)


def _sentences(count: int, start: int = 0):
  return [{'sentence': f's{start + i}', 'label': i % 2} for i in range(count)]


@pytest.fixture
def root(tmp_path):
  """Local rows: cola with 20 + 10, sst2 with 60 + 10 (train rows s0.., validation rows s100..)."""
  for name, count in (('cola', 20), ('sst2', 60)):
    _write(tmp_path / f'glue/{name}/train.jsonl', _sentences(count))
    _write(tmp_path / f'glue/{name}/validation.jsonl', _sentences(10, start=100))
  return tmp_path


def _numbers(data) -> list[int]:
  return [int(example.source.removeprefix('sentence: s')) for example in data.examples]


def _message(call, *arguments, **options) -> str:
  with pytest.raises(UserError) as error:
    call(*arguments, **options)
  return str(error.value)


def test_published_rule_halves_the_validation_rows_of_a_small_task(root):
  loaded = load_all_splits('cola', DataConfig(root=str(root)))
  order = [100 + int(row) for row in splits.randperm(10)]
  assert _numbers(loaded['train']) == list(range(20))
  assert _numbers(loaded['validation']) == order[:5]
  assert _numbers(loaded['test']) == order[5:]


def test_published_rule_cuts_the_train_rows_of_a_large_task(root):
  loaded = load_all_splits('sst2', DataConfig(root=str(root), validation_rows=25))
  order = splits.randperm(60).tolist()
  assert _numbers(loaded['validation']) == order[:25]
  assert _numbers(loaded['train']) == order[25:]
  assert _numbers(loaded['test']) == list(range(100, 110))
  assert loaded['train'].examples[0] == Example(
      f'sentence: s{order[25]}', ('negative', 'positive')[order[25] % 2])


def test_first_n_of_train_cuts_train_for_every_task(root):
  config = DataConfig(root=str(root), split_rule='first_n_of_train', validation_rows=4)
  loaded = load_all_splits('cola', config)
  order = splits.randperm(20).tolist()
  assert _numbers(loaded['validation']) == order[:4] and _numbers(loaded['train']) == order[4:]
  assert _numbers(loaded['test']) == list(range(100, 110))
  assert loaded['validation'].provenance['rule'] == 'first_n_of_train'


def test_natural_rule_uses_the_given_splits_and_misses_absent_ones(root):
  config = DataConfig(root=str(root), split_rule='natural')
  assert _numbers(load_task('cola', 'validation', config)) == list(range(100, 110))
  assert _message(load_task, 'cola', 'test', config) == (
      f"task 'cola' has no split 'test' below {root}: looked in glue/cola (holds train, "
      'validation); add test.jsonl there, name another split in data.split_names, or choose '
      'another data.split_rule or data.source.')


def test_provenance_is_json_and_states_rule_files_and_counts(root):
  config = DataConfig(root=str(root), validation_rows=10, max_train_rows=7)
  provenance = load_task('sst2', 'train', config).provenance
  assert json.loads(json.dumps(provenance)) == {
      'task': 'sst2', 'split': 'train', 'source': 'local', 'rule': 'published', 'part': 'rest',
      'files': [f'{root}/glue/sst2/train.jsonl'], 'rows_read': 60, 'rows_chosen': 7, 'examples': 7,
      'data_seed': 42, 'few_shot': None, 'few_shot_seed': None, 'row_limit': 7,
      'template': 'default', 'notes': []}


def test_row_limits_cut_after_the_permutation(root):
  config = DataConfig(root=str(root), max_train_rows=5, max_validation_rows=3, max_test_rows=2)
  loaded = load_all_splits('cola', config)
  assert _numbers(loaded['train']) == splits.randperm(20)[:5].tolist()
  assert _numbers(loaded['validation']) == [100 + int(row) for row in splits.randperm(10)[:3]]
  assert len(loaded['test'].examples) == 2


def test_a_task_states_its_own_row_limit_unless_one_is_given(tmp_path):
  config = DataConfig(root=str(tmp_path), validation_rows=1)
  _write(tmp_path / 'yelp_polarity/train.jsonl', [{'text': str(i), 'label': 1} for i in range(4)])
  assert load_task('yelp_polarity', 'train', config).provenance['row_limit'] == 100_000
  config = DataConfig(root=str(tmp_path), validation_rows=1, task_row_limits=False)
  assert load_task('yelp_polarity', 'train', config).provenance['row_limit'] is None


def test_few_shot_rows_are_no_validation_rows_unless_the_published_draw_is_asked_for(root):
  config = DataConfig(root=str(root), validation_rows=30, few_shot=10)
  loaded = load_all_splits('sst2', config)
  train, validation = _numbers(loaded['train']), _numbers(loaded['validation'])
  assert not set(train) & set(validation) and len(validation) == 30
  assert sorted(number % 2 for number in train) == [0] * 10 + [1] * 10
  published = DataConfig(root=str(root), validation_rows=30, few_shot=10,
                         few_shot_exclude_validation=False, few_shot_give_up_after=1000)
  data = load_task('sst2', 'train', published)
  labels = [i % 2 for i in range(60)]
  assert _numbers(data) == splits.few_shot_indices(labels, 60, 10, give_up_after=1000)
  assert set(_numbers(data)) & set(validation)
  assert data.provenance['notes'] == ['few-shot rows may be validation rows']


def test_few_shot_seed_changes_the_draw_but_not_the_validation_rows(root):
  loaded = [load_all_splits('sst2', DataConfig(root=str(root), validation_rows=20, few_shot=3,
                                               few_shot_seed=seed)) for seed in (0, 1)]
  assert _numbers(loaded[0]['train']) != _numbers(loaded[1]['train'])
  assert _numbers(loaded[0]['validation']) == _numbers(loaded[1]['validation'])


def test_few_shot_of_a_task_without_labels_takes_k_rows(tmp_path):
  rows = [{'question': f'q{i}', 'context': 'c', 'answer': 'a'} for i in range(30)]
  _write(tmp_path / 'squad/v1/train.jsonl', rows)
  config = DataConfig(root=str(tmp_path), split_rule='natural', few_shot=8)
  assert len(load_task('squad', 'train', config).examples) == 8


def test_given_files_stand_as_they_are(root):
  files = {'train': _write(root / 'mine.jsonl', [{'source': 'in', 'target': 'acceptable', 'n': 3}]),
           'test': _write(root / 'test.jsonl', _sentences(3, start=500))}
  loaded = load_all_splits('cola', DataConfig(root=str(root), files=files))
  assert loaded['train'].examples == [Example('in', 'acceptable', {'n': 3})]
  assert _numbers(loaded['test']) == [500, 501, 502]
  assert [loaded[split].provenance['rule'] for split in loaded] == ['file', 'published', 'file']


def test_a_task_of_the_users_own_needs_only_a_train_file(tmp_path):
  path = tmp_path / 'mine.csv'
  path.write_text('source,target\n' + ''.join(f'in{i},out{i}\n' for i in range(10)))
  config = DataConfig(files={'train': str(path)}, split_rule='first_n_of_train', validation_rows=4)
  loaded = load_all_splits('file/mine', config, ('train', 'validation'))
  texts = [example.source for data in loaded.values() for example in data.examples]
  assert sorted(texts) == [f'in{i}' for i in range(10)] and len(loaded['validation'].examples) == 4
  assert loaded['validation'].provenance['source'] == 'file'


def test_a_given_validation_file_leaves_the_given_train_file_whole(tmp_path):
  files = {split: _write(tmp_path / f'{split}.jsonl', _sentences(5)) for split in SPLITS[:2]}
  config = DataConfig(files=files, split_rule='first_n_of_train', validation_rows=2,
                      split_names={'train': 'train_l'})
  assert len(load_task('cola', 'train', config).examples) == 5
  config = DataConfig(files={'train': files['train']}, split_rule='first_n_of_train',
                      validation_rows=2, split_names={'train': 'train_l'})
  assert len(load_task('cola', 'train', config).examples) == 3


def test_differences_of_one_task_leave_the_others_alone(root):
  config = DataConfig(root=str(root), validation_rows=5, per_task={
      'glue-sst2': {'split_rule': 'natural', 'split_names': {'train': 'validation'}}})
  assert _numbers(load_task('sst2', 'train', config)) == list(range(100, 110))
  assert load_task('cola', 'train', config).provenance['rule'] == 'published'


def test_validation_rows_that_serve_as_test_rows_are_noted(tmp_path):
  for split in ('train', 'validation'):
    _write(tmp_path / f'piqa/{split}.jsonl', [{'goal': 'g', 'sol1': 'a', 'sol2': 'b', 'label': 0}])
  loaded = load_all_splits('piqa', DataConfig(root=str(tmp_path)))
  assert loaded['train'].provenance['notes'] == []
  assert loaded['test'].provenance['notes'] == ['validation and test hold the same rows']


def test_templates_are_chosen_by_name(tmp_path):
  _write(tmp_path / 'piqa/train.jsonl', [{'goal': 'g', 'sol1': 'ab', 'sol2': 'cd', 'label': 0}])
  config = DataConfig(root=str(tmp_path), template='first_character')
  assert load_task('piqa', 'train', config).examples[0].source == (
      'question: g choice1: a choice2: c')


@pytest.mark.parametrize('row, end', [
    ({'sentence': 's', 'label': 9},
     "field 'label' has value 9, which is not among 0..1 (unacceptable, acceptable); fix the row "
     'or remove it.'),
    ({'sentence': 's'},
     "field 'label' is missing (fields found: sentence); fix the row or remove it."),
    ({'sentence': None, 'label': 0}, "field 'sentence' is null; fix the row or remove it."),
    ({'sentence': ['s'], 'label': 0},
     "field 'sentence' holds a list where text is expected; fix the row or remove it."),
    ({'source': 's', 'target': 'grammatical'},
     "field 'target' has value 'grammatical', which is not among 0..1 (unacceptable, acceptable); "
     'fix the row or remove it.')])
def test_bad_rows_are_told_with_file_and_line(tmp_path, row, end):
  path = _write(tmp_path / 'bad.jsonl', [*_sentences(16), row])
  config = DataConfig(files={'train': path})
  assert _message(load_task, 'cola', 'train', config) == f'line 17 of {path}: {end}'


def test_few_shot_draw_names_a_row_without_its_label(tmp_path):
  path = _write(tmp_path / 'bad.jsonl', [*_sentences(4), {'sentence': 's'}])
  config = DataConfig(files={'train': path}, few_shot=2)
  assert _message(load_task, 'cola', 'train', config) == (
      f"line 5 of {path}: field 'label' is missing; fix the row or remove it.")


def test_empty_and_too_small_splits_end_with_one_sentence(root):
  path = _write(root / 'none.jsonl', [])
  assert _message(load_task, 'cola', 'train', DataConfig(files={'train': path})) == (
      f"split 'train' of task 'cola' has no rows in {path}; fill it or choose another "
      'data.split_rule.')
  assert _message(load_task, 'sst2', 'train', DataConfig(root=str(root))) == (
      "task 'sst2': split rule 'published' takes 1000 validation rows out of the 60 rows of "
      f"{root}/glue/sst2/train.jsonl; lower data.validation_rows or set data.split_rule='natural'.")
  _write(root / 'glue/cola/validation.jsonl', _sentences(1))
  assert _message(load_task, 'cola', 'test', DataConfig(root=str(root))) == (
      f"task 'cola': split rule 'published' halves {root}/glue/cola/validation.jsonl, which has "
      "one row; set data.split_rule='natural'.")


def test_a_split_of_unlabelled_rows_only_has_no_example(tmp_path):
  path = _write(tmp_path / 'snli.jsonl', [{'premise': 'p', 'hypothesis': 'h', 'label': -1}])
  assert _message(load_task, 'snli', 'train', DataConfig(files={'train': path})) == (
      f"split 'train' of task 'snli' has no example left out of 1 rows of {path}; give it rows "
      'with labels.')


@pytest.mark.parametrize('values, sentence', [
    ({'source': 'web'},
     "data.source 'web' is not known; choose one of local, hf, tfds, playground, crossfit."),
    ({'split_rule': 'half'}, "data.split_rule 'half' is not known; choose one of published, "
     'natural, first_n_of_train, halved_validation, halved_or_cut.'),
    ({'few_shot': 0}, 'data.few_shot is 0; give a number of at least 1.'),
    ({'files': {'dev': 'x'}},
     "data.files names split 'dev'; choose one of train, validation, test.")])
def test_config_values_out_of_range(values, sentence):
  assert _message(DataConfig.from_mapping, values) == sentence


def test_unknown_keys_and_splits(root):
  assert _message(DataConfig.from_mapping, {'shots': 3}).startswith(
      'data.shots is not a config key; the keys are compat_drop_last, compat_misaligned_labels, ')
  assert _message(load_task, 'cola', 'dev', DataConfig(root=str(root))) == (
      "the run names split 'dev'; choose one of train, validation, test.")
  config = DataConfig(root=str(root), per_task={'cola': {'shots': 3}})
  assert _message(load_task, 'cola', 'train', config).startswith('data.shots is not a config key')


def test_playground_names_are_read_from_the_playground(monkeypatch):
  stand_in = types.ModuleType('pemt_jax.data.playground')
  stand_in.get_task = lambda name: Task(
      name=name, benchmark='playground', template=lambda row: [Example(row['text'], row['word'])],
      metrics=('accuracy',), description='Given a text, the task is to echo.')
  stand_in.rows = lambda name, split, seed: [{'text': f'{split} {seed}', 'word': name}]
  monkeypatch.setitem(sys.modules, 'pemt_jax.data.playground', stand_in)
  monkeypatch.setattr('pemt_jax.data.playground', stand_in, raising=False)
  data = load_task('playground/echo', 'test', DataConfig(source='playground', data_seed=5))
  assert data.examples == [Example('test 5', 'playground/echo')]
  assert data.provenance['rule'] == 'natural' and data.provenance['source'] == 'playground'
  assert _message(load_task, 'cola', 'test', DataConfig(source='playground')) == (
      "task 'cola' is not part of the playground; choose a name that starts with playground/, or "
      'another data.source.')


# Where the shared rows lack a split of the published rule, or have fewer rows than it needs.
SHARED = DataConfig(max_train_rows=50, max_validation_rows=50, max_test_rows=50, per_task={
    'mnli': {'split_rule': 'first_n_of_train'}, 'superglue-record': {'split_rule': 'natural'},
    'winogrande': {'split_names': {'train': 'train_l'}}, 'yelp_polarity': {'validation_rows': 200},
    'hotpotqa': {'validation_rows': 40}, 'paws': {'split_names': {'test': 'validation'}}})


@pytest.mark.parametrize('name', [
    'cola', 'sst2', 'mrpc', 'qqp', 'stsb', 'mnli', 'qnli', 'rte', 'superglue-boolq',
    'superglue-rte', 'superglue-cb', 'superglue-multirc', 'superglue-wic', 'superglue-wsc-fixed',
    'superglue-record', 'squad', 'hotpotqa', 'winogrande', 'yelp_polarity', 'paws'])
def test_every_task_with_shared_rows_loads(name, shared_root):
  config = DataConfig.from_mapping({**vars(SHARED), 'root': str(shared_root / 'data')})
  wanted = SPLITS[:2] if name == 'superglue-record' else SPLITS
  for data in load_all_splits(name, config, wanted).values():
    assert 0 < len(data.examples) <= 150
    assert all(example.source.strip() and example.target.strip() for example in data.examples)
