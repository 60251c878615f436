"""Files that want to harm: none is executed, waited for or given memory; each is one sentence."""

from __future__ import annotations

import gzip
import io
import json
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest

from pemt_jax import cli, guards
from pemt_jax.data import sources
from pemt_jax.errors import UserError
from pemt_jax.experts import library, packed
from pemt_jax.interop import ensembling_checkpoint, files
from pemt_jax.interop import peft_config
from pemt_jax.models import t5_config
from pemt_jax.reports import html


def refuses(read, *arguments, match='.'):
  with pytest.raises(UserError, match=match) as error:
    read(*arguments)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('text, reason', [
    ('[' * 100_000, 'levels'), ('[' * 80 + ']' * 80, 'levels'), ('{"a": 1, "a": 2}', 'twice'),
    ('1' * 5000, 'digits'), ('NaN', 'no number'), ('[-Infinity]', 'no number'), ('{', 'Expecting')])
def test_hostile_json(text, reason):
  with pytest.raises(ValueError, match=reason):
    guards.parse_json(text)


def test_json_files_are_bounded(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  path.write_bytes(b'\xef\xbb\xbf{"a": NaN}')
  assert np.isnan(guards.read_json(path)['a'])
  monkeypatch.setattr(guards.read_text, '__defaults__', (8,))
  refuses(guards.read_json, path, match='more than 8 bytes')
  os.mkfifo(tmp_path / 'pipe')
  refuses(guards.read_json, tmp_path / 'pipe', match='no plain file')
  refuses(guards.read_json, '/dev/zero', match='no plain file')
  path.write_bytes(b'\xff')
  refuses(guards.read_json, path, match='UTF-8')


def test_names_of_files_stay_in_their_folder(tmp_path):
  folder = tmp_path / 'model'
  (folder / 'deep').mkdir(parents=True)
  (tmp_path / 'secret').write_text('')
  (folder / 'link').symlink_to(tmp_path / 'secret')
  assert guards.inside(folder, 'deep/../a', 'index') == folder / 'a'
  assert guards.inside(folder / 'deep', '../a', 'index', folder) == folder / 'a'
  for name in ('../secret', '/etc/passwd', 'deep/../../secret', 'link', '', 'a\x00b', None, 3,
               'x' * 300, 'a/' * 3000):
    refuses(guards.inside, folder, name, 'index', match="'index' names the path .* leads out")
  cache = tmp_path / 'models--a--b'
  (cache / 'blobs').mkdir(parents=True)
  (cache / 'snapshots' / 'main').mkdir(parents=True)
  (cache / 'snapshots' / 'main' / 'a').symlink_to('../../blobs/x')
  assert guards.inside(cache / 'snapshots' / 'main', 'a', 'index').name == 'a'


def test_an_index_that_names_files_elsewhere(tmp_path):
  files.write_tensors(tmp_path / 'x.safetensors', {'a': np.ones(2, np.float32)})
  index = tmp_path / 'model' / 'model.safetensors.index.json'
  index.parent.mkdir()
  for name in ('../x.safetensors', str(tmp_path / 'x.safetensors')):
    index.write_text(json.dumps({'weight_map': {'a': name}}))
    refuses(files.read_tensors, index.parent, match='leads out of')
  for content in ({}, [], {'weight_map': {'a': 3}}):
    index.write_text(json.dumps(content))
    refuses(files.read_tensors, index.parent, match="no 'weight_map'")


def test_a_card_that_names_sources_elsewhere(tmp_path):
  folder = tmp_path / 'run' / 'experts' / 'a'
  card = library.ExpertCard('a', 'pemt/stage2', [], 'backbone', 'hash', 'rte')
  for name, right in (('../../sources/b', True), ('sources/b', True), ('../../../b', False),
                      (str(tmp_path / 'b'), False), (None, False)):
    card.extra = {'sources': [{'task': 'b', 'folder': name}]}
    if right:
      assert library.source_folders(folder, card)[0][1].is_relative_to(tmp_path / 'run')
    else:
      refuses(library.source_folders, folder, card, match='leads out of')
  card.extra = {'sources': [3]}
  refuses(library.source_folders, folder, card, match='does not have the form')


@pytest.mark.parametrize('bits, shapes', [
    (np.ones((2, 1), np.uint8), {'a/task/b': [2, 100]}), (np.ones(2, np.uint8), {'a/task/b': 'x'}),
    (np.ones((2, 1), np.float32), {'a/task/b': [2, 8]}), (np.ones((2, 1), np.uint8), {'c': [2]}),
    (np.ones((2, 1), np.uint8), {'a/task/b': [2, -8]}), (np.ones((2, 1), np.uint8), [1])])
def test_packed_masks_of_another_length(tmp_path, bits, shapes):
  from safetensors.numpy import save_file
  save_file({'a/task/b': bits}, tmp_path / 'a.safetensors',
            metadata={'format': '1', 'masks': json.dumps(shapes)})
  refuses(packed.read_packed, tmp_path / 'a.safetensors', match='does not have the form')


def header(values, data=b''):
  text = json.dumps(values).encode()
  return struct.pack('<Q', len(text)) + text + data


@pytest.mark.parametrize('content', [
    b'', struct.pack('<Q', 2**62), header({'a': {'dtype': 'F32', 'shape': [10**12],
                                                'data_offsets': [0, 4 * 10**12]}}),
    header({'a': {'dtype': 'F8_E4M3', 'shape': [4], 'data_offsets': [0, 4]}}, b'abcd'),
    header({'__metadata__': {'a': 3}})], ids=['empty', 'header', 'terabytes', 'type', 'metadata'])
def test_hostile_safetensors(tmp_path, content):
  (tmp_path / 'a.safetensors').write_bytes(content)
  refuses(files.read_tensors, tmp_path / 'a.safetensors')


def test_arrays_are_as_large_as_their_file(tmp_path):
  np.save(tmp_path / 'a.npy', np.ones((2, 2)))
  np.testing.assert_array_equal(guards.load_arrays(tmp_path / 'a.npy'), np.ones((2, 2)))
  content = (tmp_path / 'a.npy').read_bytes().replace(b'(2, 2)', b'(10000000000, 2)')
  (tmp_path / 'a.npy').write_bytes(content)
  with pytest.raises(ValueError, match='10000000000, 2'):
    guards.load_arrays(tmp_path / 'a.npy')
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
    archive.writestr('a.npy', content)
  with pytest.raises(ValueError, match='10000000000, 2'):
    guards.load_arrays(tmp_path / 'a.npz')
  np.savez_compressed(tmp_path / 'b.npz', a=np.zeros(10**8, np.uint8))
  with pytest.raises(ValueError, match='unpack to more'):
    guards.load_arrays(tmp_path / 'b.npz')
  np.save(tmp_path / 'c.npy', np.array([{}]), allow_pickle=True)
  with pytest.raises(ValueError):
    guards.load_arrays(tmp_path / 'c.npy')


class Bomb:
  """Makes a folder when it is unpickled."""

  def __init__(self, place):
    self.place = str(place)

  def __reduce__(self):
    return os.mkdir, (self.place,)


def tuples(levels):
  """A pickle of a dict with a key of 2 ** levels tuples, which would take for ever to hash."""
  made = b')q\x00' + b''.join(b'h%ch%c\x86q%c' % (i, i, i + 1) for i in range(levels))
  return b'\x80\x02}' + made + b'K\x01s.'


def archive_of(content):
  target = io.BytesIO()
  with zipfile.ZipFile(target, 'w') as archive:
    archive.writestr('a/data.pkl', content)
    archive.writestr('a/version', '3\n')
    archive.writestr('a/byteorder', 'little')
  return target.getvalue()


BYTES = b'\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.'


def legacy(content):
  magic = pickle.dumps(0x1950a86a20f9469cfc6c, 2)
  return magic + pickle.dumps(1001, 2) + pickle.dumps({'little_endian': True}, 2) + content


@pytest.mark.parametrize('wrap', [archive_of, legacy], ids=['archive', 'legacy'])
@pytest.mark.parametrize('kind', ['code', 'nested code', 'tuples', 'bytes'])
def test_hostile_torch_files(tmp_path, kind, wrap):
  pytest.importorskip('torch')
  bomb = pickle.dumps({'args': {'tune_method': 'lora'}, 'lora': [{'x': Bomb(tmp_path / 'ran')}]}
                      if kind == 'nested code' else Bomb(tmp_path / 'ran'), 2)
  content = {'tuples': tuples(60), 'bytes': BYTES}.get(kind, bomb)
  (tmp_path / 'a.pt').write_bytes(wrap(content))
  refuses(files.read_tensors, tmp_path / 'a.pt', match='nothing in it was executed')
  refuses(ensembling_checkpoint.read, tmp_path / 'a.pt')
  assert not (tmp_path / 'ran').exists()


def test_torch_files_that_unpack(tmp_path):
  torch = pytest.importorskip('torch')
  import tarfile
  torch.save({'a': torch.zeros(1).expand(10**6, 10**5)}, tmp_path / 'wide.pt')
  refuses(files.read_tensors, tmp_path / 'wide.pt', match='its storage fewer')
  torch.save({'a': torch.zeros(10**6)}, tmp_path / 'a.pt')
  with zipfile.ZipFile(tmp_path / 'a.pt') as old, zipfile.ZipFile(
      tmp_path / 'packed.pt', 'w', zipfile.ZIP_DEFLATED) as new:
    for name in old.namelist():
      new.writestr(name, old.read(name))
  refuses(files.read_tensors, tmp_path / 'packed.pt', match='packed or repeated entries')
  (tmp_path / 'storages').write_bytes(pickle.dumps(Bomb(tmp_path / 'ran'), 2))
  with tarfile.open(tmp_path / 'old.pt', 'w') as archive:
    for name in ('storages', 'tensors', 'pickle', '../../ran'):
      archive.add(tmp_path / 'storages', name)
  refuses(files.read_tensors, tmp_path / 'old.pt', match='nothing in it was executed')
  torch.save({'a': torch.eye(2).to_sparse()}, tmp_path / 'sparse.pt')
  refuses(files.read_tensors, tmp_path / 'sparse.pt', match='no plain tensor')
  assert not (tmp_path / 'ran').exists()


ROW = {'sentence1': 'a', 'label': 0}


def write_rows(path, *lines):
  path.write_bytes(b'\n'.join(line if isinstance(line, bytes) else json.dumps(line).encode()
                              for line in lines))
  return path


@pytest.mark.parametrize('line, reason', [
    (b'{"a": NaN}', 'NaN is no number'), (b'{"a": "\\ud800"}', 'half of a character'),
    (b'{"a": 1, "a": 2}', 'stands twice'), (b'{"a": ' + b'9' * 5000 + b'}', 'digits'),
    (b'{"a": ' + b'[' * 5000 + b'}', 'levels'), (b'\xff', 'cannot be read'), (b'3', 'int')])
def test_hostile_rows(tmp_path, line, reason):
  refuses(sources.read_file, write_rows(tmp_path / 'a.jsonl', ROW, line), match=reason)


def test_rows_of_odd_characters_are_read(tmp_path):
  odd = 'a\x00\x1b[2J\u202e\u2028\ufeff\U0001f600'
  path = write_rows(tmp_path / 'a.jsonl', b'\xef\xbb\xbf' + json.dumps(ROW).encode() + b'\r',
                    ROW | {'sentence1': odd}, ROW | {'sentence1': 'x' * 10_000_000}, ROW, ROW)
  table = sources.read_file(path)
  assert [len(row['sentence1']) for row in table.rows] == [1, len(odd), 10_000_000, 1, 1]
  (tmp_path / 'a.csv').write_bytes(b'\xef\xbb\xbfa,b\r\n1,"x\r\ny"\r\n')
  assert sources.read_file(tmp_path / 'a.csv').rows == [{'a': '1', 'b': 'x\r\ny'}]
  (tmp_path / 'b.tsv').write_text('a\ta\n1\t2\n')
  refuses(sources.read_file, tmp_path / 'b.tsv', match="names the column 'a' twice")


def test_packed_rows_are_bounded(tmp_path, monkeypatch):
  pandas = pytest.importorskip('pandas')
  monkeypatch.setattr(guards, 'FREE_BYTES', 1 << 16)
  line = json.dumps(ROW | {'sentence1': 'x' * 100_000}).encode() + b'\n'
  (tmp_path / 'a.jsonl.gz').write_bytes(gzip.compress(line * 40))
  refuses(sources.read_file, tmp_path / 'a.jsonl.gz', match='unpacks to more than')
  pandas.DataFrame({'a': ['x' * 1000] * 5000}).to_parquet(tmp_path / 'a.parquet')
  refuses(sources.read_file, tmp_path / 'a.parquet', match='unpacks to far more')


@pytest.mark.parametrize('pattern', [r'(.|..)+[^a]\b\B', '('])
def test_a_pattern_that_takes_for_ever(monkeypatch, pattern):
  monkeypatch.setattr(peft_config, '_SECONDS', 0.1)
  values = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 2, 'target_modules': pattern}
  refuses(peft_config.form_of, values, t5_config.PUBLISHED['t5-small'], 'file',
          match='no regular expression, or takes more than')


@pytest.mark.parametrize('key, value', [
    ('d_model', '8'), ('d_model', 10**12), ('num_layers', 10**9), ('num_heads', 0),
    ('dropout_rate', float('nan')), ('vocab_size', True), ('d_kv', [1])])
def test_sizes_of_a_backbone(key, value):
  values = t5_config.to_hf(t5_config.PUBLISHED['t5-small'])
  refuses(t5_config.from_hf, values | {key: value}, match='config.json')


def test_names_of_options_are_bounded():
  refuses(cli.parse_flags, ['train', f"--config.{'x' * 5000}=1"], match='a name of 5009 characters')


def test_a_sentence_fits_a_terminal():
  assert cli.one_line('a\n b\x1b[2J\u202e\ud800') == r'a b\x1b[2J\u202e\ud800'
  assert len(cli.one_line('x' * 10_000_000)) < 2100


EVIL = '<script>alert("$x_{$")</script>'


def test_a_report_shows_what_is_no_text_of_its_own(tmp_path):
  (tmp_path / 'result.json').write_text(json.dumps({
      'records': [{'task': EVIL, 'method': EVIL, 'metric': EVIL, 'value': 1.0, 'replica': EVIL}],
      'replicas': {EVIL: {EVIL: 1.0, 'x': {EVIL: 2.0}}}, EVIL: 3.0,
      'tables': [{'title': EVIL, 'corner': EVIL, 'caption': EVIL, 'columns': [EVIL],
                  'rows': [{'name': EVIL, 'cells': {EVIL: EVIL}}]}],
      'figures': [{'file': '../../etc/passwd', 'title': EVIL}]}))
  for name in ('config', 'environment', 'times'):
    (tmp_path / f'{name}.json').write_text(json.dumps({EVIL: 1.0, 'a': {EVIL: 2.0}}))
  (tmp_path / 'metrics.jsonl').write_text(''.join(
      json.dumps({'step': step, 'replica': EVIL, EVIL: 1.0, f'test/{EVIL}': 2.0}) + '\n'
      for step in range(3)))
  np.savez(tmp_path / 'correlation.npz', matrix=np.ones((1, 2)), rows=[EVIL], columns=[EVIL, 'b'])
  page = pathlib.Path(html.write_report(tmp_path)).read_text()
  assert '<script>alert' not in page and '&lt;script&gt;alert' in page
