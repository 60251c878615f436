"""Laws of banks: a one-hot gate selects, similarity is the cosine of materialised outputs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, strategies as st

from pemt_jax.deltas.adapter import Bottleneck, ParallelAdapter
from pemt_jax.deltas.lora import LoRA
from pemt_jax.experts.bank import AdapterExperts, LoRAExperts
from pemt_jax.models.sites import Site, SiteContext
from tests import tiny

COUNT, WIDTH, MLP, EMBED = 3, 4, 10, 6
SITE = Site('encoder/mlp/wo', MLP, EMBED, 'mlp', 'embed', jnp.float32)
FORMS = {'lora': LoRAExperts(WIDTH, 0.7), 'adapter': AdapterExperts(WIDTH)}
SINGLE = {'lora': LoRA(WIDTH, 0.7), 'adapter': ParallelAdapter(Bottleneck(WIDTH))}


def inputs_of(seed):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(2, 5, MLP)).astype(np.float32),
          rng.normal(size=(2, 5, EMBED)).astype(np.float32))


class Whole(nn.Module):
  """A bank whose result is made of arrays: mixture and similarity."""

  form: str

  @nn.compact
  def __call__(self, x, residual, gate, u):
    bank = FORMS[self.form].module(SITE, COUNT, 'bank')(x, residual)
    return bank.mix(gate), bank.similarity(u)


@functools.partial(jax.jit, static_argnums=0)
def run(form, params, *arguments):
  return Whole(form).apply({'params': {'bank': params}}, *arguments)


@functools.cache
def shapes(form):
  x, residual = inputs_of(0)
  boxed = jax.eval_shape(Whole(form).init, jax.random.key(0), x, residual,
                         np.zeros((2, COUNT), np.float32), residual)
  return {name: leaf.shape for name, leaf in nn.meta.unbox(boxed)['params']['bank'].items()}


def params_of(form, seed=0):
  return {name: tiny.random_leaf(name, shape, seed) for name, shape in shapes(form).items()}


@functools.partial(jax.jit, static_argnums=0)
def alone(form, params, x, residual):
  """Output of one expert as the delta of stage 1, without the backbone's projection."""
  module = SINGLE[form].module(SITE, 'delta')
  context = SiteContext(jnp.ones(x.shape[:2]), jnp.ones(len(x)), sublayer_input=residual)
  return module.apply({'params': params}, lambda value: jnp.zeros_like(residual), x, context)[0]


def outputs_of(form, params, x, residual):
  """Materialised outputs [expert, batch, length, embed]."""
  outputs = []
  for i in range(COUNT):
    one = {name: leaf[i] for name, leaf in params.items()}
    if form == 'adapter':
      one = {part: {kind: one[f'{part}_{kind}'] for kind in ('kernel', 'bias')}
             for part in ('down', 'up')}
    outputs.append(alone(form, one, x, residual))
  return jnp.stack(outputs)


@pytest.mark.parametrize('form', FORMS)
@given(st.lists(st.integers(0, COUNT - 1), min_size=2, max_size=2), st.integers(0, 99))
def test_a_one_hot_gate_gives_that_expert_alone_for_each_row(form, chosen, seed):
  params, (x, residual) = params_of(form, seed), inputs_of(seed)
  mixed, _ = run(form, params, x, residual, np.eye(COUNT, dtype=np.float32)[chosen], residual)
  outputs = outputs_of(form, params, x, residual)
  for row, expert in enumerate(chosen):
    np.testing.assert_allclose(mixed[row], outputs[expert, row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('form', FORMS)
@given(st.integers(0, 99))
def test_the_mixture_is_the_gated_sum_of_outputs(form, seed):
  params, (x, residual) = params_of(form, seed), inputs_of(seed)
  gate = np.random.default_rng(seed).uniform(size=(2, COUNT)).astype(np.float32)
  mixed, _ = run(form, params, x, residual, gate, residual)
  expected = jnp.einsum('bx,xble->ble', gate, outputs_of(form, params, x, residual))
  np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-5)


def cosines(form, params, x, residual, u):
  """Cosines by their definition, [batch, length, expert]."""
  outputs = outputs_of(form, params, x, residual)
  norms = jnp.linalg.norm(outputs, axis=-1) * jnp.linalg.norm(u, axis=-1)
  return (jnp.einsum('xble,ble->xbl', outputs, u) / norms).transpose(1, 2, 0)


@pytest.mark.parametrize('form', FORMS)
def test_similarity_and_its_gradients_equal_those_of_materialised_outputs(form):
  params, (x, residual) = params_of(form), inputs_of(0)
  u = inputs_of(1)[1]
  weights = np.random.default_rng(2).normal(size=(2, 5, COUNT)).astype(np.float32)
  gate = np.zeros((2, COUNT), np.float32)

  def gram(params, x, residual, u):
    return run(form, params, x, residual, gate, u)[1]

  found = jax.jit(gram)(params, x, residual, u)
  assert np.ptp(found) > 0.5
  np.testing.assert_allclose(found, cosines(form, params, x, residual, u), rtol=1e-4, atol=1e-5)
  gradients = [
      jax.jit(jax.grad(lambda *a, f=f: jnp.sum(weights * f(*a)), argnums=(0, 1, 2, 3)))(
          params, x, residual, u)
      for f in (gram, lambda *a: cosines(form, *a))]
  for one, two in zip(*map(jax.tree.leaves, gradients), strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('silent', ['up', 'down', 'u'])
def test_similarity_of_silent_experts_is_zero_and_has_finite_gradients(silent):
  params, (x, residual) = params_of('lora'), inputs_of(0)
  u = np.zeros_like(residual) if silent == 'u' else residual
  if silent != 'u':
    params[silent] = np.zeros_like(params[silent])
  gate = np.zeros((2, COUNT), np.float32)

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
  def gradient(params, u):
    found = run('lora', params, x, residual, gate, u)[1]
    return jnp.sum(found), found

  gradients, found = gradient(params, u)
  np.testing.assert_array_equal(found, 0.0)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_a_bank_has_one_array_per_factor_with_expert_first():
  assert shapes('lora') == {'down': (COUNT, MLP, WIDTH), 'up': (COUNT, WIDTH, EMBED)}
  assert shapes('adapter') == {
      'down_kernel': (COUNT, MLP, WIDTH), 'down_bias': (COUNT, WIDTH),
      'up_kernel': (COUNT, WIDTH, EMBED), 'up_bias': (COUNT, EMBED)}


@pytest.mark.parametrize('form', FORMS)
def test_no_array_of_expert_outputs_is_formed(form):
  x, residual = inputs_of(0)
  gate = np.zeros((2, COUNT), np.float32)

  def loss(params, x, residual, u):
    mixed, similarity = run(form, params, x, residual, gate, u)
    return mixed.sum() + similarity.sum()

  text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 3)))(
      params_of(form), x, residual, residual))
  axes = {2, 5, COUNT, EMBED}
  found = [tuple(map(int, shape.split(','))) for shape in set(_shapes_in(text))]
  assert (2, 5, COUNT, WIDTH) in found
  assert not [shape for shape in found if len(shape) == 4 and set(shape) == axes]


def _shapes_in(text):
  return [part.split(']')[0] for part in text.split('f32[')[1:] if part.split(']')[0]]
