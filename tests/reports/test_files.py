"""Reading a workdir: stages are found, bad files end with one sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.reports import files


def _write(folder, name, text):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_text(text)
  return folder / name


def test_stages_are_found_in_order_and_array_folders_are_not(workdir):
  _write(workdir / 'stage2', 'result.json', '{}')
  _write(workdir / 'stage1', 'metrics.jsonl', '{"step": 1, "loss": 2.0}\n')
  _write(workdir / 'stage1' / 'checkpoints' / '5', 'result.json', '{}')
  _write(workdir / 'report', 'result.json', '{}')
  stages = files.read_workdir(workdir)
  assert [stage.name for stage in stages] == ['stage1', 'stage2']
  assert stages[0].metrics == [{'step': 1, 'loss': 2.0}]
  assert set(stages[0].missing) == set(files.PARTS + files.EXTRAS) - {'metrics.jsonl'}


def test_the_workdir_itself_may_be_the_stage(workdir):
  _write(workdir, 'result.json', '{"seconds": 3}')
  stage, = files.read_workdir(workdir)
  assert (stage.name, stage.result) == ('', {'seconds': 3})


def test_replicas_trained_one_by_one_are_one_run(workdir):
  _write(workdir, 'config.json', '{"together": false}')
  for name, steps in (('a', 3), ('b', 2)):
    folder = workdir / 'replicas' / name
    _write(folder, 'result.json', '{}')
    _write(folder, 'times.json', '{"step": 1.5, "input": 1}')
    _write(folder, 'metrics.jsonl', ''.join(
        f'{{"step": {i}, "replica": "{name}"}}\n' for i in range(steps)))
  stage, = files.read_workdir(workdir)
  assert [(row['step'], row['replica']) for row in stage.metrics] == [
      (0, 'a'), (1, 'a'), (2, 'a'), (0, 'b'), (1, 'b')]
  assert stage.times == {'step': 3.0, 'input': 2.0}
  assert 'metrics.jsonl' not in stage.missing and 'result.json' in stage.missing


def test_figures_are_pictures_below_the_folder(workdir):
  png = b'\x89PNG\r\n\x1a\n'
  (workdir / 'study').mkdir()
  for path in ('study/a.png', 'outside.png'):
    (workdir / path).write_bytes(png)
  (workdir / 'study' / 'text.png').write_text('no picture')
  names = ['a.png', '../outside.png', 'text.png', 'none.png', str(workdir / 'outside.png')]
  _write(workdir / 'study', 'result.json',
         json.dumps({'figures': [{'file': name, 'title': 'A'} for name in names] + [3]}))
  stage, = files.read_workdir(workdir)
  assert stage.figures == [('A', png)]
  assert stage.missing[-5:] == [*names[1:], '3']


def test_a_last_line_cut_short_is_left_out(workdir):
  path = _write(workdir, 'metrics.jsonl', '{"step": 1}\n\n{"step": 2}\n{"st')
  assert files.read_metrics(path) == [{'step': 1}, {'step': 2}]


def _sentence(call):
  with pytest.raises(UserError) as caught:
    call()
  return str(caught.value)


def test_missing_folder_and_folder_without_run(workdir):
  assert _sentence(lambda: files.read_workdir(workdir / 'none')) == (
      f"Folder '{workdir / 'none'}' given by --workdir does not exist; give the folder of a run.")
  assert _sentence(lambda: files.read_workdir(workdir)) == (
      f"Folder '{workdir}' given by --workdir holds no run (no result.json and no metrics.jsonl "
      'below it); give the --workdir of launch/train.py.')


@pytest.mark.parametrize('line', ['{"step": 1', '[1]', '{"loss": 1}'])
def test_bad_metrics_line_is_named(workdir, line):
  path = _write(workdir, 'metrics.jsonl', f'{{"step": 0}}\n{line}\n')
  assert _sentence(lambda: files.read_metrics(path)) == (
      f"Line 2 of '{path}' is no JSON object with a step; remove the line or run the stage again.")


def test_result_that_is_not_json_is_named(workdir):
  path = _write(workdir, 'result.json', '{')
  assert _sentence(lambda: files.read_json(path)).startswith(f"'{path}' is not valid JSON (")


def test_gates_round_trip_and_wrong_shape(workdir):
  gates = files.Gates(('a', 'b', 'c'), ('t', 't'), {'encoder': np.ones((2, 4, 3))})
  files.save_gates(workdir / 'gates.npz', gates, ['t-0', 't-1'])
  read = files.read_gates(workdir / 'gates.npz')
  assert (read.sources, read.targets) == (gates.sources, gates.targets)
  assert list(read.stacks) == ['encoder']
  np.testing.assert_array_equal(read.stacks['encoder'], gates.stacks['encoder'])

  path = workdir / 'gates.npz'
  np.savez(path, sources=['a'], replicas=['t'], encoder=np.ones((1, 4, 3)))
  assert _sentence(lambda: files.read_gates(path)) == (
      f"Array 'encoder' of '{path}' has shape [1, 4, 3]; it must have [1, any, 1].")
  np.savez(path, sources=['a'], encoder=np.ones((1, 4, 1)))
  assert _sentence(lambda: files.read_gates(path)) == (
      f"File '{path}' lacks the array 'replicas'; it has sources, encoder.")


def test_correlation_round_trip_and_square_default(workdir):
  path = workdir / 'correlation.npz'
  data = files.Correlation(('t',), ('a', 'b'), np.array([[0.1, 0.9]]))
  files.save_correlation(path, data)
  read = files.read_correlation(path)
  assert (read.rows, read.columns) == (data.rows, data.columns)
  np.testing.assert_array_equal(read.matrix, data.matrix)
  np.savez(path, rows=['a', 'b'], matrix=np.eye(2))
  assert files.read_correlation(path).columns == ('a', 'b')


def test_pickled_arrays_are_refused(workdir):
  path = workdir / 'gates.npz'
  np.savez(path, sources=np.array([{}], object), replicas=['t'])
  assert 'holds no plain arrays' in _sentence(lambda: files.read_gates(path))
