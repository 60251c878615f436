"""Counting what a compiled program does: against counts by hand and by brute force."""

from __future__ import annotations

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.sharding.checks import frozen_gradients, frozen_moves, whole_gathers
from pemt_jax.sharding.costs import costs_of, flops_of
from pemt_jax.sharding.hlo import Array, Module, arrays

# A loop of 3 turns over frozen kernels, as programs for TPUs look: a gather that is spread over two
# fusions, a copy of one layer, a sum in the backward pass, a permutation; and a gather of all.
PROGRAM = (pathlib.Path(__file__).parent / 'program.hlo').read_text()


def test_exchanges_count_once_for_each_turn_by_what_comes_in():
  found = {(each.kind, each.times, each.group): each.bytes
           for each in costs_of(Module(PROGRAM), 4).collectives}
  layer, sums, state = 8 * 32 * 2, 8 * 16 * 4, 4 * 32 * 4
  assert found == {('all-gather', 3, 2): layer / 2, ('all-reduce', 3, 4): 2 * sums * 3 / 4,
                   ('collective-permute', 3, 4): state, ('all-gather', 1, 2): 3 * layer / 2}


def test_memory_counts_slices_as_slices_and_skips_what_is_on_the_chip():
  part, layer, sums, state = 8 * 16 * 2, 8 * 32 * 2, 8 * 16 * 4, 4 * 32 * 4
  turn = (part + part) + (part + part) + layer + sums
  # A slice, a copy, what the spread gather brings, the sum. Besides: the indices that the slice
  # reads, the counter's sum, its comparison; and the whole gather.
  small = 3 * 4 + (4 + 4 + 4) + (4 + 4 + 1)
  whole = 3 * part + 3 * layer
  assert costs_of(Module(PROGRAM), 4).bytes == 3 * (turn + small) + whole
  assert arrays('f32[4,32]{1,0:T(8,128)S(1)}') == (Array('f32', (4, 32), True),)
  assert state == Array('f32', (4, 32)).bytes


def test_a_gather_of_all_layers_a_copy_and_a_frozen_gradient_are_found():
  module = Module(PROGRAM)
  assert whole_gathers(module) == [
      'frozen/encoder/layers/wi/kernel: [3, 8, 32] from jit(step)/all']
  moves = frozen_moves(module)
  assert [(move.path, move.bytes, move.times) for move in moves] == [
      ('encoder/layers/wi/kernel', 3 * 8 * 16 * 2, 3)]
  frozen = [('encoder/layers/wi/kernel', (3, 8, 16))]
  sums = costs_of(module, 4).collectives
  assert len(frozen_gradients(sums, frozen, [])) == 1
  assert not frozen_gradients(sums, frozen, [('encoder/layers/wo/kernel', (3, 16, 8))])
  assert not frozen_gradients(sums, [('encoder/layers/wi/kernel', (3, 8, 32))], [])


def test_a_kernel_counts_what_it_tells():
  line = ('%kernel = f32[4,32]{1,0} custom-call(%x.1), custom_call_target="tpu_custom_call", '
          'backend_config={"custom_call_config":{"cost_estimate":{"flops":"77","bytes":"8"}}}')
  text = PROGRAM.replace('%start = s32[]', f'{line}\n  %start = s32[]')
  assert costs_of(Module(text), 4).flops == 77


@pytest.mark.parametrize('step, turns', [(1, 3), (2, 2), (3, 1)])
def test_a_counter_may_make_larger_steps(step, turns):
  text = PROGRAM.replace('%one = s32[] constant(1)', f'%one = s32[] constant({step})')
  assert {run.times for run in Module(text).runs() if run.computation == 'body'} == {turns}


def brute_force(left, right, stride, pad, gaps):
  """Multiplications of a convolution along one axis that meet two real values."""
  count = 0
  for out, place in itertools.product(range(10**6), range(right)):
    if out * stride + (right - 1) * gaps[1] + 1 > (left - 1) * gaps[0] + 1 + sum(pad):
      return count
    at = out * stride - pad[0] + place * gaps[1]
    count += 0 <= at <= (left - 1) * gaps[0] and at % gaps[0] == 0
  return count


@pytest.mark.parametrize('stride, pad, gaps', [
    ((1, 2), ((0, 0), (2, 1)), ((1, 1), (1, 2))), ((3, 1), ((2, 2), (0, 3)), ((4, 1), (1, 1)))])
def test_convolutions_count_real_products_only(stride, pad, gaps):
  x, kernel = jnp.ones((2, 5, 7, 6)), jnp.ones((3, 2, 6, 4))
  run = lambda x, kernel: jax.lax.conv_general_dilated(
      x, kernel, stride, pad, gaps[0], gaps[1], ('NHWC', 'HWIO', 'NHWC'))
  text = jax.jit(run).lower(x, kernel).compile().as_text()
  axes = [brute_force(x.shape[1 + i], kernel.shape[i], stride[i], pad[i],
                      (gaps[0][i], gaps[1][i])) for i in range(2)]
  module = Module(text)
  found = sum(flops_of(run.instruction, module.computations[run.computation])
              for run in module.runs())
  assert found == 2 * 2 * 6 * 4 * np.prod(axes)
