"""Which matrix products the step of stage 1 has: none is the gradient of a frozen matrix."""

from __future__ import annotations

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import lower_bound
from pemt_jax.methods import pemt
from pemt_jax.methods.base import Method, make_loss
from pemt_jax.models.layers import Compute
from pemt_jax.models.t5 import T5
from pemt_jax.sharding.costs import costs_of
from pemt_jax.sharding.hlo import Module
from pemt_jax.training import optimisers, schedules, state as state_lib, step as step_lib
from pemt_jax.training.rules import split_params
from tests import tiny

CONFIG = tiny.replace(tiny.CONFIG, heads=3)  # heads * kv differs from embed.
BATCH, SOURCE, TARGET, RANK = 3, 7, 5, 6


def stage1(prompt, extra=()):
  """Stage 1 with `prompt` rows; `extra` are paths that are tuned besides."""
  options = pemt.Stage1Options(rank=RANK, alpha=1.0, prompt=bool(prompt))
  method = pemt.stage1(options, CONFIG, prompt)
  rules = (*((path, 'expert') for path in extra), *method.tuned)
  if '.*' in extra:
    rules = (('.*', 'expert'),)
  return Method(method.name, method.plan, rules)


@functools.cache
def step_of(prompt=0, extra=(), scan_layers=True):
  """The traced step, as the training loop makes it."""
  method = stage1(prompt, extra)
  model = T5(CONFIG, method.plan, Compute(scan_layers=scan_layers))
  variables = tiny.variables_of(model)
  frozen, tuned = split_params(variables['params'], method.tuned)
  tx = optimisers.adamw()
  step = step_lib.make_train_step(make_loss(model, method), tx, schedules.linear_schedule)
  one = lambda tree: state_lib.stack_replicas([tree])
  state = state_lib.init_state(one(tuned), one(variables['constants']),
                               np.stack([state_lib.replica_key('a', 0)]), tx)
  rates = state_lib.Rates(jnp.ones(1), jnp.zeros(1, jnp.int32), jnp.full(1, 9, jnp.int32))
  batch = one(tiny.make_batch(BATCH, SOURCE, TARGET))
  return step.trace(state, frozen, batch, rates)


@functools.cache
def compiled_flops(*arguments):
  """Operations of the products in the compiled step."""
  return costs_of(Module(step_of(*arguments).lower().compile().as_text()), 1).flops


def sizes(prompt=0):
  """Multiplications of one pass: (frozen, attention, LoRA) of each kind of layer, and head."""
  c, source, target = CONFIG, SOURCE + prompt, TARGET
  encoder, decoder = BATCH * source, BATCH * target
  inner, mlp = c.embed * c.joined_kv, c.embed * c.mlp
  attention = lambda queries, keys: 2 * BATCH * c.heads * queries * keys * c.kv
  lora = RANK * (c.mlp + c.embed)
  return {
      'encoder': (encoder * (4 * inner + 2 * mlp), attention(source, source), encoder * lora),
      'decoder': (decoder * (6 * inner + 2 * mlp) + encoder * 2 * inner,
                  attention(target, target) + attention(target, source), decoder * lora),
      'head': decoder * c.embed * c.vocab_size}


def least_flops(prompt=0):
  """Forward and input gradients of everything, and gradients of both LoRA factors.

  A product of two activations has two input gradients. Scanned layers are all alike, so that the
  first ones compute input gradients that nobody reads; see `unread`.
  """
  found = sizes(prompt)
  total = 2 * found['head']
  for stack, depth in (('encoder', CONFIG.encoder_layers), ('decoder', CONFIG.decoder_layers)):
    frozen, attention, lora = found[stack]
    total += depth * (2 * frozen + 3 * attention + 3 * lora)
  return 2 * total


def unread():
  """Input gradients below the first tuned leaf of each stack, without a prompt."""
  c, encoder, decoder = CONFIG, BATCH * SOURCE, BATCH * TARGET
  inner, mlp = c.embed * c.joined_kv, c.embed * c.mlp
  attention = lambda queries, keys: BATCH * c.heads * queries * keys * c.kv
  first_encoder = (encoder * (4 * inner + 2 * mlp) + 4 * attention(SOURCE, SOURCE)
                   + encoder * RANK * c.mlp)
  # The queries of the first cross-attention come from frozen values; its keys do not.
  first_decoder = (decoder * 4 * inner + 4 * attention(TARGET, TARGET)
                   + decoder * inner + attention(TARGET, SOURCE))
  return 2 * (first_encoder + first_decoder)


@pytest.mark.parametrize('prompt', [0, 4])
def test_the_compiled_step_has_no_gradient_of_a_frozen_matrix(prompt):
  assert compiled_flops(prompt) == least_flops(prompt)


def test_unrolled_layers_leave_out_what_nobody_reads():
  assert compiled_flops(0, (), False) == least_flops() - unread()


@pytest.mark.parametrize('extra, weights', [
    pytest.param(('.*/wi/kernel',), lambda c: (c.embed * c.mlp, c.embed * c.mlp, 0, 0),
                 marks=pytest.mark.slow),
    pytest.param(('.*/cross_attention/[kv]/kernel',),
                 lambda c: (0, 0, 2 * c.embed * c.joined_kv, 0), marks=pytest.mark.slow),
    (('.*',), lambda c: (4 * c.embed * c.joined_kv + 2 * c.embed * c.mlp,
                         6 * c.embed * c.joined_kv + 2 * c.embed * c.mlp,
                         2 * c.embed * c.joined_kv, c.embed * c.vocab_size))])
def test_a_tuned_matrix_is_found(extra, weights):
  """The count must tell: a tuned backbone matrix adds exactly its own gradient."""
  encoder, decoder, cross, head = weights(CONFIG)
  tokens, targets = BATCH * SOURCE, BATCH * TARGET
  more = (CONFIG.encoder_layers * tokens * encoder + CONFIG.decoder_layers * targets * decoder
          + CONFIG.decoder_layers * tokens * cross + targets * head)
  assert compiled_flops(0, extra) == least_flops() + 2 * more


def test_the_traced_step_has_the_products_of_the_compiled_one():
  products = lower_bound.matrix_products(step_of().jaxpr)
  assert lower_bound.total_flops(products) == compiled_flops()


def nested(x, w):
  """3 turns x 2 products in a scan, 1 batched product, 1 in a branch."""
  def body(carry, _):
    return jax.jit(lambda a: jnp.tanh(a @ w) @ w.T)(carry), None
  y, _ = jax.lax.scan(body, x, None, length=3)
  z = jnp.einsum('bij,bkj->bik', jnp.stack([y, x]), jnp.stack([x, y]))
  return jax.lax.cond(z[0, 0, 0] > 0, lambda a: a @ w, lambda a: jnp.zeros((5, 7)), y).sum() + z


NESTED = 2 * (3 * 2 * 5 * 4 * 7 + 2 * 5 * 4 * 5 + 5 * 4 * 7)


def test_products_by_hand():
  x, w = jnp.ones((5, 4)), jnp.ones((4, 7))
  found = lower_bound.matrix_products(jax.make_jaxpr(nested)(x, w))
  assert lower_bound.total_flops(found) == NESTED
  assert collections.Counter({product.sizes: count for product, count in found.items()}) == {
      (1, 5, 4, 7): 3 + 1, (1, 5, 7, 4): 3, (2, 5, 4, 5): 1}
  text = jax.jit(nested).lower(x, w).compile().as_text()
  assert costs_of(Module(text), 1).flops == NESTED


def endless(x):
  return jax.lax.while_loop(lambda a: a.sum() < 9.0, lambda a: a @ a, x)


def test_an_unknown_number_of_turns_is_told():
  x = jnp.ones((3, 3))
  with pytest.raises(ValueError, match='while'):
    lower_bound.matrix_products(jax.make_jaxpr(endless)(x))
  module = Module(jax.jit(endless).lower(x).compile().as_text(), turns=5)
  assert module.open_loops == 1
  assert costs_of(module, 1).flops == 5 * 2 * 3**3


def test_products_run_alone():
  dims = (((2,), (1,)), ((0,), (0,)))
  found = lower_bound.measure({lower_bound.Product((2, 3, 4), (2, 4, 5), dims, 'float32'): 3}, 1)
  assert found['gflop'] == 3 * 2 * 2 * 3 * 4 * 5 / 1e9
  assert found['seconds'] > 0 and found['products'][0]['sizes'] == (2, 3, 4, 5)


@pytest.mark.parametrize('extra, gradients', [((), 0), (('.*/relative_bias/embedding',), 2)])
def test_a_frozen_position_bias_has_no_gradient(extra, gradients):
  """One sum into the table of each stack where it is tuned, none where it is frozen."""
  table = f'f32[{CONFIG.relative_buckets},{CONFIG.heads}] = scatter-add'
  assert str(step_of(0, extra).jaxpr).count(table) == gradients
