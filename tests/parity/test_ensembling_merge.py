"""Merges against the original program: weights, merged tensors, heat map, bytes of its files."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.interop import ensembling_files as tables
from pemt_jax.parity import ensembling_merge as parity

SHIPPED = ('merge_cos', 'merge_euclidean', 'merge_performance3', 'merge_weights_loss32')
OTHERS = ('merge_average', 'merge_performance')


def check(folder):
  found = parity.compute(folder)
  wanted = json.loads((folder / 'case.json').read_text())['arrays']
  with np.load(folder / 'outputs.npz') as expected:
    assert found.keys() == set(expected.files)
    for name, value in expected.items():
      assert found[name].dtype == wanted[name]['dtype'] and found[name].shape == value.shape, name
      np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize('name', SHIPPED)
def test_recorded_arrays_are_reproduced(name, golden_root):
  check(golden_root / 'ensembling' / name)


@pytest.mark.parametrize('name', OTHERS)
def test_further_recorded_arrays_are_reproduced(name, shared_root):
  check(shared_root / 'golden' / 'ensembling' / name)


def test_weights_are_written_as_the_original_writes_them(golden_root, tmp_path):
  folder = golden_root / 'ensembling' / 'merge_euclidean'
  original = folder / 'outputs_files' / tables.FINAL_WEIGHTS
  tasks = json.loads((folder / 'case.json').read_text())['method_config']['tasks']
  read = tables.read_weights(original, tasks)
  tables.write_weights(tmp_path / 'again.txt', read)
  assert (tmp_path / 'again.txt').read_bytes() == original.read_bytes()
  found = parity.compute(folder)['weights/tem0.1']
  kept = read.values[~np.eye(len(tasks), dtype=bool)].reshape(found.shape)
  np.testing.assert_allclose(found, kept, rtol=1e-4, atol=1e-9)


def test_tables_are_written_as_the_original_writes_them(golden_root, tmp_path):
  loss = golden_root / 'ensembling' / 'merge_weights_loss32' / 'files' / tables.RESULT
  tables.write_similarity(tmp_path / 'loss.tsv', tables.read_similarity(loss))
  assert (tmp_path / 'loss.tsv').read_bytes() == loss.read_bytes()
  folder = golden_root / 'ensembling' / 'merge_performance3'
  tasks = json.loads((folder / 'case.json').read_text())['method_config']['tasks']
  zero = folder / 'files' / tables.ZERO_SHOT
  tables.write_zero_shot(tmp_path / 'zero.tsv', tables.read_zero_shot(zero, tasks, tasks).values)
  assert (tmp_path / 'zero.tsv').read_bytes() == zero.read_bytes()


def test_another_case_is_refused(golden_root, tmp_path):
  folder = tmp_path / 'case'
  shutil.copytree(golden_root / 'ensembling' / 'merge_cos', folder)
  case = json.loads((folder / 'case.json').read_text())
  (folder / 'case.json').write_text(json.dumps(case | {'case': 'merge_none'}))
  with pytest.raises(UserError, match="is the case 'merge_none'; choose one of merge_average,"):
    parity.compute(folder)
  case['arrays']['nothing'] = {'shape': [1], 'dtype': 'float32', 'required': True}
  (folder / 'case.json').write_text(json.dumps(case))
  with pytest.raises(UserError, match="requires 'nothing', which the case 'merge_cos' does not"):
    parity.compute(folder)
