"""bfloat16 on activations beyond the range of float16: what must be float32 is, all is close."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from benchmarks import numerics
from benchmarks.numerics import Case, deviation, table
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5 import T5
from pemt_jax.trees import unflatten
from tests import tiny

T5_V1_1 = 't5-v1.1'
TRACED = ('adapter', 'bitfit', 'ia3')
# Sums over so few entries (experts, choices of a token) lose nothing.
FEW = 4
_SUMS = ('reduce_sum', 'cumsum', 'cumlogsumexp', 'reduce_max', 'rsqrt', 'log', 'argmax', 'sort')


def rounded_sums(jaxpr):
  """Where a program sums, selects or normalises in bfloat16."""
  for equation in jaxpr.eqns:
    name, first = equation.primitive.name, equation.invars[0].aval if equation.invars else None
    if name in _SUMS and first.dtype == jnp.bfloat16:
      axes = equation.params.get('axes', range(first.ndim))
      if math.prod(first.shape[axis] for axis in axes) > FEW:
        yield f'{name} of {first} at {equation.source_info.name_stack}'
    for inner in core.jaxprs_in_params(equation.params):
      yield from rounded_sums(inner)


def gradient_program(case):
  """The traced loss and gradients of a case in bfloat16."""
  tuned, frozen, constants = numerics.values_of(case)
  return jax.make_jaxpr(numerics.outcome, static_argnums=(0, 1))(
      case, 'bfloat16', tuned, numerics.halved(frozen), constants, numerics.batch_of(case))


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[] if name in TRACED else pytest.mark.slow)
    for name in numerics.METHODS])
def test_sums_over_tokens_norms_and_softmaxes_are_float32(name):
  program = gradient_program(Case(T5_V1_1, name))
  assert not list(rounded_sums(program.jaxpr))
  assert {aval.dtype for aval in program.out_avals} == {np.dtype(np.float32)}


def test_the_law_sees_a_sum_in_bfloat16():
  half = jnp.ones((8, 3), jnp.bfloat16)
  tuned = jnp.ones(3, jnp.bfloat16)
  program = jax.make_jaxpr(jax.jit(jax.grad(lambda v: (half + v).astype(jnp.float32).sum())))(tuned)
  assert [text.split(' at')[0] for text in rounded_sums(program.jaxpr)] == [
      'reduce_sum of bfloat16[8,3]']


def test_the_stream_leaves_the_range_of_float16():
  params = unflatten(numerics.backbone_values(T5_V1_1))
  config = numerics.CONFIGS[T5_V1_1]
  plan = Plan(tuple(Rule('watch', f'{stack}/final_norm', tiny.Affine())
                    for stack in ('encoder', 'decoder')))
  batch = numerics.batch_of(Case(T5_V1_1, 'lora'))
  _, aux = tiny.forward(T5(config, plan), {'params': params}, batch)
  for stack in ('encoder', 'decoder'):
    seen = np.abs(aux[f'{stack}/final_norm/watch/seen'])
    assert seen.max() > np.finfo(np.float16).max and np.median(seen) < 100


# Largest deviation of the loss, and of logits and gradients in Euclidean norm: three times what
# was measured, see docs/reliability.md.
@pytest.mark.parametrize('case, loss, rest', [
    (Case(T5_V1_1, 'bitfit'), 1e-3, 0.05),
    *(pytest.param(Case(*case), loss, rest, marks=pytest.mark.slow)
      for case, loss, rest in (
          ((T5_V1_1, 'pemt/stage2 adapter'), 1e-3, 0.07), ((T5_V1_1, 'propetl'), 2e-2, 0.12),
          ((T5_V1_1, 'mpo'), 1e-3, 0.04), (('gpt2', 'lora'), 4e-2, 0.18),
          ((T5_V1_1, 'maml'), 1e-3, 0.024)))])  # gradients of gradients
def test_loss_and_gradients_are_finite_and_near_float32(case, loss, rest):
  found = deviation(case)
  assert found['finite']
  # Equal numbers would mean that the type does nothing.
  assert 0 < found['loss_deviation'] < loss
  assert 0 < found['gradient_mean'] < rest
  assert 0 < found['logits_mean'] < rest
  assert table([found | {'backbone': 'b', 'method': 'm'}]).splitlines()[2].startswith('| b | `m` |')
