"""Laws of the golden cases without a model: outputs are computed from case.json and inputs only."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from pemt_jax.data import splits
from pemt_jax.errors import UserError
from pemt_jax.evaluation import parity_data


def _case(folder, arrays) -> None:
  (folder / 'case.json').write_text(json.dumps({'arrays': arrays}))


def test_golden_shuffles_need_no_outputs_file(golden_root, tmp_path):
  folder = golden_root / 'pemt' / 'data_pipeline'
  shutil.copy(folder / 'case.json', tmp_path / 'case.json')
  kind, arrays = parity_data.compute(tmp_path)
  assert kind == 'npz'
  with np.load(folder / 'outputs.npz') as wanted:
    assert set(arrays) == set(wanted.files)
    for name in wanted.files:
      np.testing.assert_array_equal(arrays[name], wanted[name])
      assert arrays[name].dtype == wanted[name].dtype


def test_seeds_and_lengths_are_read_from_the_names(tmp_path):
  _case(tmp_path, {'randperm7/33': {'shape': [5], 'dtype': 'int32'},
                   'pyshuffle0/4': {'shape': [4], 'dtype': 'int64'}})
  arrays = parity_data.compute(tmp_path)[1]
  np.testing.assert_array_equal(arrays['randperm7/33'], splits.randperm(33, 7)[:5])
  np.testing.assert_array_equal(arrays['pyshuffle0/4'], splits.python_shuffle(4, 0))
  assert arrays['randperm7/33'].dtype == np.int32


def test_unknown_names_end_with_one_sentence(tmp_path):
  _case(tmp_path, {'randint42/3': {'shape': [3], 'dtype': 'int64'}})
  with pytest.raises(UserError) as error:
    parity_data.compute(tmp_path)
  assert str(error.value) == (
      f"case {tmp_path} names array 'randint42/3', which is not randperm<seed>/<rows> or "
      'pyshuffle<seed>/<rows>; correct case.json.')
  (tmp_path / 'inputs.json').write_text('{"sums": []}')
  with pytest.raises(UserError) as error:
    parity_data.compute(tmp_path)
  assert str(error.value) == (
      f"{tmp_path}/inputs.json has the key 'sums', which is not among rows, pad_punctuation, "
      'round_stsb_target; correct the file.')
