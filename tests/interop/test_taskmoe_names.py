"""Names of router tensors: every form there and back, and the older form of the files."""

from __future__ import annotations

import jax
import numpy as np

from pemt_jax.experts.routers import KINDS, RouterSpec, router_weights
from pemt_jax.interop import names
from pemt_jax.interop.taskmoe_names import router_table
from pemt_jax.trees import flatten, unflatten


def router_tree(spec):
  random = np.random.default_rng(0)
  return unflatten({f'router/{name}': random.normal(size=weight.shape).astype(np.float32)
                    for name, weight in router_weights(spec).items()})


def test_every_router_comes_back():
  for kind in KINDS:
    spec = RouterSpec(kind, 12, 8, 5, 3)
    tree, table = router_tree(spec), router_table(spec)
    state = names.dump(tree, table)
    assert all(name.startswith('router.model.') for name in state)
    assert flatten(names.load(state, table)).keys() == flatten(tree).keys()
    jax.tree.map(np.testing.assert_array_equal, names.load(state, table), tree)


def test_networks_inside_of_the_stacks_are_those_of_each_layer():
  spec = RouterSpec('linear_layer_specific', 12, 8, 5, 3)
  tree = router_tree(spec)
  new = names.dump(tree, router_table(spec))
  old = names.dump(tree, router_table(spec, start='model.', inside_stacks=3))
  pairs = {'encoder.routers.2.linear1.weight': 'router_units.2.linear1.weight',
           'decoder.routers.0.linear2.bias': 'router_units.3.linear2.bias',
           'decoder.routers.1.linear2.weight': 'router_units.4.linear2.weight'}
  for there, here in pairs.items():
    np.testing.assert_array_equal(old[f'model.{there}'], new[f'router.model.{here}'])
  assert old.keys() == {name for layer in range(5) for part in ('linear1', 'linear2')
                        for end in ('weight', 'bias')
                        for name in [f'model.{"encoder" if layer < 3 else "decoder"}.routers.'
                                     f'{layer if layer < 3 else layer - 3}.{part}.{end}']}
