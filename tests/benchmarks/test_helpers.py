"""Helpers of the benchmarks: turns, statistics, synthetic tokens, the description of a machine."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import children, machine
from benchmarks.options import Options, batch_of


class Counting:
  """A child whose steps take 1, 2, 3, ... seconds."""

  def __init__(self, log, name):
    self.log, self.name, self.steps = log, name, 0

  def ask(self, do, count):
    assert do == 'run'
    self.log.append(self.name)
    first = self.steps + 1
    self.steps += count
    seconds = [float(step) for step in range(first, self.steps + 1)]
    return {'seconds': seconds, 'cpu_seconds': seconds, 'values': seconds}


def test_programs_take_turns_and_the_first_turn_is_not_measured():
  log = []
  programs = {name: Counting(log, name) for name in 'ab'}
  found = children.take_turns(programs, 2, {'b': 3})
  assert log == list('ababab')
  assert found['a']['seconds'] == [2.0, 3.0]
  assert found['b']['seconds'] == [4.0 + 5 + 6, 7.0 + 8 + 9]
  assert found['a']['values'] == [1.0, 2.0, 3.0]


def test_statistics_by_hand():
  assert children.summary([4.0, 1.0, 2.0, 3.0, 5.0]) == {
      'median': 3.0, 'least': 1.0, 'largest': 5.0, 'quartile_1': 2.0, 'quartile_3': 4.0}
  assert children.summary([2.0])['quartile_3'] == 2.0
  found = children.ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
  assert found['of_medians'] == 2.0
  assert found['of_turns']['median'] == 2.0 and found['of_turns']['largest'] == 3.0
  assert children.largest_difference([1.0, 2.0], [1.0, 1.0]) == 0.5


def test_both_sides_see_the_same_tokens():
  options = Options(folder='', batch=3, source=5, target=2)
  first, again, other = (batch_of(options, 30, step) for step in (0, 0, 1))
  assert {name: ids.shape for name, ids in first.items()} == {'inputs': (3, 5), 'targets': (3, 2)}
  for name, ids in first.items():
    np.testing.assert_array_equal(ids, again[name])
    assert ids.dtype == np.int32 and ids.min() >= 2 and ids.max() < 30
  assert not np.array_equal(first['inputs'], other['inputs'])


def test_the_machine_is_described():
  found = machine.describe()
  assert found['cores'] >= 1 and found['versions']['jax']
  assert len(machine.load()) == 3
  json.dumps(found)


@pytest.mark.parametrize('suite, model', [('none', 't5-small'), ('scan', 't5-tiny')])
def test_a_wrong_command_ends_with_one_sentence(run_python, tmp_path, suite, model):
  done = run_python('benchmarks/run.py', f'--suite={suite}', f'--models={model}',
                    f'--output={tmp_path}/out.json')
  assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
  assert not (tmp_path / 'out.json').exists()


@pytest.mark.slow
@pytest.mark.parametrize('suite', ['train_step', 'few_shot', 'decoding', 'scan', 'similarity',
                                   'remat'])
def test_every_suite_writes_its_samples(run_python, repo_root, tmp_path, suite):
  if suite in ('train_step', 'decoding'):
    pytest.importorskip('torch')
    pytest.importorskip('peft')
  output = tmp_path / 'out' / f'{suite}.json'
  backbone = repo_root / 'pemt_jax' / 'assets' / 'playground_t5'
  done = run_python('benchmarks/run.py', f'--suite={suite}', f'--models={backbone}', '--rounds=2',
                    '--sources=3', f'--output={output}')
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(output.read_text())
  assert found['suite'] == suite and found['machine']['versions']['jax'] and found['results']
  for result in found['results']:
    sides = [value for value in result.values() if isinstance(value, dict) and 'samples' in value]
    assert len(sides) == {'similarity': 3, 'remat': 4}.get(suite, 2)
    assert all(len(side['samples']) == 2 and side['memory']['peak_mib'] > 0 for side in sides)
  if suite == 'train_step':
    # Equal weights, tokens and updates: without dropout the losses of both sides are equal.
    plain = next(result for result in found['results'] if not result['dropout'])
    assert plain['largest_relative_difference_of_losses'] < 1e-3
  if suite == 'similarity':
    assert all(result['largest_relative_difference'] < 1e-3 for result in found['results'])
  if suite == 'decoding':
    assert found['results'][0]['equal_tokens'] > 0.99
