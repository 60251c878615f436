"""Packed rows: every example once, no row above its size, batches that resume and mix."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from pemt_jax.data import pipeline
from pemt_jax.data.mixture import MixedTasks, Mixing
from pemt_jax.data.packing import RowForm, aligned, first_fit, pack_rows
from pemt_jax.data.tokenized import Ragged, TokenizedData
from pemt_jax.errors import UserError

FORM = RowForm(front=3, length=40)


def make_data(count=50, seed=0, longest=20):
  """Examples whose tokens name them: example i holds i + 1 only."""
  rng = np.random.default_rng(seed)
  ragged = lambda most: Ragged.from_lists(
      [[i + 1] * int(rng.integers(1, most + 1)) for i in range(count)])
  return TokenizedData(ragged(longest), ragged(4), np.zeros(count, np.int32),
                       np.arange(count, dtype=np.int32), 0, longest, 4, f'data {seed}')


def rows_of(packed, epoch=0):
  """All rows as one batch."""
  return packed.assemble(np.arange(len(packed)), epoch, (packed.input_limit, packed.target_limit))


@pytest.mark.parametrize('epoch', [0, 3])
def test_every_example_stands_in_one_place(epoch):
  data = make_data()
  packed = pack_rows(data, FORM, 0, 'a')
  batch = rows_of(packed, epoch)
  found = {}
  for row, examples in enumerate(batch['example_ids']):
    for place, example in enumerate(examples, start=1):
      inside = {name: batch[f'{name}_segments'][row] == place for name in ('input', 'target')}
      if example < 0:
        assert not inside['input'].any() and not inside['target'].any()
        continue
      tokens = batch['inputs'][row][inside['input']]
      assert tokens[:FORM.front].tolist() == [0] * FORM.front
      assert not batch['inputs_mask'][row][inside['input']][:FORM.front].any()
      found[int(example)] = (tokens[FORM.front:].tolist(),
                             batch['targets'][row][inside['target']].tolist())
  assert found == {i: (data.inputs.row(i).tolist(), data.targets.row(i).tolist())
                   for i in range(len(data))}
  assert batch['inputs_mask'].sum() == data.input_lengths.sum()
  assert batch['targets_mask'].sum() == data.target_lengths.sum()


def test_examples_meet_others_in_other_epochs():
  packed = pack_rows(make_data(longest=3), FORM, 0, 'a')
  first, again, later = (rows_of(packed, epoch)['example_ids'] for epoch in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != later).any()
  other = pack_rows(make_data(longest=3), FORM, 0, 'b')
  assert (packed.members != other.members[:len(packed.members)]).any()


@hypothesis.given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), max_size=40))
def test_bins_hold_what_fits(needs):
  needs = np.array(needs, int).reshape(-1, 2)
  bins = first_fit(needs, (10, 6))
  assert sorted(item for own in bins for item in own) == list(range(len(needs)))
  for number, own in enumerate(bins):
    assert (needs[own].sum(axis=0) <= (10, 6)).all()
    for other in bins[:number]:  # The first item of a bin found no room in those before it.
      earlier = [item for item in other if item < own[0]]
      assert (needs[[*earlier, own[0]]].sum(axis=0) > (10, 6)).any()


def test_rows_are_nearly_full():
  data = make_data(1000)
  packed = pack_rows(data, FORM, 0, 'a')
  used = (data.input_lengths + FORM.front).sum() / (len(packed) * FORM.length)
  assert used > 0.9


def test_streams_resume_with_one_shape():
  packed = pack_rows(make_data(), FORM, 0, 'a')
  open_ = lambda: pipeline.Stream(packed, pipeline.StreamConfig(batch_size=3, name='a'))
  stream, again = open_(), open_()
  batches = [next(stream) for _ in range(6)]
  assert len({batch['inputs'].shape for batch in batches}) == 1
  for _ in range(4):
    next(again)
  state = again.get_state()
  resumed = open_()
  resumed.set_state(state)
  np.testing.assert_array_equal(next(resumed)['inputs'], batches[4]['inputs'])
  other = pipeline.Stream(pack_rows(make_data(), FORM, 1, 'a'),
                          pipeline.StreamConfig(batch_size=3, name='a'))
  with pytest.raises(UserError, match='belongs to other examples'):
    other.set_state(state)


def test_rows_of_a_mixture_have_one_task():
  parts = aligned([pack_rows(make_data(30, seed, longest), FORM, 0, str(seed))
                   for seed, longest in enumerate((20, 5))])
  mixed = MixedTasks.of(parts, Mixing('equal'), 0, 'a')
  batch = mixed.assemble(np.arange(len(mixed)), 0, (FORM.length, parts[0].target_limit))
  assert set(batch['task_ids'].tolist()) == {0, 1}
  for part, task in zip(parts, (0, 1), strict=True):
    rows = batch['task_ids'] == task
    ids = batch['example_ids'][rows]
    assert set(ids[ids >= 0].tolist()) == set(range(len(part.source)))


def test_batches_of_replicas_have_the_shape_of_the_largest():
  made = [rows_of(pack_rows(make_data(30, longest=longest), FORM, 0, 'a'))
          for longest in (20, 4)]
  stacked = pipeline.stack_batches(made)
  assert stacked['example_ids'].shape[2] == max(batch['example_ids'].shape[1] for batch in made)
  few = made[0]['example_ids'].shape[1]
  assert (stacked['example_ids'][0, :, few:] == -1).all()


def test_an_input_longer_than_a_row_is_refused():
  with pytest.raises(UserError, match='3 of them .* config.data.packed_length is 12; give'):
    pack_rows(make_data(), RowForm(3, 12), 0, 'a')


def test_a_long_target_has_a_row_of_its_own():
  data = make_data()
  packed = pack_rows(data, RowForm(0, 40, 3), 0, 'a')
  long = packed.target_lengths > 3
  assert packed.target_limit == 4 and long.sum() == (data.target_lengths == 4).sum()
  assert ((packed.members[long] >= 0).sum(axis=1) == 1).all()
  assert rows_of(packed)['targets_mask'].sum() == data.target_lengths.sum()
