"""Shares of tasks in an epoch of a mixture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pemt_jax.data import mixture

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
