"""Trees and paths are two forms of one thing."""

from __future__ import annotations

from pemt_jax.trees import flatten, merge, unflatten

TREE = {'encoder': {'layers': {'q': 1, 'k': 2}, 'norm': 3}, 'shared': 4}
FLAT = {'encoder/layers/q': 1, 'encoder/layers/k': 2, 'encoder/norm': 3, 'shared': 4}


def test_flatten_and_unflatten_are_inverse():
  assert list(flatten(TREE).items()) == list(FLAT.items())
  assert unflatten(FLAT) == TREE
  assert flatten({'a': {}}) == {} == unflatten({})


def test_merge_keeps_both_sides_and_the_second_wins():
  other = {'encoder': {'layers': {'k': 5, 'v': 6}}, 'decoder': {'norm': 7}}
  merged = merge(TREE, other)
  assert flatten(merged) == FLAT | flatten(other)
  assert TREE == unflatten(FLAT)   # neither input is changed
  merged['encoder']['layers']['q'] = 9
  assert TREE['encoder']['layers']['q'] == 1
