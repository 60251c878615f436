"""Laws of run checkpoints: a save that is cut short never costs the earlier one."""

from __future__ import annotations

import json
import logging
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.training import checkpoints, loop, optimisers, records, state as state_lib
from tests.training import toy


def make_state(step=0):
  tuned = {'w': jnp.arange(6.0).reshape(2, 3) + step, 'none': jnp.zeros((2, 0))}
  keys = np.stack([state_lib.replica_key(name, 0) for name in 'ab'])
  state = state_lib.init_state(tuned, {}, keys, optimisers.adamw())
  return state.replace(step=jnp.asarray(step, jnp.int32))


@pytest.fixture
def store(tmp_path):
  store = checkpoints.RunCheckpoints(tmp_path / 'run', keep=2)
  for step in (3, 6, 9):
    store.save(make_state(step), {'note': step})
  yield store
  store.close()


def test_newest_checkpoint_is_restored_and_only_some_are_kept(store):
  assert store.steps() == [6, 9]
  state, record = store.restore(lambda record: make_state())
  assert int(state.step) == 9 and record['note'] == 9
  np.testing.assert_array_equal(state.tuned['w'], make_state(9).tuned['w'])
  np.testing.assert_array_equal(state.key, make_state().key)


@pytest.mark.parametrize('damage', ['empty folder', 'arrays cut', 'no record'])
def test_half_written_checkpoint_is_set_aside(store, damage, caplog):
  newest = store.folder / '9'
  if damage == 'empty folder':
    shutil.rmtree(newest)
    newest.mkdir()
  elif damage == 'arrays cut':
    for path in (newest / 'state').rglob('*'):
      if path.is_file():
        path.write_bytes(path.read_bytes()[:1])
  else:
    shutil.rmtree(newest / 'record')
  (store.folder / '12.orbax-checkpoint-tmp').mkdir()
  store.close()
  again = checkpoints.RunCheckpoints(store.folder, keep=2)
  with caplog.at_level(logging.WARNING):
    state, _ = again.restore(lambda record: make_state())
  assert int(state.step) == 6
  assert 'run/9 is damaged (' in caplog.text and (store.folder / 'damaged-9').exists()
  assert 'and the run goes on from the checkpoint of step 6.' in caplog.text
  again.save(make_state(9), {'note': 'again'})
  assert again.record(9)['note'] == 'again'
  again.close()


def flip_a_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)


def test_a_flipped_bit_in_any_file_is_noticed(store, caplog):
  """Orbax alone reads some of these as other numbers."""
  store.close()
  newest = store.folder / '9'
  names = [path.relative_to(newest) for path in newest.rglob('*')
           if path.is_file() and path.stat().st_size]
  whole = store.folder.parent / 'whole'
  shutil.copytree(newest, whole)
  assert len(names) > 5
  for name in names:
    flip_a_bit(newest / name)
    again = checkpoints.RunCheckpoints(store.folder, keep=2)
    caplog.clear()
    state, record = again.restore(lambda record: make_state())
    again.close()
    assert (int(state.step), record['note']) == (6, 6), name
    assert 'run/9 is damaged (' in caplog.text
    shutil.copytree(whole, newest)


def test_a_sound_checkpoint_is_not_set_aside_for_another_failure(store, monkeypatch):
  def fail(*_):
    raise MemoryError('too large')
  monkeypatch.setattr(store, '_read', fail)
  with pytest.raises(MemoryError):
    store.restore(lambda record: make_state())
  assert store.steps() == [6, 9]


@pytest.mark.parametrize('damage', ['flipped', 'removed'])
def test_a_run_whose_best_tree_is_damaged_goes_on_from_an_earlier_checkpoint(
    tmp_path, damage, caplog):
  config = toy.make_config()
  totals = {'a': 6}
  straight = loop.train(toy.make_experiment(totals), config, tmp_path)
  book = straight.results['a']
  tree = tmp_path / 'checkpoints' / 'best' / 'a' / str(book['best_step'])
  assert book['best_step'] == 6
  if damage == 'flipped':
    flip_a_bit(tree / 'arrays' / 'manifest.ocdbt')
    with pytest.raises(UserError, match='is not what was written; the tree is damaged'):
      checkpoints.BestTrees(tree.parents[1]).load('a', 6)
  else:
    shutil.rmtree(tree)
  found = loop.train(toy.make_experiment(totals), config, tmp_path)
  assert f'run/6 is damaged (its best tree {tree})' in caplog.text
  assert 'goes on from the checkpoint of step 3' in caplog.text
  np.testing.assert_array_equal(found.tuned['layer']['w'], straight.tuned['layer']['w'])


def test_names_and_shapes_are_strict(store):
  def other(**tuned):
    return make_state().replace(tuned=tuned)
  wide = jnp.zeros((2, 4))
  cases = [
      ({'w': wide, 'none': jnp.zeros((2, 0))}, "has 'tuned/w' as float32 [2, 3], expected float32 "
       '[2, 4]; use a checkpoint of the same config.'),
      ({'none': jnp.zeros((2, 0))}, "has 'tuned/w' (float32 [2, 3]), which is not expected; use a "
       'checkpoint of the same config.'),
      ({**make_state().tuned, 'x': wide}, "has no 'tuned/x', expected float32 [2, 4]; use a "
       'checkpoint of the same config.')]
  for tuned, sentence in cases:
    with pytest.raises(UserError) as error:
      store.restore(lambda record, t=tuned: other(**t))
    assert str(error.value) == f"{store.folder / '9'} {sentence}"


def test_best_trees_are_pruned_to_those_that_are_wanted(tmp_path):
  best = checkpoints.BestTrees(tmp_path)
  for step in (3, 6):
    best.save('a', step, {'w': np.full(2, step)}, {})
  best.prune([('a', 6)])
  assert [path.name for path in (tmp_path / 'a').iterdir()] == ['6']
  tuned, constants = best.load('a', 6)
  np.testing.assert_array_equal(tuned['w'], [6, 6])
  assert constants == {}


def test_metric_lines_behind_a_step_and_cut_lines_are_removed(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  lines = [json.dumps({'step': step, 'replica': 'a'}) for step in (2, 4, 6)]
  path.write_text('\n'.join(lines) + '\n{"step": 4, "rep')
  records.cut_metrics(path, 4)
  assert path.read_text() == '\n'.join(lines[:2]) + '\n'


def test_a_process_killed_in_a_save_resumes_from_the_save_before(tmp_path, run_python):
  """The kill comes while Orbax has the new folder under its temporary name."""
  code = f'''
import os, signal
import orbax.checkpoint as ocp
from pemt_jax.training import checkpoints, loop
from tests.training import toy
save = checkpoints.RunCheckpoints.save
def dying(self, state, record):
  if int(state.step) == 6:
    os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
  save(self, state, record)
checkpoints.RunCheckpoints.save = dying
loop.train(toy.make_experiment({{'a': 9}}), toy.make_config(), {str(tmp_path / "killed")!r})
'''
  assert run_python(code=code).returncode == -9
  names = {path.name for path in (tmp_path / 'killed' / 'checkpoints' / 'run').iterdir()}
  assert '3' in names and '6' not in names
  found = loop.train(toy.make_experiment({'a': 9}), toy.make_config(), tmp_path / 'killed')
  expected = loop.train(toy.make_experiment({'a': 9}), toy.make_config(), tmp_path / 'straight')
  np.testing.assert_array_equal(found.tuned['layer']['w'], expected.tuned['layer']['w'])


def test_temporary_folders_of_a_killed_write_do_not_hide_the_tree(tmp_path):
  tree_files.write_tree(tmp_path / 'x', {'w': np.ones(2)})
  (tmp_path / '.x.tmp.1' / 'arrays').mkdir(parents=True)
  np.testing.assert_array_equal(tree_files.read_tree(tmp_path / 'x')['w'], [1, 1])
  with pytest.raises(UserError, match='manifest.json does not exist'):
    tree_files.read_tree(tmp_path / '.x.tmp.1')
