"""Backbones with factorised matrices: starts, forms, what trains, masks of gradients, ranks."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from pemt_jax.deltas.fold import fold
from pemt_jax.errors import UserError
from pemt_jax.experts import mpo as algebra
from pemt_jax.experts.mpo_linear import MPO, chains, expanded
from pemt_jax.experts.mpo_shapes import Factors, factors_of
from pemt_jax.methods import mpo
from pemt_jax.methods.mpo import MPOOptions
from pemt_jax.models.roberta import Roberta
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.sites import Site, SiteContext
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import PUBLISHED
from pemt_jax.sharding import rules as sharding
from pemt_jax.training.optimisers import AdamWOptions, adamw
from pemt_jax.training.rules import FROZEN, assign_groups
from pemt_jax.trees import flatten, merge, unflatten
from tests import tiny

EVERY = ('word_embed', 'mlp', 'attention')
PLAIN = T5(tiny.CONFIG)
BATCH = tiny.make_batch()
KEY = jax.random.key(0)


def shapes_of(options, config=tiny.CONFIG):
  """(method, {path: shape}) of a T5."""
  method = mpo.mpo(options, config, 0)
  return method, tiny.shapes(T5(config, method.plan))['params']


def start(method, backbone, model=None):
  """First parameters of a method on a backbone, as a stage makes them."""
  first = flatten(tiny.variables_of(model or T5(tiny.CONFIG, method.plan), seed=1)['params'])
  known = {path: leaf for path, leaf in flatten(backbone).items() if path in first}
  return method.first_values(backbone, unflatten(first | known), KEY)


@pytest.fixture(scope='module')
def backbone():
  return tiny.variables_of(PLAIN)['params']


@pytest.fixture(scope='module')
def untied():
  return mpo.mpo(MPOOptions(components=EVERY, tied=False, cores=3), tiny.CONFIG, 0)


@pytest.fixture(scope='module')
def dense(backbone):
  return np.asarray(tiny.forward(PLAIN, {'params': backbone}, BATCH)[0])


def test_full_ranks_start_as_the_backbone_and_go_back_to_it(backbone, dense, untied):
  params = start(untied, backbone)
  paths = flatten(params)
  assert not [path for path in paths if path.endswith('kernel')] and 'lm_head/mpo/core_0' in paths
  assert 'shared/embedding' not in paths
  rebuilt = untied.variables(params, {}, {})['params']
  logits = tiny.forward(T5(tiny.CONFIG, untied.plan), {'params': rebuilt}, BATCH)[0]
  np.testing.assert_allclose(logits, dense, rtol=1e-4, atol=1e-4)
  back = flatten(fold(params, untied.plan))
  np.testing.assert_allclose(back.pop('lm_head/kernel'),
                             backbone['shared']['embedding'].T, atol=1e-5)
  tiny.assert_trees_close(unflatten(back), backbone, rtol=1e-4, atol=1e-5)


def test_forms_compute_the_same(backbone):
  factors = factors_of(8, 16, 3)
  site = Site('encoder/mlp/wi', 7, 15, 'embed', 'mlp', jnp.float32)
  context = SiteContext(jnp.ones((1, 1)), jnp.ones((1,)))
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 5, 7)).astype(np.float32)
  matrix, bias = rng.normal(size=(7, 15)).astype(np.float32), np.ones(15, np.float32)
  cores = algebra.decompose(matrix, factors, 4).cores
  values = {f'core_{k}': jnp.asarray(core) for k, core in enumerate(cores)} | {'bias': bias}
  found = {}
  for form in ('layer', 'contract', 'auto'):
    delta = MPO((7, 15), factors, factors.ranks(4), True, form)
    loss = lambda values, x, delta=delta: jnp.sum(jnp.sin(delta.act(values, None, x, context,
                                                                    site)[0]))
    found[form] = jax.value_and_grad(loss, (0, 1))(values, x)
    rows = {name: jnp.stack([value, 2 * value]) if name != 'bias' else value
            for name, value in values.items()}
    banked = delta.act(rows, None, x, context, site)[0]
    alone = delta.act({name: value[1] if name != 'bias' else value
                       for name, value in rows.items()}, None, x[1:], context, site)[0]
    np.testing.assert_allclose(banked[1:], alone, rtol=1e-4, atol=1e-4)
  wanted = np.sum(np.sin(x @ np.asarray(algebra.rebuild(cores, (7, 15))) + bias))
  for form, (value, grads) in found.items():
    np.testing.assert_allclose(value, wanted, rtol=1e-5, err_msg=form)
    for one, two in zip(jax.tree.leaves(grads), jax.tree.leaves(found['layer'][1]), strict=True):
      np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4, err_msg=form)
  places = {'mlp': {'wi': {'mpo': values}}}
  assert set(chains(flatten(expanded(places, 'layer')))) == {'mlp/wi/mpo'}
  kernel = flatten(expanded(places, 'step'))['mlp/wi/mpo/kernel']
  np.testing.assert_allclose(kernel, algebra.rebuild(cores), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('form', ['layer', 'contract'])
def test_forms_compute_the_same_in_a_model(form, backbone, dense):
  method = mpo.mpo(MPOOptions(components=EVERY, cores=3, form=form), tiny.CONFIG, 0)
  params = start(method, backbone)
  logits = tiny.forward(T5(tiny.CONFIG, method.plan), method.variables(params, {}, {}), BATCH)[0]
  np.testing.assert_allclose(logits, dense, rtol=1e-4, atol=1e-4)


def test_biases_of_a_bert_move_with_their_kernels():
  config = RobertaConfig(vocab_size=30, embed=8, heads=2, mlp=12, encoder_layers=2, positions=16,
                         kind='bert', pad_id=0)
  plain = Roberta(config)
  backbone = tiny.variables_of(plain)['params']
  method = mpo.mpo(MPOOptions(components=(*EVERY, 'pooler'), cores=3), config, 0)
  params = start(method, backbone, Roberta(config, method.plan))
  np.testing.assert_array_equal(flatten(params)['encoder/layers/mlp/wi/mpo/bias'],
                                flatten(backbone)['encoder/layers/mlp/wi/bias'])
  tiny.assert_trees_close(fold(params, method.plan), backbone, rtol=1e-4, atol=1e-5)


def groups_of(**options):
  method, shapes = shapes_of(MPOOptions(**options))
  return assign_groups(shapes, method.tuned)


def frozen_cores(groups):
  return {re.sub('/layers', '', path) for path, group in groups.items()
          if group == FROZEN and '/core_' in path}


def test_what_trains_is_what_the_options_say():
  groups = groups_of(components=('mlp', 'attention'), freeze=(2,), freeze_in=('mlp',))
  assert frozen_cores(groups) == {f'{stack}/mlp/{name}/mpo/core_2'
                                  for stack in ('encoder', 'decoder') for name in ('wi', 'wo')}
  assert {groups[path] for path in groups if '/core_' in path} == {'mpo', FROZEN}
  assert groups['encoder/layers/mlp_norm/scale'] == groups['shared/embedding'] == 'backbone'
  groups = groups_of(components=EVERY, update=('word_embed',), train='mpo', freeze=(1, 3))
  assert {path for path, group in groups.items() if group == 'mpo'} == {
      f'shared/mpo/core_{k}' for k in (0, 2, 4)}
  assert 'backbone' not in groups.values()
  with pytest.raises(UserError, match="'pooler', which only an encoder"):
    mpo.mpo(MPOOptions(components=('pooler',)), tiny.CONFIG, 0)
  with pytest.raises(UserError, match='method.freeze is 5'):
    MPOOptions(freeze=(5,))
  with pytest.raises(UserError, match='which is smaller than 8 x 16'):
    mpo.mpo(MPOOptions(cores=2, factors=(('wi', (2, 2), (4, 4)),)), tiny.CONFIG, 0)


def test_a_t5_base_has_the_published_number_of_parameters():
  config = PUBLISHED['t5-base']
  method, shapes = shapes_of(MPOOptions(), config)
  dense = sum(int(np.prod(shape)) for shape in tiny.shapes(T5(config))['params'].values())
  assert dense == 222_903_552
  found = sum(int(np.prod(shape)) for shape in shapes.values())
  assert found == dense + 24 * 2 * 184_720
  assert {tuple(rule.delta.factors.rows) for rule in method.plan.rules} == {
      (3, 4, 4, 4, 4), (4, 4, 8, 6, 4)}


def test_central_cores_are_cut_over_a_mesh():
  delta = MPO((768, 3072), Factors((3, 4, 4, 4, 4), (4, 4, 8, 6, 4)), (1, 12, 192, 384, 16, 1))
  weights = delta.weights(Site('encoder/mlp/wi', 768, 3072, 'embed', 'mlp', jnp.float32))
  mesh = AbstractMesh((2, 2, 2), ('data', 'fsdp', 'tensor'))
  spec = lambda k: tuple(sharding.partition_spec(
      'core', ('layer', *weights[f'core_{k}'].axes), (12, *weights[f'core_{k}'].shape), mesh))
  assert spec(2) == (None, 'fsdp', None, None, 'tensor')
  assert set(spec(1)) == {None}


GRADS = {'encoder': {'layers': {'mlp': {'wi': {'mpo': {
    'core_1': jnp.ones((3, 1, 2, 2, 2)), 'core_2': jnp.ones((3, 2, 2, 2, 2))}}}}},
         'shared': {'mpo': {'core_2': jnp.ones((2, 2, 2, 2))}}}


@pytest.mark.parametrize('per', ['tensor', 'model'])
def test_a_mask_discards_central_gradients_as_often_as_it_says(per):
  transform = mpo.gradient_mask('.*/core_2', 0.3, per)
  keys = jax.random.split(KEY, 2000)
  found = flatten(jax.jit(jax.vmap(lambda key: transform(GRADS, key, 0)))(keys))
  np.testing.assert_array_equal(found['encoder/layers/mlp/wi/mpo/core_1'], 1.0)
  layers = np.asarray(found['encoder/layers/mlp/wi/mpo/core_2'][..., 0, 0, 0, 0])
  table = np.asarray(found['shared/mpo/core_2'][..., 0, 0, 0, 0])
  kept = np.concatenate([layers, table[:, None]], axis=1)
  np.testing.assert_allclose(kept.mean(axis=0), 0.7, atol=0.04)
  together = np.mean(np.all(kept == kept[:, :1], axis=1))
  assert together == 1.0 if per == 'model' else together < 0.5
  for path, leaf in found.items():
    assert np.all(np.isin(leaf, (0.0, 1.0))), path


def test_a_discarded_update_leaves_value_and_moments_and_certain_discarding_freezes():
  rules = (('.*', 'base'),)
  optimiser = adamw(AdamWOptions(weight_decay=0.1, counters='nonzero_gradient',
                                 row_axes=mpo.ROW_AXES), rules)
  params = jax.tree.map(lambda leaf: 2.0 * leaf, GRADS)
  moments = optimiser.init(params)
  step = lambda grads, moments, params: optimiser.update(grads, moments, params, learning_rate=0.1)
  _, moments = step(GRADS, moments, params)
  discard = lambda path, shape: np.arange(3) == 1 if shape else True
  masked = mpo.masked_gradients(GRADS, '.*/core_2', discard)
  updates, after = step(masked, moments, params)
  path = 'encoder/layers/mlp/wi/mpo/core_2'
  moved = np.abs(flatten(updates)[path]).reshape(3, -1).max(axis=1) > 0
  np.testing.assert_array_equal(moved, [True, False, True])
  np.testing.assert_array_equal(flatten(after.count)[path], [2, 1, 2])
  for tree, old in ((after.first, moments.first), (after.second, moments.second)):
    np.testing.assert_array_equal(flatten(tree)[path][1], flatten(old)[path][1])
  certain = mpo.gradient_mask('.*/core_2', 1.0)(GRADS, KEY, 0)
  updates, _ = step(certain, optimiser.init(params), params)
  assert not np.any(flatten(updates)[path]) and not np.any(flatten(updates)['shared/mpo/core_2'])


def test_a_run_with_smaller_ranks_starts_from_the_cut_cores_of_an_expert(backbone):
  options = MPOOptions(components=('mlp',), cores=3)
  large = mpo.mpo(options, tiny.CONFIG, 0)
  small, shapes = shapes_of(dataclasses.replace(options, mlp_rank=3))
  tuned = start(large, backbone)
  wanted = unflatten({path: jax.ShapeDtypeStruct(shape, np.float32)
                      for path, shape in shapes.items()})
  found = small.adapt_start(tuned, wanted)
  assert {path: leaf.shape for path, leaf in flatten(found).items()} == shapes
  tiny.assert_trees_close(found, merge(found, start(small, backbone)), rtol=1e-3, atol=1e-4)
  assert small.adapt_start(found, wanted) == found
  grown = large.adapt_start(found, jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32), tuned))
  assert grown == found
