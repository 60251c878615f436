"""Laws of tuning in a random subspace: the projections, their derivatives, the parameters."""

from __future__ import annotations

import functools
import re

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from pemt_jax.deltas.subspace import fastfood, padded_size, walsh_hadamard
from pemt_jax.errors import UserError
from pemt_jax.experts.task_bank import TaskBank
from pemt_jax.methods import zoo
from pemt_jax.methods.base import initialiser
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5 import T5
from tests import tiny

CONFIG = tiny.CONFIG
SOME = 'encoder/.*|shared/.*'  # fewer projections compile faster
Z = np.array([0.7, -1.2, 0.4], np.float32)


def hadamard(size):
  """Sylvester's construction."""
  matrix = np.ones((1, 1))
  while len(matrix) < size:
    matrix = np.block([[matrix, matrix], [matrix, -matrix]])
  return matrix


@given(st.integers(0, 6), st.integers(0, 99))
def test_the_fast_transform_is_the_product_with_the_matrix(power, seed):
  x = np.random.default_rng(seed).normal(size=2**power).astype(np.float32)
  found = jax.jit(walsh_hadamard)(x)
  np.testing.assert_allclose(found, hadamard(2**power) @ x, rtol=1e-4, atol=1e-4)


def test_padded_sizes_are_the_next_powers_of_two():
  assert [padded_size(size) for size in (1, 2, 3, 4, 5, 1024, 1025)] == [1, 2, 4, 4, 8, 1024, 2048]


@pytest.mark.parametrize('stored', [False, True], ids=['own divisor', 'given divisor'])
def test_fastfood_equals_recorded_projections_and_true_derivatives(golden_root, stored):
  folder = golden_root / 'ensembling' / 'fastfood'
  inputs, outputs = (np.load(folder / f'{name}.npz') for name in ('inputs', 'outputs'))
  project = lambda z: fastfood(z, inputs['B'], inputs['Pi'], inputs['G'], 21,
                               inputs['divisor'] if stored else None)
  found, grad = jax.jit(lambda z, cotangent: (project(z), jax.vjp(project, z)[1](cotangent)[0]))(
      inputs['z'], inputs['cotangent'])
  np.testing.assert_allclose(found, outputs['fastfood'], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(grad, outputs['grad_z_true'], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(inputs['R'] @ inputs['z'], outputs['random'], rtol=1e-5, atol=1e-6)


@functools.cache
def method_of(**changes):
  options = tiny.replace(zoo.ZOO['fastfood'].default_options(), dimension=3, **changes)
  return zoo.make('fastfood', options, CONFIG, 0)


@functools.cache
def first(method):
  params, constants = initialiser(T5(CONFIG, method.plan))(jax.random.key(0))
  frozen, tuned = tiny.split(method, {'params': params})
  return tuned, frozen, constants


@functools.cache
def compiled(method):
  return jax.jit(method.expand)


def moved(method, z, **leaves):
  """{path: theta - theta_0} for a vector z."""
  tuned, frozen, constants = first(method)
  flat = tiny.flatten(tuned) | {'deltas/fastfood/z': z}
  flat |= {path: leaf for path, leaf in leaves.items()}
  found = compiled(method)(tiny.unflatten(flat), frozen, constants)
  before = tiny.flatten(frozen)
  return {path: np.asarray(leaf - before[path]) for path, leaf in tiny.flatten(found).items()
          if path in before}


@pytest.mark.parametrize('projection', ['fastfood', 'random'])
def test_all_tensors_move_linearly_each_by_its_own_projection(projection):
  method = method_of(projection=projection, tensors=SOME)
  assert [path for path in tiny.flatten(first(method)[0])] == ['deltas/fastfood/z']
  still, once, other = (moved(method, z) for z in (0 * Z, Z, Z[::-1].copy()))
  both = moved(method, 2 * Z - 3 * Z[::-1])
  seen = set()
  once = {path: move for path, move in once.items() if re.fullmatch(SOME, path)}
  for path, move in once.items():
    assert not still[path].any()
    assert np.abs(move).max() > 1e-4, path
    np.testing.assert_allclose(both[path], 2 * move - 3 * other[path], rtol=1e-3, atol=1e-5)
    layers = move if '/layers/' in path else move[None]
    seen |= {layer.ravel()[:4].tobytes() for layer in layers}
  assert len(seen) == sum(move.shape[0] if '/layers/' in path else 1
                          for path, move in once.items())


def test_moves_follow_from_the_seed_and_touch_only_chosen_tensors():
  chosen = method_of(tensors='encoder/.*/mlp/.*')
  same, again = moved(method_of(tensors=SOME), Z), moved(chosen, Z)
  for path, move in again.items():
    np.testing.assert_allclose(move, same[path] if 'encoder/layers/mlp/' in path
                               else 0 * move, atol=1e-6)
  other = moved(method_of(tensors='encoder/.*/mlp/.*', seed=1), Z)
  assert np.abs(other['encoder/layers/mlp/wi/kernel'] - again['encoder/layers/mlp/wi/kernel']
                ).max() > 1e-4


def test_the_gaussian_part_may_be_trained_and_starts_where_it_was_drawn():
  fixed, trained = method_of(tensors='.*/mlp/wi/.*'), method_of(tensors='.*/mlp/wi/.*',
                                                                train_gaussian=True)
  path = 'deltas/fastfood/gaussian/encoder.layers.mlp.wi.kernel'
  gaussian = tiny.flatten(first(trained)[0])[path]
  assert gaussian.shape == (2, 128) and not gaussian.any()
  kernel = 'encoder/layers/mlp/wi/kernel'
  before, start = moved(fixed, Z)[kernel], moved(trained, Z)[kernel]
  np.testing.assert_allclose(start, before, atol=1e-6)
  after = moved(trained, Z, **{path: np.eye(2, 128, dtype=np.float32)})[kernel]
  assert (np.abs(after - before).max(axis=(1, 2)) > 1e-4).all()


def test_segments_and_joined_deltas_move_the_same_tensors():
  method = method_of(tensors=SOME)
  extra = Rule('extra', '*/mlp/wo', tiny.Affine(), (('encoder', 1),))
  model = T5(CONFIG, Plan((*method.plan.rules, extra)))
  params, constants = initialiser(model)(jax.random.key(0))
  frozen, tuned = tiny.split(method, {'params': params})
  tuned = {'deltas': {'fastfood': {'z': Z}}}
  found = tiny.flatten(compiled(method)(tuned, frozen, constants))
  whole, before = moved(method, Z), tiny.flatten(frozen)
  for layer in range(2):
    path = f'layers_{layer}_{layer + 1}/mlp/wi/kernel'
    np.testing.assert_allclose(found[f'encoder/{path}'][0] - before[f'encoder/{path}'][0],
                               whole['encoder/layers/mlp/wi/kernel'][layer], atol=1e-6)
  options = {'fastfood': zoo.ZOO['fastfood'].default_options(),
             'lora': zoo.ZOO['lora'].default_options()}
  assert zoo.make('fastfood+lora', options, CONFIG, 0).expand is not method.expand


def test_mistakes_are_told():
  with pytest.raises(UserError, match='matches no parameter'):
    method_of(tensors='nothing')
  with pytest.raises(UserError, match="'random' has no Gaussian"):
    method_of(projection='random', train_gaussian=True)
  rules = tuple(Rule(rule.name, rule.site, TaskBank(rule.delta, 2))
                for rule in method_of().plan.rules)
  with pytest.raises(UserError, match='cannot share a batch'):
    tiny.shapes(T5(CONFIG, Plan(rules)))
