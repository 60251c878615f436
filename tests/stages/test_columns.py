"""Comparison of methods: one record for each target, method and seed."""

from __future__ import annotations

import numpy as np
import pytest

from pemt_jax.experts import tree_files
from pemt_jax.reports import tables
from pemt_jax.stages import columns
from tests.stages import small

TASKS = ('playground/charm', 'playground/oath')


@pytest.mark.slow
def test_records_of_a_frozen_and_of_a_trained_column_make_a_table(stage1, workdir):
  backbone = stage1.stage.backbone
  frozen = columns.frozen_column(small.config_of('full', backbone.name, TASKS), workdir, backbone)
  assert [entry['task'] for entry in frozen] == list(TASKS)
  # Two equally frequent labels, 16 rows: a choice of one label for all rows scores 50.
  assert all(0 < entry['value'] < 100 for entry in frozen)
  config = small.config_of('prompt', backbone.name, TASKS, seeds=(0, 1))
  trained = columns.trained_column('prompt only', config, workdir / 'prompt', backbone)
  assert [entry['replica'] for entry in trained] == [
      f"{task.replace('/', '-')}-seed{seed}" for task in TASKS for seed in (0, 1)]
  results = tree_files.read_json(workdir / 'prompt' / 'result.json')['replicas']
  for entry in trained:
    assert entry['value'] == results[entry['replica']]['final_metrics']['average_metrics']
  columns.write_records(workdir, frozen + trained)
  read = tree_files.read_json(workdir / 'result.json')['records']
  text = '\n'.join(map(tables.to_markdown, tables.tables_of(
      [tables.Record(**entry) for entry in read])))
  for word in (*TASKS, 'frozen backbone', 'prompt only'):
    assert word in text
  assert np.isfinite([entry['value'] for entry in read]).all()
