"""What a run says of itself: goodput over all starts, lost steps, operations, a trace."""

from __future__ import annotations

import json

import pytest

from pemt_jax.errors import UserError
from pemt_jax.training import loop, profiling, usage
from tests.training import toy
from tests.training.test_loop import stopping_stream

# The product of a batch and the vector, and the gradient of the vector.
FLOPS = 2 * (2 * toy.BATCH * toy.FEATURES)


def book_of(workdir):
  return json.loads((workdir / 'usage.json').read_text())


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
  """A run that ends without a word behind step 5 and goes on behind its checkpoint of step 3."""
  workdir = tmp_path_factory.mktemp('killed')
  experiment = lambda: toy.make_experiment({'a': 9})
  config = toy.make_config(log_every=1, peak_flops=1e6)
  with pytest.raises(RuntimeError):
    loop.train(stopping_stream(experiment(), 6, RuntimeError('power cut')), config, workdir)
  first = book_of(workdir)
  loop.train(experiment(), config, workdir)
  return workdir, first, book_of(workdir)


def test_a_book_is_kept_over_all_starts(killed):
  _, first, book = killed
  assert (first['starts'], first['lost_steps'], first['steps']) == (1, 0, 5)
  assert (book['starts'], book['lost_steps'], book['steps']) == (2, 2, 9)
  assert book['first_start'] == first['first_start']
  assert book['wall_seconds'] > first['wall_seconds']
  assert book['goodput'] == book['step_seconds'] / book['wall_seconds'] < 1
  # Steps 4 and 5 of the first start do not count; the first step of each start was compiled.
  assert book['flops_per_step'] == FLOPS and book['flops'] == (2 + 5) * FLOPS
  assert book['flops_per_second'] == pytest.approx(book['flops'] / book['step_seconds'])
  assert book['utilisation'] == pytest.approx(book['flops_per_second'] / 1e6)
  assert [work['step'] for work in book['saved']] == [6, 9]


def test_metrics_tell_operations_and_the_share_of_input(killed):
  lines = [json.loads(line) for line in (killed[0] / 'metrics.jsonl').read_text().splitlines()]
  lines = [line for line in lines if 'train/loss' in line]
  assert [line['step'] for line in lines] == list(range(1, 10))
  for line in lines:
    assert line['train/flops_per_second'] == pytest.approx(
        FLOPS * line['train/steps_per_second'])
    assert 0 < line['train/input_share'] < 1


def test_a_finished_run_that_is_asked_again_uses_nothing(killed):
  workdir, _, book = killed
  loop.train(toy.make_experiment({'a': 9}), toy.make_config(log_every=1), workdir)
  assert book_of(workdir) == book


def test_books_of_runs_one_after_the_other_are_added(killed, tmp_path):
  workdir, _, book = killed
  later = tmp_path / 'later'
  later.mkdir()
  (later / 'usage.json').write_text(json.dumps(
      book | {'first_start': book['first_start'] + 100.0}))
  joined = usage.combined([workdir, tmp_path / 'none', later])
  assert joined['flops'] == 2 * book['flops'] and joined['lost_steps'] == 4
  assert joined['wall_seconds'] == pytest.approx(100 + book['wall_seconds'])
  assert joined['goodput'] == pytest.approx(2 * book['step_seconds'] / joined['wall_seconds'])
  assert usage.combined([tmp_path]) == {}


def test_a_torn_line_of_metrics_is_passed_over(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  assert usage.logged_step(path) == 0
  path.write_text('{"step": 4}\n{"step": 5}\n{"st')
  assert usage.logged_step(path) == 5


def test_a_trace_of_some_steps_is_written(tmp_path, caplog):
  config = toy.make_config(profile=str(tmp_path / 'trace'), profile_steps='2:3')
  loop.train(toy.make_experiment({'a': 4}), config, tmp_path / 'run')
  assert list((tmp_path / 'trace').rglob('*.xplane.pb'))
  config.train.profile, config.train.profile_steps = str(tmp_path / 'none'), '10:15'
  loop.train(toy.make_experiment({'a': 4}), config, tmp_path / 'short')
  assert not (tmp_path / 'none').exists()
  assert 'this call made 4 steps, and the trace starts at step 10' in caplog.text


@pytest.mark.parametrize('text', ['10', '0:3', '5:4', 'a:b'])
def test_steps_of_a_trace_that_are_none(text):
  with pytest.raises(UserError, match="give the first and the last step of a trace"):
    profiling.steps_of(text)
