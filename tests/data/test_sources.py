"""Laws of the row readers: every form gives the same rows, every mistake one sentence."""

from __future__ import annotations

import gzip
import json
import sys

import numpy as np
import pytest

from pemt_jax.data import sources
from pemt_jax.data.tasks import get_task
from pemt_jax.errors import UserError

ROWS = [{'sentence': 'Ünder the, bridge', 'label': 1}, {'sentence': 'two\twords', 'label': 0}]


def _write(path, text: str):
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.gz':
    path.write_bytes(gzip.compress(text.encode('utf-8')))
  else:
    path.write_text(text, encoding='utf-8')
  return path


def _lines(rows) -> str:
  return ''.join(json.dumps(row) + '\n' for row in rows)


def _message(call, *arguments) -> str:
  with pytest.raises(UserError) as error:
    call(*arguments)
  return str(error.value)


@pytest.mark.parametrize('name, text', [
    ('a.jsonl', _lines(ROWS)), ('a.jsonl.gz', _lines(ROWS)), ('a.json', _lines(ROWS)),
    ('b.json', json.dumps(ROWS)), ('a.jsonl', _lines(ROWS).replace('\n', '\r\n')),
    ('a.csv', 'sentence,label\n"Ünder the, bridge",1\ntwo\twords,0\n'),
    ('a.csv.gz', 'label,sentence\n1,"Ünder the, bridge"\n0,two\twords\n')])
def test_every_text_form_gives_the_same_rows(tmp_path, name, text):
  table = sources.read_file(_write(tmp_path / name, text))
  assert [(row['sentence'], int(row['label'])) for row in table.rows] == [
      (row['sentence'], row['label']) for row in ROWS]


def test_tsv_keeps_quotes_as_glue_writes_them(tmp_path):
  table = sources.read_file(_write(tmp_path / 'a.tsv', 'sentence\tlabel\n"So" he said\t1\n'))
  assert table.rows == [{'sentence': '"So" he said', 'label': '1'}]


def test_parquet_gives_the_same_rows(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  import pyarrow.parquet
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / 'a.parquet')
  table = sources.read_file(tmp_path / 'a.parquet')
  assert list(table.rows) == ROWS and table.place(1) == f'row 2 of {tmp_path}/a.parquet'


def test_places_count_blank_and_header_lines_and_rows_over_several_lines(tmp_path):
  lines = sources.read_file(_write(tmp_path / 'a.jsonl', '{"a": 1}\n\n{"a": 2}\n'))
  assert lines.place(1) == f'line 3 of {tmp_path}/a.jsonl'
  commas = sources.read_file(_write(tmp_path / 'a.csv', 'a,b\n1,"x\ny"\n2,z\n'))
  assert [commas.place(i) for i in (0, 1)] == [
      f'line {number} of {tmp_path}/a.csv' for number in (2, 4)]


@pytest.mark.parametrize('name, text, end', [
    ('a.jsonl', '{"a": 1}\n{"a": }\n',
     'line 2 of {path} is not JSON (Expecting value at column 7); fix the line or remove it.'),
    ('a.jsonl', '{"a": 1}\n[1, 2]\n',
     'line 2 of {path} holds a list where an object with named fields is expected; fix the line '
     'or remove it.'),
    ('a.json', '[{"a": 1},\n 3]',
     'row 2 of {path} holds a int where an object with named fields is expected; fix the row or '
     'remove it.'),
    ('a.json', '[{"a": 1},\n }]',
     'line 2 of {path} is not JSON (Expecting value at column 2); fix the line.'),
    ('a.csv', 'a,b\n1,2\n1,2,3\n',
     'line 3 of {path} has 3 columns where the header names 2; fix the line or remove it.'),
    ('a.txt', 'x', "file '{path}' is of no known kind; give one of .jsonl, .jsonl.gz, .json, .tsv, "
     '.tsv.gz, .csv, .csv.gz, .parquet.')])
def test_bad_files_are_told_with_file_and_line(tmp_path, name, text, end):
  path = _write(tmp_path / name, text)
  assert _message(sources.read_file, path) == end.format(path=path)


def test_absent_and_broken_files(tmp_path):
  path = tmp_path / 'none.jsonl'
  assert _message(sources.read_file, path) == (
      f"there is no file '{path}'; correct the path in data.files.")
  path = tmp_path / 'broken.jsonl.gz'
  path.write_bytes(b'no gzip')
  assert _message(sources.read_file, path) == (
      f"file '{path}' cannot be read (Not a gzipped file (b'no')); make it again or remove it.")


def test_local_rows_come_from_the_first_folder_that_has_the_split(tmp_path):
  task = get_task('superglue-wsc-fixed')
  _write(tmp_path / 'super_glue/wsc/train.jsonl', '{"a": "wsc"}\n')
  assert sources.read_local(task, 'train', tmp_path).rows == [{'a': 'wsc'}]
  _write(tmp_path / 'super_glue/wsc.fixed/train.jsonl.gz', '{"a": "fixed"}\n')
  assert sources.read_local(task, 'train', tmp_path).rows == [{'a': 'fixed'}]


def test_a_task_without_local_rows_ends_with_one_sentence(tmp_path):
  task = get_task('nq')
  assert _message(sources.read_local, task, 'train', None) == (
      'data.root is not set; give the folder that holds <benchmark>/<task>/<split>.jsonl, or '
      "choose data.source='hf'.")
  assert _message(sources.read_local, task, 'train', tmp_path / 'x') == (
      f"data.root '{tmp_path}/x' is not a folder; correct the path.")
  assert _message(sources.read_local, task, 'train', tmp_path) == (
      f"task 'nq' has no data below {tmp_path}: there is no folder mrqa/nq; put train.jsonl there "
      'or choose another data.source.')


def test_an_absent_split_names_the_splits_there_are(tmp_path):
  for name in ('train_s', 'train_l', 'validation'):
    _write(tmp_path / f'winogrande/winogrande/{name}.jsonl.gz', '{"a": 1}\n')
  assert _message(sources.read_local, get_task('winogrande'), 'train', tmp_path) == (
      f"task 'winogrande' has no split 'train' below {tmp_path}: looked in "
      'winogrande/winogrande_xl (absent), winogrande/winogrande (holds train_l, train_s, '
      'validation), winogrande (holds no rows); add '
      'train.jsonl there, name another split in data.split_names, or choose another '
      'data.split_rule or data.source.')


class _Table:
  def to_list(self):
    return [dict(row) for row in ROWS]


def test_hub_rows_fall_back_to_the_parquet_branch(monkeypatch):
  datasets = pytest.importorskip('datasets')
  calls = []

  def load(*arguments, **options):
    calls.append((arguments, options))
    if 'revision' not in options:
      raise RuntimeError('Dataset scripts are no longer supported, but found super_glue.py')
    return _Table()

  monkeypatch.setattr(datasets, 'load_dataset', load)
  table = sources.read_hf(get_task('superglue-cb'), 'train')
  assert table.rows == ROWS and table.place(0) == 'row 1 of super_glue/cb, split train'
  assert calls == [
      (('super_glue', 'cb'), {'split': 'train'}),
      (('super_glue', 'cb'), {'split': 'train', 'revision': 'refs/convert/parquet'})]


def test_hub_failure_ends_with_one_sentence(monkeypatch):
  datasets = pytest.importorskip('datasets')

  def load(*arguments, **options):
    raise ConnectionError("Couldn't reach the Hub.\nmore")

  monkeypatch.setattr(datasets, 'load_dataset', load)
  assert _message(sources.read_hf, get_task('squad'), 'train') == (
      "task 'squad': split 'train' of Hugging Face data set 'squad' cannot be loaded "
      "(ConnectionError: Couldn't reach the Hub); check the network, or set data.source='local' "
      'and data.root.')


def test_hub_rows_are_those_of_the_library(tmp_path, monkeypatch):
  datasets = pytest.importorskip('datasets')
  original = datasets.load_dataset
  path = _write(tmp_path / 'train.jsonl', _lines(ROWS))
  monkeypatch.setattr(datasets, 'load_dataset', lambda *_, split: original(
      'json', data_files={'train': str(path)}, split=split, cache_dir=str(tmp_path / 'cache')))
  assert sources.read_hf(get_task('sst2'), 'train').rows == ROWS


def _prepare(root, name: str, split: str, features, rows, config: str | None = None) -> None:
  """Prepares a data set in array_record format below `root`; it is not registered by name."""
  import tensorflow_datasets as tfds

  class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [] if config is None else [tfds.core.BuilderConfig(name=config)]
    code_path = None  # No checksum file lies beside this builder.

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {split: enumerate(rows)}

    def _generate_examples(self):
      raise NotImplementedError

  Builder.name = name
  Builder(config=config, data_dir=root, file_format='array_record').download_and_prepare()


@pytest.fixture(scope='module')
def tfds_root(tmp_path_factory):
  """A TFDS folder with two small data sets in array_record format, made without TensorFlow."""
  tfds = pytest.importorskip('tensorflow_datasets')
  root = tmp_path_factory.mktemp('tfds')
  text, label = tfds.features.Text(), tfds.features.ClassLabel
  rows = [{**row, 'answers': {'text': ['é', 'b']}, 'idx': i} for i, row in enumerate(ROWS)]
  with tfds.core.registered.skip_registration():
    _prepare(root, 'glue', 'train', {
        'sentence': text, 'label': label(names=['unacceptable', 'acceptable']),
        'answers': tfds.features.Sequence({'text': text}), 'idx': np.int32}, rows, config='cola')
    _prepare(root, 'winogrande', 'train_xl', {
        'sentence': text, 'option1': text, 'option2': text, 'label': label(names=['1', '2'])},
        [{'sentence': 's _', 'option1': 'a', 'option2': 'b', 'label': '2'}])
  assert 'tensorflow' not in sys.modules
  return root


def test_tfds_rows_are_plain_text_and_numbers(tfds_root):
  table = sources.read_tfds(get_task('cola'), 'train', tfds_root)
  rows = sorted(table.rows, key=lambda row: row['idx'])
  assert rows == [{**row, 'answers': {'text': ['é', 'b']}, 'idx': i} for i, row in enumerate(ROWS)]
  assert table.place(0) == f'row 1 of {tfds_root}/glue/cola/1.0.0, split train'
  assert 'tensorflow' not in sys.modules


def test_tfds_fields_are_brought_into_those_of_the_template(tfds_root):
  task = get_task('winogrande')
  row = sources.read_tfds(task, task.tfds_splits['train'], tfds_root).rows[0]
  assert task.template(row)[0].target == 'b'


def test_tfds_folder_with_tfrecord_files_ends_with_one_sentence(tmp_path):
  pytest.importorskip('tensorflow_datasets')
  folder = tmp_path / 'glue/cola/2.0.0'
  folder.mkdir(parents=True)
  (folder / 'dataset_info.json').write_text('{"fileFormat": "tfrecord", "name": "glue"}')
  assert _message(sources.read_tfds, get_task('cola'), 'train', tmp_path) == (
      f"TFDS folder '{folder}' holds tfrecord files, which need TensorFlow; prepare the data set "
      "with file_format='array_record'.")


def test_tfds_mistakes_end_with_one_sentence(tfds_root, tmp_path, monkeypatch):
  tfds = pytest.importorskip('tensorflow_datasets')
  assert _message(sources.read_tfds, get_task('cola'), 'test', tfds_root) == (
      f"TFDS folder '{tfds_root}/glue/cola/1.0.0' has no split 'test' (it has train); name one of "
      'them in data.split_names.')
  assert _message(sources.read_tfds, get_task('commonsense_qa'), 'train', tmp_path) == (
      "task 'commonsense_qa' has no TFDS data set; choose data.source='local' or 'hf'.")

  def builder(*arguments, **options):
    raise OSError('no network.')

  monkeypatch.setattr(tfds, 'builder', builder)
  assert _message(sources.read_tfds, get_task('rte'), 'train', tmp_path) == (
      f"task 'rte': TFDS data set 'glue/rte' is not below {tmp_path} and cannot be prepared "
      "(OSError: no network); prepare it there with file_format='array_record', or choose another "
      'data.source.')
