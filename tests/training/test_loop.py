"""Laws of the loop: exact resume, replicas as if alone, selection, stops, files."""

from __future__ import annotations

import json
import os
import signal
import types

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.training import interruption, loop, run as run_lib
from tests.training import toy

TIMES = ('train/steps_per_second', 'train/tokens_per_second', 'train/flops_per_second',
         'train/input_share')


def weights(result):
  return np.array(result.tuned['layer']['w'])


def metric_lines(workdir):
  """Lines of metrics.jsonl without the figures that depend on the clock."""
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def stopping_stream(experiment, at, error=None):
  """Makes the experiment raise `error`, or the process receive SIGTERM, at draw `at`."""
  make, count = experiment.stream, [0]

  def stream(replica):
    inner = make(replica)
    class Stopping(types.SimpleNamespace):
      def __next__(self):
        count[0] += 1
        if count[0] == at:
          if error is None:
            os.kill(os.getpid(), signal.SIGTERM)
          else:
            raise error
        return next(inner)
    return Stopping(get_state=inner.get_state, set_state=inner.set_state)

  experiment.stream = stream
  return experiment


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """One uninterrupted run of three replicas; `c` ends earlier and leaves the state."""
  workdir = tmp_path_factory.mktemp('straight')
  totals = {'a': 14, 'b': 14, 'c': 7}
  return totals, workdir, loop.train(toy.make_experiment(totals), toy.make_config(), workdir)


@pytest.mark.parametrize('error', [RuntimeError('power cut'), None], ids=['exception', 'sigterm'])
@pytest.mark.parametrize('at', [8, 26])
def test_resume_is_exact(straight, tmp_path, error, at):
  totals, straight_dir, expected = straight
  config = toy.make_config()
  raised = RuntimeError if error else interruption.RunInterrupted
  with pytest.raises(raised) as info:
    loop.train(stopping_stream(toy.make_experiment(totals), at, error), config, tmp_path)
  if error is None:
    assert info.value.code == 128 + signal.SIGTERM
    assert f'{tmp_path} holds its state, and the same command goes on' in str(info.value)
  found = loop.train(toy.make_experiment(totals), config, tmp_path)
  np.testing.assert_array_equal(weights(found), weights(expected))
  assert metric_lines(tmp_path) == metric_lines(straight_dir)
  for name, result in found.results.items():
    assert {k: v for k, v in result.items() if 'second' not in k} == {
        k: v for k, v in expected.results[name].items() if 'second' not in k}


def test_best_trees_may_stay_in_memory(straight, tmp_path):
  totals, _, expected = straight
  config = toy.make_config(best_trees='memory')
  with pytest.raises(interruption.RunInterrupted):
    loop.train(stopping_stream(toy.make_experiment(totals), 26), config, tmp_path)
  found = loop.train(toy.make_experiment(totals), config, tmp_path)
  np.testing.assert_array_equal(weights(found), weights(expected))
  assert not list((tmp_path / 'checkpoints').glob('*/*'))


def test_replicas_together_equal_one_by_one(straight, tmp_path):
  totals, _, together = straight
  for index, name in enumerate(totals):
    experiment = toy.make_experiment(totals)
    experiment.replicas = (experiment.replicas[index],)
    alone = loop.train(experiment, toy.make_config(), tmp_path / name)
    np.testing.assert_allclose(weights(alone)[0], weights(together)[index], rtol=1e-5, atol=1e-6)
    mine, theirs = alone.results[name], together.results[name]
    assert (mine['best_step'], mine['step']) == (theirs['best_step'], theirs['step'])
    np.testing.assert_allclose(mine['best_value'], theirs['best_value'], rtol=1e-4)


def test_files_of_a_run(straight):
  totals, workdir, result = straight
  assert json.loads((workdir / 'config.json').read_text())['train']['log_every'] == 2
  assert 'jax' in json.loads((workdir / 'environment.json').read_text())['packages']
  written = json.loads((workdir / 'result.json').read_text())['replicas']
  assert list(written) == list(totals) and written['c']['step'] == 7
  assert written['a']['final_metrics']['score'] == result.results['a']['final_metrics']['score']
  lines = metric_lines(workdir)
  assert [line['step'] for line in lines if line['replica'] == 'c' and 'train/loss' in line] == [
      2, 3, 4, 6, 7]
  assert {'train/moe_weight_0', 'train/learning_rate', 'train/grad_norm'} <= set(lines[0])
  assert [line['step'] for line in lines
          if line['replica'] == 'a' and 'validation/score' in line] == [3, 6, 9, 12, 14]


def test_seconds_of_phases_are_written_and_go_on_after_a_stop(tmp_path):
  config = toy.make_config()
  with pytest.raises(RuntimeError):
    loop.train(stopping_stream(toy.make_experiment({'a': 6}), 5, RuntimeError('power cut')),
               config, tmp_path)
  first = json.loads((tmp_path / 'times.json').read_text())
  assert set(first) == {'input', 'compilation', 'step', 'evaluation', 'checkpoint'}
  loop.train(toy.make_experiment({'a': 6}), config, tmp_path)
  both = json.loads((tmp_path / 'times.json').read_text())
  assert all(both[name] > first[name] > 0 for name in first)


def test_a_finished_workdir_gives_its_result_again(straight):
  totals, workdir, result = straight
  again = loop.train(stopping_stream(toy.make_experiment(totals), 1, RuntimeError('trained')),
                     toy.make_config(), workdir)
  np.testing.assert_array_equal(weights(again), weights(result))


def test_best_step_and_early_stop_per_replica(tmp_path):
  scores = {'up': [1, 2, 3, 4, 5], 'down': [5, 4, 5, 1, 1]}
  history = []
  experiment = toy.make_experiment({'up': 15, 'down': 15}, scores=scores)
  evaluate = experiment.evaluate

  def keep(tuned, frozen, constants, members, split):
    history.append({r.name: np.array(tuned['layer']['w'][i]) for i, r in enumerate(members)})
    return evaluate(tuned, frozen, constants, members, split)

  experiment.evaluate = keep
  result = loop.train(experiment, toy.make_config(patience=2, final_split=''), tmp_path)
  up, down = result.results['up'], result.results['down']
  assert (up['best_step'], up['step'], up['stopped_early']) == (15, 15, False)
  assert (down['best_step'], down['step'], down['stopped_early']) == (3, 9, True)
  np.testing.assert_array_equal(weights(result)[0], history[4]['up'])
  np.testing.assert_array_equal(weights(result)[1], history[0]['down'])


@pytest.mark.parametrize('changes, best', [
    ({'greater_is_better': False}, 12), ({'ties_improve': True}, 9), ({'metric': ''}, 15),
    ({'eval_every': 4}, 12), ({'eval_every': 'never', 'final_split': ''}, 15)])
def test_selection_options(tmp_path, changes, best):
  scores = {'a': [2, 1, 2, 0, 1]} if changes.get('eval_every') != 4 else {'a': [0, 1, 3, 2]}
  result = loop.train(toy.make_experiment({'a': 15}, scores=scores), toy.make_config(**changes),
                      tmp_path)
  assert result.results['a']['best_step'] == best


@pytest.mark.parametrize('keeps, best_step, best_value', [(False, 6, 7), (True, 6, 3)])
def test_a_vanished_loss_counts_against_patience(tmp_path, keeps, best_step, best_value):
  experiment = toy.make_experiment({'a': 15}, scores={'a': [3, 7, 5, 9, 9]})
  config = toy.make_config(patience=2, vanishing_loss=1e3, vanishing_keeps_best=keeps,
                           final_split='')
  result = loop.train(experiment, config, tmp_path).results['a']
  assert (result['step'], result['stopped_early']) == (6, True)
  assert (result['best_step'], result['best_value']) == (best_step, best_value)


def test_the_last_step_is_evaluated_unless_the_config_says_no(tmp_path):
  for evaluate_last, steps in ((True, [3, 6, 8]), (False, [3, 6])):
    folder = tmp_path / str(evaluate_last)
    config = toy.make_config(evaluate_last=evaluate_last, final_split='')
    result = loop.train(toy.make_experiment({'a': 8, 'b': 7}), config, folder)
    assert (result.results['a']['step'], result.results['b']['step']) == (8, 7)
    assert [line['step'] for line in metric_lines(folder)
            if line['replica'] == 'a' and 'validation/score' in line] == steps
  short = loop.train(toy.make_experiment({'a': 2}), config, tmp_path / 'short')
  assert short.results['a']['best_step'] == 2


def test_unknown_metric_is_an_error(tmp_path):
  with pytest.raises(UserError) as error:
    loop.train(toy.make_experiment({'a': 3}), toy.make_config(metric='f1'), tmp_path)
  assert str(error.value) == ("config.train.metric is 'f1', the evaluation of 'a' gives score; "
                              "choose one of these or ''.")


def test_non_finite_loss_names_step_replica_examples_and_checkpoint(tmp_path):
  experiment = toy.make_experiment({'a': 12, 'b': 12}, poison={'b': (1, 1)})
  with pytest.raises(run_lib.NonFiniteError) as error:
    loop.train(experiment, toy.make_config(log_every=50, eval_every=3), tmp_path)
  stream = toy.ToyStream('b', 1)
  ids = [', '.join(map(str, next(stream)['example_ids'])) for _ in range(5)][4]
  assert str(error.value) == (
      f"The loss or gradient of replica 'b' is not finite at step 5 (example ids {ids}; last good "
      f"checkpoint: {tmp_path / 'checkpoints' / 'run' / '3'}); lower config.train.learning_rate or "
      'look at these examples.')


def test_a_workdir_of_another_config_is_an_error(straight):
  totals, workdir, _ = straight
  with pytest.raises(UserError) as error:
    loop.train(toy.make_experiment(totals), toy.make_config(beta1=0.8), workdir)
  assert str(error.value) == (
      f'{workdir} holds a run with config.train.beta1 = 0.9, this call has 0.8; use the old value '
      'to resume it or choose another workdir.')


def test_a_workdir_of_other_replicas_is_an_error(straight):
  _, workdir, _ = straight
  with pytest.raises(UserError, match='holds a run of the replicas a, b, c, the config '
                     'gives a, d;'):
    loop.train(toy.make_experiment({'a': 14, 'd': 14}), toy.make_config(), workdir)


def test_a_state_of_other_shapes_is_an_error(straight):
  totals, workdir, _ = straight
  wide = toy.make_experiment(
      totals, init=lambda r: ({'layer': {'w': np.zeros(7, np.float32)}}, {'scale': np.float32(1)}))
  with pytest.raises(UserError, match=r"run/14 has 'moments/first/layer/w' as float32 \[2, 5\], "
                     r'expected float32 \[2, 7\]; use a checkpoint of the same config'):
    loop.train(wide, toy.make_config(), workdir)


def test_tensorboard_files_are_written(tmp_path):
  loop.train(toy.make_experiment({'a': 3}), toy.make_config(tensorboard=True), tmp_path)
  assert list((tmp_path / 'tensorboard' / 'a').glob('events*'))


def test_progress_bar_shows_speed_and_time_left(tmp_path, capsys):
  loop.train(toy.make_experiment({'a': 6}), toy.make_config(progress='always'), tmp_path)
  shown = capsys.readouterr().err
  assert '6/6' in shown and 'tokens/s' in shown and 'loss' in shown and 'step/s' in shown
  assert 'a at step 3: score' in shown
  loop.train(toy.make_experiment({'a': 6}), toy.make_config(), tmp_path / 'silent')
  assert capsys.readouterr().err == ''
