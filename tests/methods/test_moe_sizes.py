"""Sizes of backbones with experts are the published ones, and those of the models."""

from __future__ import annotations

import math

import pytest

from pemt_jax.methods import moe
from pemt_jax.methods.moe_sizes import as_markdown, sizes
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import PUBLISHED
from tests import tiny

BASE = {1: (222_922_008, 231_788_568), 4: (562_716_000, 258_443_616),
        8: (1_015_774_656, 293_983_680), 12: (1_468_833_312, 329_523_744),
        16: (1_921_891_968, 365_063_808), 128: (14_607_534_336, 1_360_185_600)}
RATIOS = {1: 1.078, 4: 0.328, 8: 0.203, 12: 0.162, 16: 0.141, 128: 0.086}
LARGE = {8: (3_556_633_984, 990_113_152), 16: (6_778_253_056, 1_242_558_208)}


def test_t5_has_the_sizes_of_the_specification():
  for row in sizes(PUBLISHED['t5-base'], BASE):
    assert (row.dense, row.switch, row.mpoe) == (222_903_552, *BASE[row.experts])
    assert row.expert_ratio == pytest.approx(RATIOS[row.experts], abs=5e-4)
  for row in sizes(PUBLISHED['t5-large'], LARGE):
    assert (row.dense, row.switch, row.mpoe) == (737_668_096, *LARGE[row.experts])
  assert '| 16 | 1,921,891,968 | 365,063,808 | 7.69 | 1.46 | 5.26 | 0.141 |' in as_markdown(
      PUBLISHED['t5-base'], (16,))


def test_counts_are_those_of_the_models():
  count = lambda options: sum(
      math.prod(shape) for shape in tiny.shapes(
          T5(tiny.CONFIG, moe.switch(options, tiny.CONFIG, 0).plan))['params'].values())
  row = next(sizes(tiny.CONFIG, (3,)))
  assert count(moe.SwitchOptions(count=3)) == row.switch
  assert count(moe.SwitchOptions(count=3, experts='mpo')) == row.mpoe
  biased = next(sizes(GPT2Config(vocab_size=32, embed=8, heads=2, mlp=16, decoder_layers=2,
                                 positions=16), (1,)))
  assert biased.switch == biased.dense + 2 * 9
