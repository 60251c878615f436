"""Counts of operations against counts by hand; nothing is compiled."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.methods import baselines
from pemt_jax.training.flops import count_flops
from tests import tiny

ROWS, IN, OUT, TURNS, RANK = 6, 4, 5, 3, 2
PRODUCT = 2 * ROWS * IN * IN
X, SQUARE = np.ones((ROWS, IN), np.float32), np.ones((IN, IN), np.float32)


@jax.custom_vjp
def cubed(x):
  return x @ SQUARE


def _cubed_forward(x):
  return cubed(x), None


def _cubed_backward(_, y):
  return (y @ SQUARE @ SQUARE @ SQUARE,)


cubed.defvjp(_cubed_forward, _cubed_backward)


def scanned(x, kernels):
  return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]


def rematerialised(x, kernels):
  body = jax.checkpoint(lambda x, kernel: (jnp.tanh(x @ kernel), None))
  return jax.lax.scan(body, x, kernels)[0]


def until(x):
  return jax.lax.while_loop(lambda x: (x @ SQUARE).sum() < 9, lambda x: x @ SQUARE @ SQUARE, x)


def either(flag, x):
  return jax.lax.cond(flag, lambda x: x @ SQUARE @ SQUARE, lambda x: x @ SQUARE, x)


def by_platform(x):
  return jax.lax.platform_dependent(x, cpu=lambda x: x @ SQUARE @ SQUARE,
                                    default=lambda x: x @ SQUARE)


def summed(function):
  return lambda *args: function(*args).sum()


KERNELS = np.ones((TURNS, IN, IN), np.float32)
BANK, SIZES = np.ones((TURNS, IN, OUT), np.float32), np.array([1, 2, 3], np.int32)
IMAGE, FILTER = np.ones((2, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)


@pytest.mark.parametrize('function, args, count', [
    (jnp.matmul, (X, SQUARE), PRODUCT),
    (lambda a, b: jnp.einsum('bij,bjk->bik', a, b),
     (np.ones((7, 2, 3)), np.ones((7, 3, 5))), 7 * 2 * 2 * 3 * 5),
    (jax.jit(jax.vmap(jnp.matmul, (None, 0))), (X, KERNELS), TURNS * PRODUCT),
    (scanned, (X, KERNELS), TURNS * PRODUCT),
    # Backward: the gradient of the stream in each turn; of the kernels only where asked for.
    (jax.grad(summed(scanned)), (X, KERNELS), TURNS * PRODUCT),
    (jax.value_and_grad(summed(scanned)), (X, KERNELS), 2 * TURNS * PRODUCT),
    (jax.value_and_grad(summed(scanned), argnums=(0, 1)), (X, KERNELS), 3 * TURNS * PRODUCT),
    (jax.value_and_grad(summed(rematerialised)), (X, KERNELS), 3 * TURNS * PRODUCT),
    (cubed, (X,), PRODUCT),
    (jax.value_and_grad(summed(cubed)), (X,), 4 * PRODUCT),
    (until, (X,), 3 * PRODUCT),
    (either, (True, X), 2 * PRODUCT),
    (by_platform, (X,), PRODUCT),
    (jax.lax.ragged_dot, (X, BANK, SIZES), 2 * ROWS * IN * OUT),
    # The forward product feeds nothing here: two gradients remain.
    (jax.grad(summed(jax.lax.ragged_dot), argnums=(0, 1)), (X, BANK, SIZES), 4 * ROWS * IN * OUT),
    (lambda x, y: jax.lax.conv(x, y, (1, 1), 'SAME'), (IMAGE, FILTER),
     2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)),
    (lambda x: (x @ SQUARE, x)[1], (X,), 0)])
def test_count_by_hand(function, args, count):
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), args)
  assert count_flops(function, *shapes) == count


def test_turns_of_a_loop_that_is_open():
  assert count_flops(until, X, unknown_turns=5) == 15 * PRODUCT


def test_every_device_of_a_sharded_function_counts():
  mesh = jax.make_mesh((1,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('x')
  split = jax.shard_map(lambda x: x @ SQUARE, mesh=mesh, in_specs=spec, out_specs=spec)
  assert count_flops(split, X) == PRODUCT
  abstract = jax.sharding.AbstractMesh((2,), ('x',))
  split = jax.shard_map(lambda x: x @ SQUARE, mesh=abstract, in_specs=spec, out_specs=spec)
  assert count_flops(split, X) == PRODUCT


def _products_of_parts():
  """Operations of the parts of the tiny T5 with LoRA, each product made once."""
  config, (rows, source), target = tiny.CONFIG, tiny.make_batch()['inputs'].shape, 5
  on_source, on_target = 2 * rows * source, 2 * rows * target
  square = config.embed * config.heads * config.kv
  return {'encoder': on_source * (4 * square + 2 * config.embed * config.mlp
                                  + 2 * source * config.heads * config.kv),
          'projection': on_target * square, 'memory_projection': on_source * square,
          'self': on_target * target * config.heads * config.kv,
          'cross': on_target * source * config.heads * config.kv,
          'wi': on_target * config.embed * config.mlp,
          'down': on_target * config.mlp * RANK, 'up': on_target * RANK * config.embed,
          'head': on_target * config.embed * config.vocab_size}


def test_frozen_weights_cost_no_gradient():
  options = baselines.LoRAOptions(rank=RANK, sites=('decoder/mlp/wo',))
  method = baselines.lora(options, tiny.CONFIG, 0)
  model = tiny.model_of(method)
  variables, batch = tiny.variables_of(model), tiny.make_batch()
  part = _products_of_parts()
  layer = (6 * part['projection'] + 2 * part['memory_projection'] + 2 * part['self']
           + 2 * part['cross'] + 2 * part['wi'] + part['down'] + part['up'])
  forward = 2 * part['encoder'] + 2 * layer + part['head']
  assert count_flops(functools.partial(tiny.forward, model), variables, batch) == forward
  frozen, tuned = tiny.split(method, variables)
  counted = count_flops(tiny.gradients(model, method), tuned, frozen, {}, batch, None)
  # Both layers: gradients of `up`, of the vector between, and of `down`.
  own = 2 * (2 * part['up'] + part['down'])
  # A layer down to its inputs; keys and values of the encoder's states need none. A scan has one
  # body for all layers: the lowest one hands a gradient down that nobody reads.
  through = (part['down'] + 2 * part['wi'] + 6 * part['projection'] + 4 * part['self']
             + 2 * part['cross'])
  assert counted == forward + own + 2 * through + part['head']
