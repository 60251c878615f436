"""Runs that are killed at random moments end as undisturbed ones, bit for bit."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from benchmarks import kill_runs
from benchmarks.killed import Moment


@pytest.fixture(scope='module')
def starters():
  with kill_runs.Starters() as found:
    yield found


@pytest.fixture(scope='module')
def straight(tmp_path_factory, starters):
  """A run that nothing disturbs."""
  run = kill_runs.KillableRun(tmp_path_factory.mktemp('kills') / 'straight')
  assert run.start(starters)
  return run


def write_run(folder, loss=0.5, weight=1.0, seconds=1.0, ids=(1, 2)):
  run = kill_runs.KillableRun(folder)
  run.workdir.mkdir()
  (run.workdir / 'metrics.jsonl').write_text(
      json.dumps({'step': 1, 'loss': loss, 'seconds': seconds}) + '\n')
  (run.workdir / 'card.json').write_text(json.dumps({'place': str(run.workdir / 'x')}))
  np.savez(run.workdir / 'gates.npz', a=np.array([weight, np.nan]))
  (run.folder / 'order0.jsonl').write_text(json.dumps([1, 'a', ids]) + '\n')
  return run


@pytest.mark.parametrize('change, found', [
    ({}, []), ({'seconds': 2.0}, []), ({'loss': 0.6}, ['metrics.jsonl: 0: /loss differs']),
    ({'weight': np.nextafter(1.0, 2.0)}, ['gates.npz: a differs']),
    ({'ids': (2, 1)}, ["other rows in the batch of file, step, replica ('order0.jsonl', 1, 'a')"])])
def test_what_differs_is_named(tmp_path, change, found):
  first, second = write_run(tmp_path / 'a'), write_run(tmp_path / 'b', **change)
  assert kill_runs.differences(first, second) == found


@pytest.mark.slow
def test_runs_that_are_killed_end_as_if_nothing_had_been(straight, starters, tmp_path):
  rng, kills, runs = random.Random(1), 0, 0
  while kills < 5:
    run = kill_runs.KillableRun(tmp_path / str(runs))
    kills += len(list(run.to_the_end(starters, straight.seconds, rng, 5 - kills)))
    assert kill_runs.differences(straight, run) == []
    runs += 1


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_devices(straight, starters, tmp_path):
  run = kill_runs.KillableRun(tmp_path / 'run')
  assert not run.start(starters, Moment('save', 3))
  with kill_runs.Starters('8') as eight:
    assert not run.start(eight, Moment('save', 3))
  assert run.start(starters)
  assert kill_runs.differences(straight, run)[0]  # Not to the bit.
  assert kill_runs.differences(straight, run, rtol=1e-5) == []
