"""Stages of several processes give what one process gives, however they are interrupted."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from tests.stages import small

pytestmark = pytest.mark.slow
MEMBER = '-m', 'tests.processes.member'
TRAINED = ('stage1', 'stage2', 'propetl', 'lora', 'switch')
CASES = {1: (*TRAINED, 'experts'), 2: (*TRAINED, 'experts'), 4: ('stage1',)}  # of processes
TIMED = ('_per_second', 'input_share')
SPEEDS = ('train/steps_per_second', 'train/tokens_per_second', 'train/flops_per_second',
          'train/input_share')


@pytest.fixture(scope='module')
def run(group, base, stage1):
  """`run(processes, folder, cases, *options)` -> [(exit code, stdout, stderr)]."""
  del stage1
  return lambda count, folder, cases, *options, timeout=900: group(
      count, *MEMBER, f'--base={base}', f'--workdir={folder}', f'--cases={",".join(cases)}',
      *options, devices=1 if count in (1, 4) else 2, timeout=timeout)


@pytest.fixture(scope='module')
def made_by(run, tmp_path_factory):
  """`made_by(processes)` -> folder of the cases; one device alone, else four in all."""
  @functools.cache
  def folder_of(count):
    folder = tmp_path_factory.mktemp(f'by{count}')
    for code, _, stderr in run(count, folder, CASES[count]):
      assert code == 0, stderr[-4000:]
    return folder
  return folder_of


def curves_of(folder):
  """{(replica, step, name): value} of a run without what depends on time."""
  lines = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
  return {(line['replica'], line['step'], name): value for line in lines
          for name, value in line.items() if '/' in name and not name.endswith(TIMED)}


def assert_same_run(first, second):
  """Equal curves, results and experts."""
  assert curves_of(first) == pytest.approx(curves_of(second), rel=1e-4, abs=1e-6)
  results = [json.loads((folder / 'result.json').read_text())['replicas']
             for folder in (first, second)]
  assert results[0].keys() == results[1].keys()
  for name, own in results[0].items():
    assert own['best_step'] == results[1][name]['best_step']
    assert own['final_metrics'] == pytest.approx(results[1][name]['final_metrics'], rel=1e-4)
    small.assert_same_leaves(*(small.leaves_of(folder / 'experts' / name)
                               for folder in (first, second)))


@pytest.mark.parametrize('count, case', [*((2, case) for case in TRAINED), (4, 'stage1')])
def test_a_stage_of_several_processes_is_that_of_one(made_by, count, case):
  assert_same_run(made_by(1) / case, made_by(count) / case)


@pytest.mark.parametrize('count', [2, 4])
def test_predictions_are_written_once(made_by, count):
  own, other = ({path.name: path.read_text() for path in (made_by(by) / 'stage1' / 'predictions')
                 .iterdir()} for by in (1, count))
  assert own == other and len(own) == 2


def test_scores_similarity_and_merges_of_two_processes_are_those_of_one(made_by):
  one, two = (made_by(count) / 'experts' for count in (1, 2))
  read = lambda folder, name: json.loads((folder / name).read_text())
  scores = [read(folder, 'scores.json') for folder in (one, two)]
  for name, own in scores[0].items():
    assert own == pytest.approx(scores[1][name], rel=1e-4)
  for own, other in zip(*((folder / 'predictions.jsonl').read_text().splitlines()
                          for folder in (one, two)), strict=True):
    own, other = json.loads(own), json.loads(other)
    assert own['prediction'] == other['prediction']
    assert own['label_scores'] == pytest.approx(other['label_scores'], rel=1e-4)
  tables = [read(folder, 'similarity/similarity.json')['metrics']['loss']['values']
            for folder in (one, two)]
  np.testing.assert_allclose(*tables, rtol=1e-4)
  merged = [sorted((folder / 'merged' / 'experts').iterdir()) for folder in (one, two)]
  for own, other in zip(*merged, strict=True):
    small.assert_same_leaves(small.leaves_of(own), small.leaves_of(other))


def test_a_signal_to_one_stops_all_and_others_go_on(run, tmp_path):
  (code, _, stderr), = run(1, tmp_path / 'whole', ['long'])
  assert code == 0, stderr[-4000:]
  place = tmp_path / 'parts'
  for count, stop, step in ((2, 2, 4), (1, 6, 6), (4, 0, 12)):
    for code, _, stderr in run(count, place, ['long'], f'--stop={stop}'):
      assert code == (143 if stop else 0), stderr[-4000:]
      assert not stop or f'Stopped by a signal at step {step};' in stderr
  assert_same_run(tmp_path / 'whole' / 'long', place / 'long')


def test_a_process_that_dies_ends_the_others(run, tmp_path):
  first, second = run(2, tmp_path, ['long'], '--die=3', '--process_timeout=60', timeout=300)
  assert second[0] == -9
  assert first[0] == 3 and 'This process has lost process 1' in first[2], first
