"""Recorded cases of ProPETL without a model, computed from their inputs alone."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.parity import propetl_data


def _found(golden_root, name, tmp_path):
  """What is computed where no outputs lie beside the inputs, and the folder of the case."""
  folder = golden_root / 'propetl' / name
  for path in folder.iterdir():
    if not path.name.startswith('outputs'):
      shutil.copy(path, tmp_path / path.name)
  return propetl_data.compute(tmp_path)[1], folder


def test_texts_splits_metrics_and_decoding_of_all_97_tasks(golden_root, tmp_path):
  found, folder = _found(golden_root, 'data_task_templates', tmp_path)
  wanted = json.loads((folder / 'outputs.json').read_text())['tasks']
  found = json.loads(json.dumps(found))['tasks']
  assert len(wanted) == 97 and found.keys() == wanted.keys()
  for title in wanted:
    assert found[title] == wanted[title], title


def test_metrics_and_number_readers(golden_root, tmp_path):
  found, folder = _found(golden_root, 'data_metrics', tmp_path)
  wanted = json.loads((folder / 'outputs.json').read_text())
  for value, recorded in zip(found['cases'], wanted['cases'], strict=True):
    assert value == pytest.approx(recorded, abs=1e-9)
  assert found['postprocessors'] == wanted['postprocessors']


@pytest.mark.parametrize('name', ['data_split_indices', 'data_multitask_sampler'])
def test_permutations_and_batches_are_bit_exact(golden_root, tmp_path, name):
  found, folder = _found(golden_root, name, tmp_path)
  with np.load(folder / 'outputs.npz') as archive:
    wanted = dict(archive)
  assert found.keys() == wanted.keys()
  for key, value in wanted.items():
    assert found[key].dtype == value.dtype
    np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_another_case_ends_with_one_sentence(tmp_path):
  (tmp_path / 'case.json').write_text('{"case": "t5_hybrid_and"}')
  with pytest.raises(UserError) as error:
    propetl_data.compute(tmp_path)
  assert str(error.value) == (
      f"{tmp_path} holds the case 't5_hybrid_and', which is not among data_task_templates, "
      'data_metrics, data_split_indices, data_multitask_sampler; choose another folder.')
