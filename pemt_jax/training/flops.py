"""Multiplications and additions of matrix products, counted in a traced program.

A product of [m, k] and [k, n] counts 2 m k n. Work that no result needs is removed first, so that
what is counted for a train step is what its tuned leaves ask for: 2 per weight and token forward,
2 for the gradient of inputs where a tuned leaf lies before them, 2 for the gradient of the weight
only if it is tuned. Layers of one scan run one program, so that they count alike: a stack of layers
below the first tuned one costs no gradient where it is a scan of its own (see `models/segments.py`)
or another stack. Recomputed activations (`model.remat`) count each time they are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def count_flops(function: Callable[..., Any], *shapes: Any, unknown_turns: float = 1.0) -> float:
  """Counts the floating-point operations of all matrix products and convolutions of a function.

  Nothing is compiled or computed. The count is of the whole program, whatever devices share it.

  Args:
    function: a function of arrays, jitted or not.
    *shapes: its arguments: trees of arrays or of `jax.ShapeDtypeStruct`.
    unknown_turns: turns of a loop whose number is only known when it runs (decoding). With 1 the
      count is a lower bound for every program whose loops run at all.

  Returns:
    Operations. The body of a scan counts once for each of its turns. A conditional counts as its
    most expensive branch, a choice by platform as the branch that stands for all other platforms. A
    ragged product counts each of its rows once.
  """
  traced = jax.make_jaxpr(function)(*shapes)
  used, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
  return _of_program(used, unknown_turns)


def _of_program(jaxpr: core.Jaxpr, turns: float) -> float:
  return float(sum(_of_equation(equation, turns) for equation in jaxpr.eqns))


def _of_equation(equation: core.JaxprEqn, turns: float) -> float:
  """Operations of one equation; most kinds have none and no programs inside."""
  name, params = equation.primitive.name, equation.params
  if name in _PRODUCTS:
    return _PRODUCTS[name](equation)
  inner = [_of_program(jaxpr, turns) for jaxpr in core.jaxprs_in_params(params)]
  if name == 'scan':
    return params['length'] * inner[0]
  if name == 'while':
    return turns * sum(inner)
  if name == 'cond':
    platforms = params.get('branches_platforms')
    return inner[platforms.index(None)] if platforms and None in platforms else max(inner)
  if name == 'shard_map':  # Its program is that of one device.
    mesh = params['mesh']
    return sum(inner) * math.prod(mesh.shape[axis] for axis in params['newly_manual_axes'])
  return sum(inner)


def _shape(variable: Any) -> tuple[int, ...]:
  return variable.aval.shape


def _dot_general(equation: core.JaxprEqn) -> float:
  (contracted, _), _ = equation.params['dimension_numbers']
  left = _shape(equation.invars[0])
  return 2.0 * math.prod(_shape(equation.outvars[0])) * math.prod(left[i] for i in contracted)


def _ragged_dot_general(equation: core.JaxprEqn) -> float:
  """Each entry of the left array meets the free axes of the right one, in one group only."""
  numbers = equation.params['ragged_dot_dimension_numbers']
  (_, contracted), (_, batched) = numbers.dot_dimension_numbers
  bound = {*contracted, *batched, *numbers.rhs_group_dimensions}
  left, right = (_shape(variable) for variable in equation.invars[:2])
  return 2.0 * math.prod(left) * math.prod(n for i, n in enumerate(right) if i not in bound)


def _convolution(equation: core.JaxprEqn) -> float:
  """Each output entry sums over the kernel's entries for its output channel."""
  kernel = _shape(equation.invars[1])
  channels = kernel[equation.params['dimension_numbers'].rhs_spec[0]]
  return 2.0 * math.prod(_shape(equation.outvars[0])) * math.prod(kernel) / channels


_PRODUCTS = {'dot_general': _dot_general, 'ragged_dot_general': _ragged_dot_general,
             'conv_general_dilated': _convolution}
