"""Storage of ProPETL for each task, against an adapter for each task."""

from __future__ import annotations

import pytest

from pemt_jax.methods import propetl
from pemt_jax.methods.propetl_storage import per_task, storage
from pemt_jax.models.roberta_config import PUBLISHED
from pemt_jax.models.t5_config import t5_config

BASE = t5_config('t5-base')
ADAPTER = propetl.ProPETLOptions()


def test_storage_per_task_falls_with_their_number():
  rows = per_task(ADAPTER, BASE)
  assert [row.tasks for row in rows] == [1, 8, 100]
  mask, prototype, layers = 98_304, 99_136 * 32, 24
  for row in rows:
    assert row.separate == 2_379_264 * 4
    assert row.shared == pytest.approx((prototype + (layers + row.tasks) * mask) / 8 / row.tasks)
  # What another task adds is its mask: 12 kB in place of 9.5 MB.
  assert rows[-1].shared < 20_000


def test_bfloat16_halves_the_prototype_only():
  full, backbone = storage(ADAPTER, BASE)
  half, _ = storage(ADAPTER, BASE, 'bfloat16')
  assert backbone == 222_903_552
  assert half.bits == full.bits - 16 * full.floats


@pytest.mark.parametrize('form, floats, entries', [
    # Query and value projections of 24 layers, 768 x 32 and 32 x 768 each.
    ('lora', 2 * 2 * 768 * 32, 24 * 2 * 2 * 768 * 32),
    # The rows that the network makes, not the network.
    ('prefix', 64 * 2 * 768, 24 * 64 * 2 * 768)])
def test_other_forms(form, floats, entries):
  found, _ = storage(propetl.ProPETLOptions(form=form, owners=('layer',)), BASE)
  assert (found.floats, found.mask_entries) == (floats, entries)


@pytest.mark.parametrize('options, floats, entries, equivalent', [
    ({'reduction': 12}, 99_136, 12 * 98_304, 136_000),
    ({'form': 'lora', 'rank': 32}, 98_304, 12 * 98_304, 135_168),
    ({'form': 'prefix', 'length': 64}, 98_304, 12 * 98_304, 135_168),
    ({'owners': (), 'place': 'layer'}, 1_189_632, 0, 1_189_632)])
def test_storage_on_roberta(options, floats, entries, equivalent):
  found, backbone = storage(propetl.ProPETLOptions(**{'owners': ('layer',)} | options),
                            PUBLISHED['roberta-base'])
  assert (found.floats, found.mask_entries, found.bits / 32) == (floats, entries, equivalent)
  assert backbone == 124_055_040  # without the pooler, which nothing reads
