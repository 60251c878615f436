"""Laws of sites and plans."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pemt_jax.deltas.lora import LoRA
from pemt_jax.errors import UserError
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5 import T5
from tests import tiny

SMALL = tiny.replace(tiny.CONFIG, encoder_layers=1, decoder_layers=1)


def logits_of(*rules):
  model = T5(SMALL, Plan(rules))
  return tiny.forward(model, tiny.variables_of(model), tiny.make_batch(2, 4, 3))


def test_a_later_rule_is_the_outer_one():
  double, add = tiny.Affine(factor=2.0), tiny.Affine(after=3.0)
  site = 'decoder/final_norm'
  first, _ = logits_of(Rule('a', site, double), Rule('b', site, add))
  same, _ = logits_of(Rule('a', site, tiny.Affine(2.0, 3.0)))
  other, _ = logits_of(Rule('b', site, add), Rule('a', site, double))
  np.testing.assert_allclose(first, same, rtol=1e-6)
  assert np.abs(first - other).max() > 0.1


def test_every_site_of_the_list_is_called_and_no_other():
  for config in (SMALL, tiny.replace(SMALL, gated=True, tied_head=False)):
    model = T5(config, Plan((Rule('probe', '*', tiny.Affine()),)))
    _, aux = tiny.forward(model, tiny.variables_of(model), tiny.make_batch(2, 4, 3))
    seen = [f'{site}/probe/seen' for site in model.sites() if site != 'shared']  # has no input
    assert sorted(aux) == sorted(seen)


def test_a_delta_around_a_layer_leaves_its_parameters_where_they_are():
  around = T5(SMALL, Plan((Rule('moved', '*/layer', tiny.Affine(after=0.5)),)))
  assert tiny.shapes(around) == tiny.shapes(T5(SMALL))
  variables, batch = tiny.variables_of(around), tiny.make_batch(2, 4, 3)
  plain = tiny.forward(T5(SMALL), variables, batch)[0]
  assert np.abs(tiny.forward(around, variables, batch)[0] - plain).max() > 1e-3
  same = T5(SMALL, Plan((Rule('same', '*/layer', tiny.Affine()),)))
  np.testing.assert_array_equal(tiny.forward(same, variables, batch)[0], plain)


def test_a_rule_with_layers_acts_in_these_layers_only():
  rule = Rule('probe', '*_norm', tiny.Affine(), (('decoder', 1),))
  model = T5(tiny.CONFIG, Plan((rule,)))
  _, aux = tiny.forward(model, tiny.variables_of(model), tiny.make_batch(2, 4, 3))
  assert sorted(aux) == [f'decoder/{name}_norm/probe/seen'
                         for name in ('cross_attention', 'mlp', 'self_attention')]
  assert all(leaf.shape[0] == 1 for leaf in aux.values())


PLACES = st.sets(st.tuples(st.sampled_from(['encoder', 'decoder']), st.integers(0, 5)))


@given(st.lists(PLACES, max_size=3), st.integers(1, 6))
def test_segments_are_the_longest_ranges_with_equal_rules(places, depth):
  rules = [Rule(f'r{i}', '*', LoRA(), tuple(sorted(found))) for i, found in enumerate(places)]
  plan = Plan((Rule('everywhere', '*', LoRA()), *rules))
  for stack in ('encoder', 'decoder'):
    segments = plan.segments(stack, depth)
    assert [layer for start, stop in segments for layer in range(start, stop)] == list(range(depth))
    here = [tuple(rule.at(stack, layer) for rule in plan.rules) for layer in range(depth)]
    for start, stop in segments:
      assert len(set(here[start:stop])) == 1
      assert start == 0 or here[start - 1] != here[start]


SITES = ', '.join(T5(tiny.CONFIG).sites())


@pytest.mark.parametrize('rules, sentence', [
    ([Rule('x', 'encoder/mlp/wi_0', LoRA())],
     f"plan rule 'x' matches no site: 'encoder/mlp/wi_0' is not among {SITES}; change the site"
     ' pattern of the rule.'),
    ([Rule('x', 'decoder/embed', LoRA())],
     f"plan rule 'x' matches no site: 'decoder/embed' is not among {SITES}; change the site"
     ' pattern of the rule.'),
    ([Rule('x', '*/mlp/wo', LoRA(), (('encoder', 2),))],
     "plan rule 'x' names layer 2 of 'encoder', which has 2 layers; change the layers of the"
     ' rule.'),
    ([Rule('x', '*/mlp/wo', LoRA(), (('coder', 0),))],
     "plan rule 'x' names layer 0 of 'coder', which has 0 layers; change the layers of the rule."),
    ([Rule('x', 'encoder/mlp/wo', LoRA(), (('decoder', 1),))],
     "plan rule 'x' names layer 1 of 'decoder', where no site matches 'encoder/mlp/wo'; change the"
     ' layers or the site pattern of the rule.'),
    ([Rule('x', '*/mlp/wo', LoRA(), ())],
     "plan rule 'x' names no layer; remove the rule or give layers."),
    ([Rule('x', '*/mlp/wo', LoRA()), Rule('x', 'decoder/mlp/*', LoRA(), (('decoder', 1),))],
     "two plan rules at site 'decoder/mlp/wo' share a name: x, x; rename one of them."),
])
def test_a_rule_without_a_place_is_an_error(rules, sentence):
  model = T5(tiny.CONFIG, Plan(tuple(rules)))
  with pytest.raises(UserError) as error:
    tiny.shapes(model)
  assert str(error.value) == sentence
