"""Variety of sampled texts."""

from __future__ import annotations

import pytest

from pemt_jax.evaluation.samples import self_bleu


def test_equal_texts_repeat_each_other_and_others_do_not():
  same = ['the cat sat on the mat today'] * 3
  assert self_bleu(same) == {'self_bleu': pytest.approx(100)}
  other = ['a b c d e', 'f g h i j', 'k l m n o']
  assert self_bleu(other)['self_bleu'] == pytest.approx(0)
  mixed = self_bleu([same[0], same[0], other[0]])['self_bleu']
  assert mixed == pytest.approx(200 / 3)
  assert self_bleu(['alone']) == {'self_bleu': 0.0}
