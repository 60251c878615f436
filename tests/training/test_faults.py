"""Faults of the machine: no run loses what was saved, and all say what is wrong in one sentence."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.training import checkpoints, interruption, lock, loop, records, waiting
from tests.training import toy

TOTALS = {'a': 9}


def train(workdir, experiment=None, **changes):
  return loop.train(experiment or toy.make_experiment(TOTALS), toy.make_config(**changes), workdir)


def weights(result):
  return np.array(result.tuned['layer']['w'])


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  return weights(train(tmp_path_factory.mktemp('straight')))


def without_room(monkeypatch, owner, name, call):
  """Lets one call of a function work where no file may grow beyond a few bytes."""
  function, calls = getattr(owner, name), []

  def limited(*args, **kwargs):
    calls.append(name)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if len(calls) == call:
      resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
    try:
      return function(*args, **kwargs)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

  monkeypatch.setattr(owner, name, limited)


@pytest.mark.parametrize('owner, name, call', [
    (checkpoints.RunCheckpoints, 'save', 2), (checkpoints.BestTrees, 'save', 2),
    (records.MetricWriter, 'write', 8), (loop, 'finish', 1)])
def test_a_full_disk_costs_nothing_that_was_saved(tmp_path, straight, monkeypatch, owner, name,
                                                  call):
  with monkeypatch.context() as patched:
    without_room(patched, owner, name, call)
    with pytest.raises(OSError) as error:
      train(tmp_path)
  assert error.value.errno == errno.EFBIG
  assert not list(tmp_path.rglob('.*.tmp*')) and not (tmp_path / 'result.json').exists()
  saved = checkpoints.RunCheckpoints(tmp_path / 'checkpoints' / 'run', keep=2)
  assert saved.steps() == {'finish': [6, 9], 'write': [3, 6]}.get(name, [3])
  saved.close()
  np.testing.assert_array_equal(weights(train(tmp_path)), straight)


def test_a_read_only_workdir_is_left_as_it_is(tmp_path, straight, monkeypatch):
  train(tmp_path, toy.make_experiment({'a': 9}))
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}

  def refuse(path, *_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

  with monkeypatch.context() as patched:
    patched.setattr(lock, 'open', refuse, raising=False)
    with pytest.raises(OSError, match=r"Read-only file system: '.*/\.lock'"):
      train(tmp_path)
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before
  np.testing.assert_array_equal(weights(train(tmp_path)), straight)


HOLDER = '''
import sys
from pemt_jax.training import lock
with lock.locked(sys.argv[1]):
  print('held', flush=True)
  sys.stdin.read()
'''


def test_two_runs_do_not_share_a_workdir_and_a_killed_one_leaves_no_lock(tmp_path, repo_root):
  with subprocess.Popen([sys.executable, '-c', HOLDER, str(tmp_path)], cwd=repo_root, text=True,
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
    assert other.stdout.readline() == 'held\n'
    with pytest.raises(UserError) as error:
      train(tmp_path)
    other.kill()
  assert str(error.value) == (
      f'The workdir {tmp_path} is in use by process {other.pid} on {socket.gethostname()}; wait '
      'for its end or choose another workdir.')
  assert [path.name for path in tmp_path.iterdir()] == [lock.LOCK]
  with lock.locked(tmp_path), lock.locked(tmp_path):
    assert (tmp_path / lock.LOCK).read_text() == f'process {os.getpid()} on {socket.gethostname()}'


def test_what_a_killed_process_has_left_is_removed(tmp_path):
  for name in ('.a.tmp.7/arrays', '.b.old.7', 'c', '.c.old.7', 'other/.d.tmp.8'):
    (tmp_path / name).mkdir(parents=True)
  for name in ('.e.json.tmp.7', '.hidden', 'f.tmp.7', f'other/{lock.LOCK}', '.b.old.7/inside'):
    (tmp_path / name).write_text('')
  with lock.locked(tmp_path):
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*'))
  assert found == ['.hidden', lock.LOCK, 'b', 'b/inside', 'c', 'f.tmp.7', 'other',
                   'other/.d.tmp.8', f'other/{lock.LOCK}']


def test_a_second_thread_is_another_run(tmp_path):
  refused = []

  def enter():
    try:
      with lock.locked(tmp_path):
        pass
    except UserError as error:
      refused.append(error)

  with lock.locked(tmp_path):
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
  assert len(refused) == 1
  enter()
  assert len(refused) == 1


def test_a_slow_reader_is_waited_for_and_named(tmp_path, straight, monkeypatch):
  """The stream stands still until the message has come."""
  monkeypatch.setattr(waiting, 'PATIENCE', 0.05)
  told = threading.Event()

  class Listener(logging.Handler):
    def emit(self, record):
      if record.getMessage().startswith("Waiting for the next training batch of 'a' since"):
        told.set()

  experiment = toy.make_experiment(TOTALS)
  make = experiment.stream

  class Stalling(toy.ToyStream):
    def __next__(self):
      if self.position == [1, 1]:
        assert told.wait(60)
      return super().__next__()

  experiment.stream = lambda r: Stalling(r.name, r.seed)
  assert make(experiment.replicas[0]).y.tolist() == Stalling('a', 0).y.tolist()
  listener = Listener()
  logging.getLogger().addHandler(listener)
  try:
    found = train(tmp_path, experiment)
  finally:
    logging.getLogger().removeHandler(listener)
  np.testing.assert_array_equal(weights(found), straight)


@pytest.fixture
def heard():
  """Python's own handler of SIGINT: in the background of a shell the signal is ignored."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('heard')
@pytest.mark.parametrize('split, raised', [
    ('validation', interruption.RunInterrupted), ('test', KeyboardInterrupt)])
def test_a_signal_behind_the_last_step_is_heard(tmp_path, straight, split, raised):
  """In the last evaluation of training it stops the run, in the final one it ends it at once."""
  experiment, evaluate = toy.make_experiment(TOTALS), toy.make_experiment(TOTALS).evaluate
  signalled = []

  def evaluate_and_signal(tuned, frozen, constants, members, own):
    signalled.append(own)
    if own == split and (own == 'test' or signalled.count(own) == 3):
      os.kill(os.getpid(), signal.SIGINT)
    return evaluate(tuned, frozen, constants, members, own)

  experiment.evaluate = evaluate_and_signal
  with pytest.raises(raised):
    train(tmp_path, experiment)
  assert signalled.count('validation') == 3 and not (tmp_path / 'result.json').exists()
  np.testing.assert_array_equal(weights(train(tmp_path)), straight)


@pytest.mark.usefixtures('heard')
def test_a_second_signal_ends_at_once():
  with interruption.Interruption() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.signal_number == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
