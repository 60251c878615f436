"""Laws of the trainable rules."""

from __future__ import annotations

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.training import rules
from pemt_jax.trees import flatten, merge

PARAMS = {
    'shared': {'embedding': np.ones((3, 2))},
    'encoder': {'wo': {'kernel': np.zeros((2, 2)), 'lora': {'down': np.ones((2, 1))}}},
}
RULES = (('.*/lora/.*', 'base'), ('shared/.*', 'slow'), ('.*', 'frozen'))


def test_split_then_merge_gives_the_same_tree():
  frozen, tuned = rules.split_params(PARAMS, RULES)
  assert list(flatten(frozen)) == ['encoder/wo/kernel']
  assert sorted(flatten(tuned)) == ['encoder/wo/lora/down', 'shared/embedding']
  assert not set(flatten(frozen)) & set(flatten(tuned))
  merged = flatten(merge(frozen, tuned))
  assert merged.keys() == flatten(PARAMS).keys()
  assert all(merged[path] is leaf for path, leaf in flatten(PARAMS).items())


def test_first_matching_rule_decides():
  groups = rules.assign_groups(PARAMS, RULES)
  assert groups == {'shared/embedding': 'slow', 'encoder/wo/kernel': 'frozen',
                    'encoder/wo/lora/down': 'base'}


@pytest.mark.parametrize('bad, sentence', [
    ((('.*/lora/.*', 'base'),),
     "Parameter 'shared/embedding' matches none of the 1 trainable rules; add a rule with its "
     "learning-rate group or 'frozen'."),
    ((('.*/prompt', 'base'), ('.*', 'frozen')),
     "Trainable rule 0 ('.*/prompt' -> 'base') matches no parameter; correct the pattern or remove "
     'the rule.'),
    ((('.*', 'frozen'), ('.*/lora/.*', 'base')),
     "Trainable rule 1 ('.*/lora/.*' -> 'base') decides no parameter because earlier rules match "
     'all of its paths; correct the pattern or remove the rule.'),
])
def test_unmatched_leaves_and_unused_rules_are_errors(bad, sentence):
  with pytest.raises(UserError) as error:
    rules.split_params(PARAMS, bad)
  assert str(error.value) == sentence


def test_rules_in_front_take_the_place_of_those_they_leave_nothing():
  method, own = (('shared/.*', 'slow'), ('.*/lora/.*', 'base'), ('.*', 'frozen')), (
      ('.*/lora/.*', 'frozen'),)
  assert rules.in_front(own, method, PARAMS) == (*own, method[0], method[2])
  some = (('encoder/wo/kernel', 'own'),)
  assert rules.in_front(some, method, PARAMS) == (*some, *method[:2])
  assert rules.in_front((), method, PARAMS) == method
  wrong = (('decoder/.*', 'adapter'), *method)
  with pytest.raises(UserError, match="'decoder/.*' -> 'adapter'"):
    rules.assign_groups(PARAMS, rules.in_front(own, wrong, PARAMS))
