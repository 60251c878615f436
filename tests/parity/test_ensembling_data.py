"""Recorded cases of weight ensembling without a backbone, computed from their inputs alone."""

from __future__ import annotations

import json
import shutil

import pytest

from pemt_jax.errors import UserError
from pemt_jax.parity import ensembling_data


def _recorded(golden_root, name, tmp_path):
  """What is computed where no outputs lie beside the inputs, and what was recorded."""
  folder = golden_root / 'ensembling' / name
  for file in ('case.json', 'inputs.json'):
    shutil.copy(folder / file, tmp_path / file)
  found = json.loads(json.dumps(ensembling_data.compute(tmp_path)))
  return found, json.loads((folder / 'outputs.json').read_text(encoding='utf-8'))


def test_lines_and_draws_of_all_51_tasks(golden_root, tmp_path):
  found, wanted = _recorded(golden_root, 'data_tasks', tmp_path)
  assert len(wanted) == 51 and found.keys() == wanted.keys()
  for title in wanted:
    assert found[title] == wanted[title], title


def test_texts_answers_and_misaligned_labels_of_a_file(golden_root, tmp_path):
  found, wanted = _recorded(golden_root, 'data_indexing', tmp_path)
  assert found == wanted


def test_metrics_of_the_published_code(golden_root, tmp_path):
  found, wanted = _recorded(golden_root, 'eval_metrics', tmp_path)
  details, recorded = found.pop('per_example'), wanted.pop('per_example')
  assert found == pytest.approx(wanted, abs=1e-9)
  for name in recorded:
    assert details[name] == pytest.approx(recorded[name], abs=1e-9), name


def test_the_loop_does_what_the_published_one_did(golden_root, tmp_path):
  found, wanted = _recorded(golden_root, 'loop_control', tmp_path)
  assert found == wanted


def test_a_run_shorter_than_the_interval_validates_nothing(tmp_path):
  case = {'case': 'loop_control'}
  scenario = {'metrics': [0.5], 'es': 2, 'vi': 4, 'li': 1, 'oi': 2, 'iters': 3, 'nb': 3}
  (tmp_path / 'case.json').write_text(json.dumps(case))
  (tmp_path / 'inputs.json').write_text(json.dumps([scenario]))
  assert ensembling_data.compute(tmp_path) == [
      {'best': -1, 'events': [['save', 'checkpoint@0-2.pt', 0, 2]], 'updates': 3}]


def test_another_case_ends_with_one_sentence(tmp_path):
  (tmp_path / 'case.json').write_text('{"case": "adapter_gated"}')
  (tmp_path / 'inputs.json').write_text('{}')
  with pytest.raises(UserError) as error:
    ensembling_data.compute(tmp_path)
  assert str(error.value) == (
      f"{tmp_path} holds the case 'adapter_gated', which is not among data_tasks, data_indexing, "
      'eval_metrics, loop_control; choose another folder.')
