"""Laws of the rule table, and the layouts of PEMT's second stage on simulated devices."""

from __future__ import annotations

import re
import warnings

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh, PartitionSpec as P

from pemt_jax.errors import UserError
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.sharding import rules
from pemt_jax.trees import flatten
from tests import tiny
from tests.methods.test_zoo import NAMES, model_of

MESH = AbstractMesh((2, 2, 2, 2), ('data', 'fsdp', 'tensor', 'expert'))

# Layout of every kind of array of stage 2 where all mesh axes are larger than 1.
LAYOUT = {
    'shared/embedding': P('tensor', None),
    'encoder/relative_bias/embedding': P(None, 'tensor'),
    'encoder/layers/self_attention_norm/scale': P(None, None),
    'encoder/layers/self_attention/q/kernel': P(None, 'fsdp', 'tensor'),
    'encoder/layers/self_attention/o/kernel': P(None, 'tensor', 'fsdp'),
    'encoder/layers/mlp/wi/kernel': P(None, 'fsdp', 'tensor'),
    'encoder/layers/mlp/wo/kernel': P(None, 'tensor', 'fsdp'),
    'encoder/layers/mlp/wo/pemt/bank/down': P(None, 'expert', 'tensor', None),
    'encoder/layers/mlp/wo/pemt/bank/up': P(None, 'expert', None, 'fsdp'),
    'encoder/layers/mlp/wo/pemt/gate/kernel': P(None, 'tensor', 'expert'),
    'decoder/layers/mlp/wo/pemt/gate/kernel': P(None, 'fsdp', 'expert'),
    'encoder/layers/mlp/wo/pemt/adapter/down/kernel': P(None, 'fsdp', None),
    'encoder/layers/mlp/wo/pemt/adapter/down/bias': P(None, None),
    'encoder/layers/mlp/wo/pemt/adapter/up/kernel': P(None, None, 'fsdp'),
    'encoder/embed/prompt/table': P(None, 'fsdp'),
    'encoder/embed/prompt/sources': P('expert', None, 'fsdp'),
}


def stage2_specs(mesh):
  boxed = boxed_shapes(tiny.model_of(tiny.stage2()))['params']
  shardings = rules.param_shardings(boxed, mesh)
  return {'/'.join(str(key.key) for key in path): leaf.spec
          for path, leaf in jax.tree_util.tree_leaves_with_path(shardings)}


def test_layout_of_stage_2():
  specs = stage2_specs(MESH)
  assert specs.keys() == tiny.shapes(tiny.model_of(tiny.stage2()))['params'].keys()
  assert {path: specs[path] for path in LAYOUT} == LAYOUT


@pytest.mark.parametrize('name', NAMES)
def test_every_array_of_the_zoo_has_axes_that_the_table_knows(name):
  boxed = boxed_shapes(model_of(name))['params']
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # tiny shapes are not divided by the mesh
    rules.param_shardings(boxed, MESH)
  for path, leaf in flatten(boxed).items():
    assert (leaf.names[0] == 'layer') == bool(re.search('/layers(_.*)?/', path)), path


def test_a_dimension_that_the_mesh_does_not_divide_stays_whole_with_one_warning():
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    spec = rules.partition_spec('bank/down', ('expert', 'mlp', 'rank'), (3, 8, 5), MESH)
    assert spec == P(None, 'tensor', None)
    assert rules.partition_spec('a', ('mlp', 'embed'), (8, 8), MESH) == P('tensor', 'fsdp')
  assert [str(w.message) for w in caught] == [
      "'bank/down' is not sharded along expert (3, mesh 2): the mesh does not divide it"]


def test_a_mesh_axis_serves_one_dimension():
  table = (('a', 'fsdp'), ('b', ('data', 'fsdp')))
  assert rules.partition_spec('x', ('a', 'b'), (4, 4), MESH, table) == P('fsdp', 'data')
  assert rules.partition_spec('x', ('b', 'a'), (4, 4), MESH, table) == P(('data', 'fsdp'), None)


@pytest.mark.parametrize('leaf, sentence', [
    (np.zeros((2, 3)),
     "array 'layers/w' has no logical axes; make it with nn.with_logical_partitioning."),
    (nn.LogicallyPartitioned(np.zeros((2, 3)), ('layer', None)),
     "array 'layers/w' of shape (2, 3) has the logical axes ('layer', None); name every dimension"
     ' where the parameter is made.'),
    (nn.LogicallyPartitioned(np.zeros((2, 3)), ('layer',)),
     "array 'layers/w' of shape (2, 3) has the logical axes ('layer',); name every dimension where"
     ' the parameter is made.'),
    (nn.LogicallyPartitioned(np.zeros((2, 3)), ('layer', 'width')),
     "array 'layers/w' has the logical axis 'width', which is not among "
     + ', '.join(name for name, _ in rules.RULES) + '; add it to the sharding rules.'),
])
def test_an_array_without_known_axes_is_an_error(leaf, sentence):
  with pytest.raises(UserError) as error:
    rules.param_shardings({'layers': {'w': leaf}}, MESH)
  assert str(error.value) == sentence


def test_moments_lie_where_their_parameters_lie():
  sharding = rules.NamedSharding(MESH, P('fsdp', None))
  default = rules.replicated(MESH)
  shapes = {'first': {'a': {'w': np.zeros((2, 2))}}, 'count': {'a': {'w': np.zeros(())}},
            'other': np.zeros((2, 2))}
  found = rules.matching(shapes, {'a': {'w': sharding}}, default)
  assert found == {'first': {'a': {'w': sharding}}, 'count': {'a': {'w': default}},
                   'other': default}
