"""Products of bfloat16: values and gradients against float32, and how a CPU makes them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.models.products import differentiated_twice, matmul

SHAPES = {'rows': ((3, 7, 16), (16, 24)), 'matrices': ((2, 3, 7, 16), (2, 3, 16, 24)),
          'broadcast': ((2, 3, 7, 16), (3, 16, 24))}
HALF_UNIT = 2.0**-8  # relative, of bfloat16


def draw(name, dtype=jnp.bfloat16):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.normal(size=shape), jnp.bfloat16).astype(dtype)
          for shape in SHAPES[name]]


@functools.partial(jax.jit, static_argnums=(0, 1))
def outcome(product, result, a, b, factors):
  """Product, and gradients of both factors."""
  def loss(a, b):
    y = product(a, b, result)
    return jnp.sum(y.astype(jnp.float32) * factors), y

  (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(a, b)
  return y, gradients


def float32(a, b, result):
  """The same in float32: what is rounded is what the factors say, and gradients of `y`."""
  del result
  return jnp.matmul(a, b, precision='highest')


@pytest.mark.parametrize('result', [None, jnp.float32])
@pytest.mark.parametrize('name', SHAPES)
def test_products_and_gradients_are_those_of_float32_rounded(name, result):
  a, b = draw(name)
  wide = draw(name, jnp.float32)
  shape = jax.eval_shape(jnp.matmul, *wide).shape
  factors = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.bfloat16).astype(
      jnp.float32)
  y, gradients = outcome(matmul, result, a, b, factors)
  expected, expected_gradients = outcome(float32, None, *wide, factors)
  assert y.dtype == (result or jnp.bfloat16)
  assert {leaf.dtype for leaf in gradients} == {jnp.dtype(jnp.bfloat16)}
  unit = 1e-6 if result else HALF_UNIT
  np.testing.assert_allclose(y.astype(np.float32), expected, rtol=unit, atol=unit)
  # Where rows in front share b, the sum over them is made of rounded terms.
  slack = 4 if name == 'broadcast' else 1
  for found, exact in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(found.astype(np.float32), exact, rtol=slack * HALF_UNIT,
                               atol=slack * HALF_UNIT)


def test_float32_is_left_alone():
  wide = draw('rows', jnp.float32)
  plain = lambda a, b: jnp.matmul(a, b)
  assert str(jax.make_jaxpr(matmul)(*wide)) == str(jax.make_jaxpr(plain)(*wide))


def test_gradients_of_gradients_and_replicas():
  a, b = draw('rows')
  loss = lambda a, b: jnp.sum(jnp.sin(matmul(a, b).astype(jnp.float32)))
  twice = lambda product: jax.grad(lambda a: jnp.sum(jnp.square(jax.grad(
      lambda a, b: jnp.sum(jnp.sin(product(a, b).astype(jnp.float32))))(a, b).astype(
          jnp.float32))))
  with differentiated_twice():
    found = twice(matmul)(a).astype(jnp.float32)
  exact = twice(lambda a, b: jnp.matmul(a, b.astype(jnp.float32), precision='highest'))(
      a.astype(jnp.float32))
  assert jnp.linalg.norm(found - exact) < 0.02 * jnp.linalg.norm(exact)
  both = jnp.stack([a, 2 * a]), jnp.stack([b, b / 2])
  of_all = jax.vmap(jax.grad(loss, (0, 1)))(*both)
  for number in range(2):
    alone = jax.grad(loss, (0, 1))(*(leaf[number] for leaf in both))
    jax.tree.map(lambda all_, one, number=number: np.testing.assert_array_equal(
        all_[number].astype(np.float32), one.astype(np.float32)), of_all, alone)


@pytest.mark.parametrize('result', [None, jnp.float32])
def test_a_cpu_widens_no_matrix(result):
  """A frozen matrix is read as bfloat16 in the forward pass and in the gradient of its input."""
  a, b = draw('rows')
  loss = lambda a, b: jnp.sum(jnp.square(matmul(a, b, result).astype(jnp.float32)))
  widened = 'f32[16,24]', 'f32[24,16]'
  text = jax.jit(jax.value_and_grad(loss)).lower(a, b).compile().as_text()
  assert not any(shape in text for shape in widened)
