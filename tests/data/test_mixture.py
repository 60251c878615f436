"""Shares of tasks in an epoch of a mixture, and the forms of its batches."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pemt_jax.data import mixture, pipeline
from pemt_jax.data.task_sampler import TaskSampler
from pemt_jax.errors import UserError

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@given(SIZES, st.sampled_from(mixture.SAMPLINGS), st.floats(1, 10))
def test_every_row_is_seen_and_the_shares_are_kept(sizes, sampling, temperature):
  share = mixture.shares(sizes, sampling, temperature)
  assert share.sum() == pytest.approx(1)
  rows = mixture.epoch_rows(sizes, share, 0, 'name')
  total = sum(map(len, rows))
  for size, own, part in zip(sizes, rows, share, strict=True):
    counts = np.bincount(own, minlength=size)
    assert len(counts) == size and counts.min() >= 1 and counts.max() - counts.min() <= 1
    assert len(own) == pytest.approx(total * part, abs=len(sizes) + 1)
  if sampling == 'proportional':
    assert list(map(len, rows)) == sizes


def test_temperature_lies_between_proportional_and_equal():
  small = [mixture.shares([10, 90], *how)[0]
           for how in (('proportional',), ('temperature', 2.0), ('equal',))]
  np.testing.assert_allclose(small, [0.1, 0.25, 0.5])


@dataclasses.dataclass(frozen=True)
class Rows:
  """Rows without text; the length of row i is 1 + i mod 40."""

  count: int
  input_limit: int = 64
  target_limit: int = 8
  fingerprint: str = 'rows'

  def __len__(self):
    return self.count

  @property
  def input_lengths(self):
    return 1 + np.arange(self.count) % 40

  @property
  def target_lengths(self):
    return np.ones(self.count, np.int64)

  def assemble(self, rows, epoch, lengths):
    ids = np.where(rows < 0, -1, rows).astype(np.int32)
    return {'example_ids': ids, 'task_ids': np.zeros_like(ids),
            'inputs': np.zeros((len(rows), lengths[0]), np.int32)}


def stream_of(sizes, mixing, **options):
  source = mixture.MixedTasks.of([Rows(size) for size in sizes], mixing, 3, 'name')
  config = {'batch_size': 4, 'seed': 3, 'name': 'name', 'lookahead': 2, 'prefetch': 0} | options
  return pipeline.Stream(source, pipeline.StreamConfig(**config))


def pairs(batch):
  """(task, example) of the rows of a batch that are no fillers."""
  return [(task, row) for task, row in zip(batch['task_ids'].tolist(),
                                           batch['example_ids'].tolist()) if row >= 0]


@given(SIZES, st.sampled_from(mixture.SAMPLINGS))
def test_single_batches_hold_one_task_and_the_rows_of_an_epoch(sizes, sampling):
  single = stream_of(sizes, mixture.Mixing(sampling, batches='single'))
  mixed = stream_of(sizes, mixture.Mixing(sampling))
  for _ in range(2):
    batches = [pairs(next(single)) for _ in range(single.steps_per_epoch)]
    assert all(len({task for task, _ in batch}) == 1 for batch in batches)
    rows = [pair for _ in range(mixed.steps_per_epoch) for pair in pairs(next(mixed))]
    assert sorted(pair for batch in batches for pair in batch) == sorted(rows)
  single.close(), mixed.close()


def test_episodes_of_a_batch_hold_one_task_each():
  episodes = stream_of([8, 12, 5], mixture.Mixing('proportional', batches='episodes', episodes=2))
  seen = []
  for _ in range(episodes.steps_per_epoch):
    batch = next(episodes)
    half = len(batch['task_ids']) // 2
    for rows in (slice(None, half), slice(half, None)):
      real = batch['example_ids'][rows] >= 0
      assert len(set(batch['task_ids'][rows][real])) == 1
      seen += zip(batch['task_ids'][rows][real], batch['example_ids'][rows][real])
  assert set(seen) == {(task, row) for task, size in enumerate((8, 12, 5)) for row in range(size)}
  episodes.close()
  with pytest.raises(UserError, match='give a number that config.mixture.episodes=3 divides'):
    stream_of([8, 8], mixture.Mixing('proportional', batches='episodes', episodes=3))


def test_single_batches_are_shuffled_and_tasks_alternate():
  stream = stream_of([40, 40], mixture.Mixing('proportional', batches='single'))
  epochs = [[pairs(next(stream))[0] for _ in range(stream.steps_per_epoch)] for _ in range(2)]
  stream.close()
  tasks = [task for task, _ in epochs[0]]
  assert tasks != sorted(tasks) and tasks != sorted(tasks, reverse=True)
  assert tasks != [task for task, _ in epochs[1]]


def test_a_small_task_may_have_no_batch_when_the_remainder_is_dropped():
  stream = stream_of([2, 9], mixture.Mixing('proportional', batches='single'), drop_remainder=True)
  assert stream.steps_per_epoch == 2
  assert all(task == 1 for _ in range(4) for task, _ in pairs(next(stream)))
  stream.close()


def test_drawn_batches_are_those_of_the_published_sampler():
  sizes, mixing = (30, 50), mixture.Mixing('temperature', 10.0, 'drawn', seed=0)
  stream = stream_of(sizes, mixing)
  sampler = TaskSampler(sizes, mixing.shares(sizes), 4)
  assert stream.steps_per_epoch == 20
  for epoch in range(2):
    for task, rows in zip(*sampler.epoch(epoch)):
      assert pairs(next(stream)) == [(task, row) for row in rows]
  stream.close()


@pytest.mark.parametrize('batches', mixture.BATCHES)
def test_every_form_resumes_at_its_position(batches):
  mixing = mixture.Mixing('equal', batches=batches)
  stream, other = (stream_of([7, 20], mixing) for _ in range(2))
  for _ in range(stream.steps_per_epoch + 3):
    next(stream)
  other.set_state(json.loads(json.dumps(stream.get_state())))
  for _ in range(5):
    np.testing.assert_array_equal(next(stream)['example_ids'], next(other)['example_ids'])
  forms = {form: stream_of([7, 20], mixture.Mixing('equal', batches=form))
           for form in mixture.BATCHES if form != batches}
  for changed in forms.values():
    with pytest.raises(UserError):
      changed.set_state(stream.get_state())
    changed.close()
  stream.close(), other.close()


def test_unknown_words_are_one_sentence():
  with pytest.raises(UserError) as error:
    mixture.Mixing('equal', batches='task')
  assert str(error.value) == (
      "config.mixture.batches is 'task'; choose one of mixed, single, drawn, "
      'episodes.')
