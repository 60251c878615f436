"""The tasks of multi-task ProPETL: rows shared with other tasks, forms of rows, local files."""

from __future__ import annotations

import json

import pytest

from pemt_jax.data.datasets import DataConfig, load_all_splits, load_task
from pemt_jax.data.splits import randperm
from pemt_jax.data.tasks import TASKS, get_task
from pemt_jax.data.tasks_base import SIZES, SPLITS
from pemt_jax.data.tasks_propetl import GLUE_MIXTURE, PROPETL_TASKS
from pemt_jax.data.templates import RowError
from pemt_jax.errors import UserError
from pemt_jax.evaluation.metrics import get_metric
from pemt_jax.evaluation.postprocess import AVERAGE, POSTPROCESS, score


def _made(name, row, template='default'):
  example, = get_task(f'propetl/{name}').template_named(template)(row)
  return example.source, example.target


def test_tables_name_only_known_parts():
  assert len(PROPETL_TASKS) == 97 and set(GLUE_MIXTURE) <= set(PROPETL_TASKS)
  for name, task in PROPETL_TASKS.items():
    assert name == task.name and name.startswith('propetl/')
    assert set(task.splits) == set(SPLITS) and task.size in SIZES
    assert task.postprocess in POSTPROCESS and all(map(get_metric, task.metrics))
    assert task.folders and (task.hf or name == 'propetl/sick')
    assert task.label_words or task.decoding or task.decode_texts
    assert task.description.startswith('Given ') and ', the task is to ' in task.description


def test_tasks_with_the_same_rows_differ_in_texts_and_scores_only():
  shared = [task for name, task in PROPETL_TASKS.items() if name.removeprefix('propetl/') in TASKS]
  assert len(shared) == 19
  for task in shared:
    other = TASKS[task.name.removeprefix('propetl/')]
    assert set(other.folders) <= set(task.folders) and task.blank == other.blank
    if not task.name.endswith('winogrande'):
      assert (task.hf, task.tfds) == (other.hf, other.tfds)


def test_published_sizes():
  sizes = {size: {name.removeprefix('propetl/') for name, task in PROPETL_TASKS.items()
                  if task.size == size} for size in ('small', 'large')}
  assert sizes['small'] == {'cola', 'wnli', 'rte', 'trec', 'superglue-cb', 'sick', 'mrpc', 'stsb',
                            'imdb', 'commonsense_qa', 'superglue-boolq'}
  assert sizes['large'] == {'yelp_polarity', 'qqp', 'qnli', 'social_i_qa', 'cosmos_qa',
                            'winogrande', 'hellaswag', 'sst2'}


@pytest.mark.parametrize('name, row, made', [
    ('wmt16-ro-en', {'translation': {'ro': 'Bună', 'en': 'Hello'}},
     ('Translate Romanian to English: Bună', 'Hello')),
    ('wmt16-ro-en', {'translation': '{"ro": "Bună", "en": "Hello"}'},
     ('Translate Romanian to English: Bună', 'Hello')),
    ('wmt16-ro-en', {'ro': 'Bună', 'en': 'Hello'},
     ('Translate Romanian to English: Bună', 'Hello')),
    ('wmt14_hi-en', {'translation': {'hi': 'h', 'en': 'e'}},
     ('Translate English to Hindi: e', 'h')),
    ('trec', {'text': 'Who?', 'coarse_label': 3}, ('sentence: Who?', '3')),
    ('winogrande', {'sentence': 's', 'option1': 'a', 'option2': 'b', 'answer': 2},
     ('sentence: s option1: a option2: b', '2')),
    ('hellaswag', {'ctx': 'c', 'endings': '["a", "b", "c", "d"]', 'label': '0'},
     ('ctx: c ending0: a ending1: b ending2: c ending3: d', '0')),
    ('mlqa_en', {'question': 'q', 'context': 'c', 'answers': {'text': ['a', 'b']}},
     ('question: q context: c', 'a'))])
def test_forms_of_rows(name, row, made):
  assert _made(name, row) == made


def test_the_name_may_stand_in_front():
  row = {'translation': {'ro': 'Bună', 'nl': 'Hallo', 'en': 'Hello'}}
  assert _made('iwslt2017-ro-nl', row, 'name_in_front')[0] == 'Translate Romanian to Dutch Bună'
  assert _made('cola', {'sentence': 'x', 'label': 0}, 'name_in_front') == ('cola sentence: x', '0')
  assert _made('wikiann_hsb', {'tokens': ['a'], 'spans': ['PER: a']}, 'name_in_front') == (
      'wikiann_hsb tag entity: a', 'PER: a')


@pytest.mark.parametrize('name, row, end', [
    ('wmt16-ro-en', {'translation': 'x'}, 'field \'translation\' is no object such as {"ro": "...",'
     ' "en": "..."}; fix the row or remove it'),
    ('wmt16-ro-en', {'translation': {'ro': 'x'}}, "field 'en' is missing (fields found: "
     'translation); fix the row or remove it'),
    ('hellaswag', {'ctx': 'c', 'endings': ['a'], 'label': 0},
     "field 'endings' does not hold 4 texts; fix the row or remove it"),
    ('mlqa_de', {'question': 'q', 'context': 'c', 'answers': {'text': []}},
     "field 'answers' holds no answer; fix the row or remove it"),
    ('ud_en', {'tokens': 'a b', 'upos': [1]},
     "field 'tokens' holds a str where a list is expected; fix the row or remove it")])
def test_bad_rows_are_named(name, row, end):
  with pytest.raises(RowError) as error:
    _made(name, row)
  assert str(error.value) == end


def test_unknown_names_suggest_close_ones():
  with pytest.raises(UserError, match='close names are propetl/wmt16-ro-en'):
    get_task('propetl/wmt16-ro')


def test_texts_that_are_no_number_lower_the_scores():
  examples = load_examples('mrpc', ({'sentence1': 'a', 'sentence2': 'b', 'label': label}
                                    for label in (1, 1, 0, 1)))
  assert score(get_task('propetl/mrpc'), ['1', 'x', '1', ' 1 '], examples) == {
      'f1': pytest.approx(200 / 3), 'accuracy': 50.0, AVERAGE: pytest.approx(175 / 3)}
  examples = load_examples('stsb', ({'sentence1': 'a', 'sentence2': 'b', 'label': label}
                                    for label in (1, 2, 3)))
  assert score(get_task('propetl/stsb'), ['1', '2', '3.0'], examples)[AVERAGE] == pytest.approx(100)


def load_examples(name, rows):
  """Examples of rows of a task."""
  return [example for row in rows for example in get_task(f'propetl/{name}').template(row)]


def _write(folder, split, rows):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / f'{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.fixture
def root(tmp_path):
  """Rows of CoLA (20 and 11), SST-2 (60 and 10), and one split each of XSum and WMT16."""
  for name, count, more in (('cola', 20, 11), ('sst2', 60, 10)):
    rows = [{'sentence': str(i), 'label': i % 2} for i in range(count + more)]
    _write(tmp_path / 'glue' / name, 'train', rows[:count])
    _write(tmp_path / 'glue' / name, 'validation', rows[count:])
  return tmp_path


def _numbers(data):
  return [int(example.source.removeprefix('sentence: ')) for example in data.examples]


def test_published_splits_train_on_validation_rows_and_lose_their_last_row(root):
  config = DataConfig(root=str(root), validation_rows=25, compat_splits=True)
  large = load_all_splits('propetl/sst2', config)
  assert _numbers(large['train']) == list(range(59))
  assert _numbers(large['validation']) == randperm(60).tolist()[:24]
  assert _numbers(large['test']) == list(range(60, 69))
  assert large['validation'].provenance['notes'] == ['validation rows are train rows too']
  assert large['train'].provenance['compat_splits']
  small = load_all_splits('propetl/cola', config)
  order = (20 + randperm(11)).tolist()
  assert _numbers(small['train']) == list(range(19))
  assert (_numbers(small['validation']), _numbers(small['test'])) == (order[:4], order[5:10])
  limited = DataConfig(root=str(root), compat_splits=True, max_train_rows=7)
  assert _numbers(load_task('propetl/cola', 'train', limited)) == randperm(20).tolist()[:7]


def test_splits_share_no_row_unless_the_published_ones_are_asked_for(root):
  sound = load_all_splits('propetl/sst2', DataConfig(root=str(root), validation_rows=25))
  assert not set(_numbers(sound['train'])) & set(_numbers(sound['validation']))
  assert len(sound['train'].examples) == 35 and len(sound['test'].examples) == 10


def test_single_task_rule_halves_small_tasks_and_cuts_all_others(root):
  config = DataConfig(root=str(root), validation_rows=5, split_rule='halved_or_cut')
  _write(root / 'glue' / 'mnli', 'train', [
      {'premise': str(i), 'hypothesis': 'h', 'label': 0} for i in range(9)])
  _write(root / 'glue' / 'mnli', 'validation_matched', [
      {'premise': 'm', 'hypothesis': 'h', 'label': 0}])
  cut = load_all_splits('propetl/mnli', config)
  assert [len(cut[split].examples) for split in SPLITS] == [4, 5, 1]
  halved = load_all_splits('propetl/cola', config)
  assert [len(halved[split].examples) for split in SPLITS] == [20, 5, 6]


def test_summaries_and_translations_are_read_from_local_files(tmp_path):
  import pyarrow
  import pyarrow.parquet
  pairs = [{'translation': {'ro': 'Bună', 'en': 'Hello'}}]
  folder = tmp_path / 'wmt16' / 'ro-en'
  folder.mkdir(parents=True)
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pairs), folder / 'train.parquet')
  (folder / 'test.csv').write_text('ro,en\nBună,Hello\n', encoding='utf-8')
  _write(tmp_path / 'xsum', 'test', [{'document': 'Long text.', 'summary': 'Text.', 'id': '1'}])
  config = DataConfig(root=str(tmp_path))
  for split in ('train', 'test'):
    example, = load_task('propetl/wmt16-ro-en', split, config).examples
    assert (example.source, example.target) == ('Translate Romanian to English: Bună', 'Hello')
  example, = load_task('propetl/xsum', 'test', config).examples
  assert (example.source, example.target) == ('summarize: Long text.', 'Text.')


def test_a_split_may_come_from_another_data_set(monkeypatch):
  import datasets

  from pemt_jax.data import sources
  asked = []

  def load(*arguments, split):
    asked.append((*arguments, split))
    return datasets.Dataset.from_list([{'question': 'q'}])

  monkeypatch.setattr(datasets, 'load_dataset', load)
  for split in ('train', 'test'):
    sources.read_hf(get_task('propetl/mlqa_de'), split)
  assert asked == [('mlqa', 'mlqa-translate-train.de', 'train'), ('mlqa', 'mlqa.de.de', 'test')]
