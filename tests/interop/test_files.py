"""Weight files: what is written is read, nothing is executed, mistakes end with one sentence."""

from __future__ import annotations

import json
import pickle
import sys

import ml_dtypes
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.interop import files


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  return {'a.weight': rng.normal(size=(3, 4)).astype(np.float32),
          'b': rng.normal(size=(2, 3)).astype(np.float16),
          'c': rng.normal(size=(5,)).astype(ml_dtypes.bfloat16),
          'transposed': rng.normal(size=(3, 4)).astype(np.float32).T,
          'scalar': np.float32(3.5)}


def assert_same(found, expected):
  assert set(found) == set(expected)
  for name, value in expected.items():
    assert found[name].dtype == value.dtype
    np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize('ending', ['.safetensors', '.pt', '.bin'])
def test_tensors_survive_a_file_bit_for_bit(tmp_path, arrays, ending):
  if ending != '.safetensors':
    pytest.importorskip('torch')
  path = tmp_path / 'new folder' / f'weights{ending}'
  files.write_tensors(path, arrays)
  assert_same(files.read_tensors(path), arrays)
  assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_safetensors_need_no_torch(tmp_path, arrays, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  files.write_tensors(tmp_path / 'x.safetensors', arrays)
  assert_same(files.read_tensors(tmp_path / 'x.safetensors'), arrays)
  (tmp_path / 'x.bin').write_bytes(b'')
  with pytest.raises(UserError) as error:
    files.read_tensors(tmp_path / 'x.bin')
  assert str(error.value) == (
      'Torch files need the package torch, which is not installed; '
      'run pip install -r requirements-torch.txt, or use a safetensors file.')


class Payload:
  """A pickle of this makes a file when it is loaded carelessly."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return (open, (self.path, 'w'))


@pytest.mark.parametrize('raw', [True, False])
def test_no_pickle_is_executed(tmp_path, raw):
  torch = pytest.importorskip('torch')
  bait, path = tmp_path / 'executed', tmp_path / 'evil.bin'
  value = {'weight': Payload(bait)}
  path.write_bytes(pickle.dumps(value, protocol=2)) if raw else torch.save(value, path)
  with pytest.raises(UserError, match=r"evil.bin' is not a torch file of tensors only .*; nothing "
                                      'in it was executed'):
    files.read_tensors(path)
  assert not bait.exists()


def test_torch_file_of_other_things_is_told(tmp_path):
  torch = pytest.importorskip('torch')
  torch.save([1, 2], tmp_path / 'list.pt')
  torch.save({'step': 3}, tmp_path / 'number.pt')
  with pytest.raises(UserError, match=r"list.pt' holds a list instead of a state_dict; save"):
    files.read_tensors(tmp_path / 'list.pt')
  with pytest.raises(UserError, match=r"number.pt' holds a int under 'step' where a tensor is"):
    files.read_tensors(tmp_path / 'number.pt')


def test_bare_tensor_has_the_empty_name(tmp_path):
  torch = pytest.importorskip('torch')
  torch.save(torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)), tmp_path / 'prompt.pt')
  state = files.read_tensors(tmp_path / 'prompt.pt')
  np.testing.assert_array_equal(state[files.BARE], np.arange(6.0).reshape(2, 3))


def test_unreadable_safetensors_is_told(tmp_path):
  (tmp_path / 'x.safetensors').write_bytes(b'nothing of the kind')
  with pytest.raises(UserError, match=r"x.safetensors' is not a readable safetensors file"):
    files.read_tensors(tmp_path / 'x.safetensors')


def test_absent_and_unknown_files_are_told(tmp_path):
  with pytest.raises(UserError, match=r"Weight file '.*no.bin' does not exist; check the path."):
    files.read_tensors(tmp_path / 'no.bin')
  with pytest.raises(UserError, match=r"Folder '.*' holds no weights; expected one of model.safe"):
    files.read_tensors(tmp_path)
  (tmp_path / 'x.npz').write_bytes(b'')
  with pytest.raises(UserError, match=r"x.npz' has an unknown ending; weight files end with"):
    files.read_tensors(tmp_path / 'x.npz')


def test_index_must_keep_its_promises(tmp_path, arrays):
  index = tmp_path / 'model.safetensors.index.json'
  files.write_tensors(tmp_path / 'one.safetensors', arrays)
  index.write_text(json.dumps({'weight_map': {'a.weight': 'one.safetensors', 'z': 'two.sa'}}))
  with pytest.raises(UserError, match=r"Shard '.*two.sa' named by '.*index.json' does not exist"):
    files.read_tensors(tmp_path)
  index.write_text(json.dumps({'weight_map': {'z': 'one.safetensors'}}))
  with pytest.raises(UserError, match=r"Shard '.*one.safetensors' lacks 'z', which"):
    files.read_tensors(tmp_path)
  index.write_text('[]')
  with pytest.raises(UserError, match="is no index of sharded weights"):
    files.read_tensors(tmp_path)


def test_failed_write_leaves_the_old_file(tmp_path, arrays):
  path = tmp_path / 'x.safetensors'
  files.write_tensors(path, arrays)
  with pytest.raises(Exception):
    files.write_tensors(path, {'bad': np.array(['text'], dtype=object)})
  assert_same(files.read_tensors(path), arrays)
  assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_shards_are_even_complete_and_ordered():
  sizes = {str(number): 10 for number in range(10)}
  runs = files.split_evenly(sizes, 3)
  assert [name for run in runs for name in run] == list(sizes)
  assert sorted(map(len, runs)) == [3, 3, 4]
  assert files.split_evenly({'a': 1}, 5) == [['a']]
  assert files.shard_names('model.safetensors', 2) == [
      'model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
  with pytest.raises(UserError, match='Cannot write 0 shards; give 1 or more.'):
    files.split_evenly(sizes, 0)


def test_the_shipped_backbone_is_found_by_its_name():
  assert (files.resolve_model('playground') / 'model.safetensors').is_file()


def test_model_that_cannot_be_fetched_is_told(tmp_path, monkeypatch):
  pytest.importorskip('huggingface_hub')
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError) as error:
    files.resolve_model('nobody/no-such-t5')
  assert str(error.value).startswith(
      "'nobody/no-such-t5' is no local folder and cannot be fetched from the Hugging Face hub (")
  with pytest.raises(UserError, match="close names are t5-small"):
    files.resolve_model('t5-smal')
