"""The measurement on an accelerator runs on the CPU too, without the libraries of the pipeline."""

from __future__ import annotations

import json

import pytest

from benchmarks import gpu_parts

BLOCKED = """
import runpy, sys
for name in ('grain', 'datasets', 'ml_collections', 'orbax'):
  sys.modules[name] = None  # an import of it fails
sys.path.insert(0, '.')
sys.argv[0] = 'benchmarks/gpu.py'
runpy.run_path('benchmarks/gpu.py', run_name='__main__')
"""


class Side:
  """A program whose calls take a given time."""

  def __init__(self, seconds):
    self.seconds, self.counts = seconds, []

  def turn(self, count):
    self.counts.append(count)
    return self.seconds


def test_turns_alternate_and_are_about_half_a_second():
  sides = {'slow': Side(2.0), 'fast': Side(0.1)}
  found = gpu_parts.take_turns(sides, 3)
  assert [found[name]['calls_of_a_turn'] for name in sides] == [1, 5]
  assert sides['fast'].counts == [1, 1, 5, 5, 5]
  assert found['slow']['samples'] == [2.0] * 3


def test_a_part_is_skipped_for_want_of_time_or_fails_alone():
  bench = gpu_parts.Bench(None, lambda: 5.0)
  never = lambda bench: {}['nothing']
  assert gpu_parts.run_part('a', never, 9.0, bench) == {
      'part': 'a', 'skipped': '5 s are left and it may take 9 s'}
  assert gpu_parts.run_part('a', never, 1.0, bench)['failed'] == "KeyError: 'nothing'"


@pytest.mark.slow
def test_every_part_runs_without_the_libraries_of_the_pipeline(run_python, repo_root, tmp_path):
  output, script = tmp_path / 'gpu.json', tmp_path / 'blocked.py'
  script.write_text(BLOCKED)
  done = run_python(script, '--sizes=tiny', '--budget=9999', f'--output={output}', timeout=900)
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(output.read_text())
  parts = {part['part'].split()[0]: part for part in found['results']}
  assert list(parts) == ['rates', 'train_step', 'attention', 'replicas', 'decoding', 'experts']
  assert not any('failed' in part or 'skipped' in part for part in found['results'])
  step = parts['train_step']
  assert 0 < step['library']['utilisation'] < 1.5 and step['library']['gflop'] > 0.01
  assert ('speed_over_peer' if not gpu_parts.missing_peer() else 'without_peer') in step
  assert parts['replicas']['time_of_one_program_over_one_after_the_other'] > 0
