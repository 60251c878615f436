"""Laws of segmented trees: cutting, joining, and equality with one uniform stack."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from pemt_jax.errors import UserError
from pemt_jax.models.layers import Compute
from pemt_jax.models.segments import cut, for_decoding, join
from pemt_jax.models.stack import is_loop
from pemt_jax.trees import flatten, unflatten
from tests import tiny

KEY = jax.random.key(5)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.sets(st.integers(0, 3)))
def test_joining_what_was_cut_gives_the_tree_back(sizes, absent):
  # A canonical tree: `w` in all layers, `d` in the segments that are not absent.
  starts = np.cumsum([0, *sizes])
  template, held = {'other': np.zeros(2)}, 0
  for i, size in enumerate(sizes):
    name = f'encoder/layers_{starts[i]}_{starts[i + 1]}' if len(sizes) > 1 else 'encoder/layers'
    template[f'{name}/w'] = np.zeros((size, 2))
    if i not in absent:
      template[f'{name}/d/x'] = np.zeros((size, 3))
      held += size
  tree = {'other': np.arange(2.0), 'encoder/layers/w': np.arange(2.0 * starts[-1]).reshape(-1, 2)}
  if held:
    tree['encoder/layers/d/x'] = np.arange(3.0 * held).reshape(-1, 3)
  tree = unflatten(tree)
  parts = cut(tree, unflatten(template))
  assert {path: leaf.shape for path, leaf in flatten(parts).items()} == {
      path: leaf.shape for path, leaf in template.items()}
  tiny.assert_trees_close(join(parts), tree)
  tiny.assert_trees_close(join(tree), tree)


def test_segments_keep_the_order_of_layers_beyond_ten():
  tree = {f'layers_{start}_{start + 1}': {'w': np.full((1,), start)} for start in (10, 2, 0, 9)}
  assert join(tree)['layers']['w'].tolist() == [0, 2, 9, 10]


def test_a_tree_of_another_depth_is_an_error():
  template = {'layers_0_1': {'w': np.zeros((1, 2))}, 'layers_1_3': {'w': np.zeros((2, 2))}}
  with pytest.raises(UserError) as error:
    cut({'layers': {'w': np.zeros((4, 2))}}, template)
  assert str(error.value) == ("'layers/w' holds 4 layers, but the plan places it in 3; load it with"
                              ' the layers that it was trained with.')


@pytest.mark.parametrize('key', [pytest.param(None, marks=pytest.mark.slow), KEY],
                         ids=['deterministic', 'dropout'])
def test_adapters_in_some_layers_equal_adapters_that_are_zero_in_the_others(key):
  everywhere = tiny.model_of(tiny.stage2())
  some = tiny.model_of(tiny.stage2(encoder_layers=(1,), decoder_layers=()))
  assert any('layers_1_2' in path for path in tiny.shapes(some)['params'])
  variables, batch = tiny.variables_of(everywhere), tiny.make_batch()
  flat = flatten(variables['params'])
  here, held = {}, {}
  for path, leaf in flat.items():
    if '/pemt/adapter/' not in path:
      here[path] = held[path] = leaf
    elif path.startswith('encoder'):
      here[path], held[path] = leaf * np.array([0, 1]).reshape(-1, *[1] * (leaf.ndim - 1)), leaf[1:]
    else:
      here[path] = leaf * 0
  shapes = unflatten({path: np.empty(shape) for path, shape in tiny.shapes(some)['params'].items()})
  parts = cut(unflatten(held), shapes)
  assert flatten(parts).keys() == flatten(shapes).keys()
  constants = variables['constants']
  expected, aux = tiny.forward(
      everywhere, {'params': unflatten(here), 'constants': constants}, batch, key)
  logits, some_aux = tiny.forward(some, {'params': parts, 'constants': constants}, batch, key)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
  for stack in ('encoder', 'decoder'):
    np.testing.assert_allclose(some_aux[f'{stack}/mlp/wo/pemt/gate'],
                               aux[f'{stack}/mlp/wo/pemt/gate'], rtol=1e-5)
  assert some_aux['encoder/mlp/wo/pemt/misalignment'].shape == (1,)
  assert 'decoder/mlp/wo/pemt/misalignment' not in some_aux


@pytest.mark.parametrize('compute, layers, loop', [
    (Compute(scan_layers=None), 8, False), (Compute(scan_layers=None), 9, True),
    (Compute(scan_layers=None, platform='tpu'), 2, True), (Compute(scan_layers=None), 1, False),
    (Compute(scan_layers=False), 24, False), (Compute(), 2, True)])
def test_few_layers_are_unrolled_on_a_cpu_unless_said_otherwise(compute, layers, loop):
  assert is_loop(compute, layers) == loop


def test_layers_that_are_cut_for_decoding_give_the_same_numbers():
  method = tiny.stage2(encoder_layers=(1,), decoder_layers=())
  loop, cut_up = (tiny.model_of(method, compute=compute) for compute in (Compute(), tiny.UNROLLED))
  variables, batch = tiny.variables_of(loop), tiny.make_batch()
  assert for_decoding(loop, variables) == (loop, variables)
  separate, own = for_decoding(cut_up, variables)
  assert {path: leaf.shape for path, leaf in flatten(own['params']).items()} == (
      tiny.shapes(separate)['params'])
  logits, expected = (tiny.cached_logits(*pair, batch, batch['targets'][:, None])
                      for pair in ((separate, own), (loop, variables)))
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
