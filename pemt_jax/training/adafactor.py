"""Adafactor (Shazeer and Stern 2018) with the learning rate given from outside.

No relative step, no momentum, no scaling by the size of the parameters.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pemt_jax.training import rules as rules_lib
from pemt_jax.trees import flatten, unflatten

LAYERS = 'layers'  # key of a path below which the first axis counts layers


@dataclasses.dataclass(frozen=True)
class AdafactorOptions:
  """Options of `adafactor`.

  Attributes:
    second_decay: the second moment decays by 1 - step^-second_decay, > 0; the first step takes all.
    clip_rms: largest root mean square of a tensor's update before the learning rate, > 0.
    epsilon: added to squared gradients, > 0.
    weight_decay: decoupled decay per unit of learning rate, >= 0.
    no_decay: patterns of whole paths that are not decayed.
    multipliers: (learning-rate group, factor) pairs; a group without an entry has factor 1.
    row_axes: (path pattern, n): the first n axes of such a tensor index separate tensors. Other
      tensors below a `layers` key have one such axis, so that scanned layers are updated as if
      each had its own parameters.
  """

  second_decay: float = 0.8
  clip_rms: float = 1.0
  epsilon: float = 1e-30
  weight_decay: float = 0.0
  no_decay: tuple[str, ...] = ()
  multipliers: tuple[tuple[str, float], ...] = ()
  row_axes: tuple[tuple[str, int], ...] = ()


class AdafactorState(NamedTuple):
  """Moments of `adafactor`; each field is a tree with the structure of the parameters.

  With [rows...] the axes that index separate tensors: of matrices `row` and `column` hold the
  factors of the second moment, of vectors `whole` holds all of it; unused ones are [rows..., 1].
  """

  count: Any   # [rows...] int32, updates made so far
  row: Any     # float32
  column: Any  # float32
  whole: Any   # float32


def _rows(path: str, shape: tuple[int, ...], options: AdafactorOptions) -> int:
  stated = next((n for pattern, n in options.row_axes if re.fullmatch(pattern, path)), None)
  if stated is None:
    stated = int(LAYERS in path.split('/'))
  return min(stated, len(shape))


def _over_rows(function: Any, rows: int) -> Any:
  for _ in range(rows):
    function = jax.vmap(function)
  return function


def adafactor(options: AdafactorOptions = AdafactorOptions(),
              rules: rules_lib.Rules = rules_lib.EVERYTHING
              ) -> optax.GradientTransformationExtraArgs:
  """Builds Adafactor.

  Every tensor of two axes has a factored second moment, also [n, 1] ones; of more axes, the two
  largest are factored.

  Args:
    options: constants.
    rules: (path pattern, learning-rate group) of the tuned tree.

  Returns:
    Transformation whose `update(grads, state, params, learning_rate=...)` takes a scalar that is
    multiplied by the group's factor, or a mapping {group: scalar}.
  """
  factored = optax.scale_by_factored_rms(
      decay_rate=options.second_decay, min_dim_size_to_factor=1, epsilon=options.epsilon)

  def start(param):
    found = factored.init(param.astype(jnp.float32))
    return found.count, found.v_row, found.v_col, found.v

  def direction(grad, *moments):
    grad = grad.astype(jnp.float32)
    update, found = factored.update(grad, optax.FactoredState(*moments), grad)
    size = jnp.sqrt(jnp.mean(jnp.square(update)))
    update = update / jnp.maximum(1.0, size / options.clip_rms)
    return update, (found.count, found.v_row, found.v_col, found.v)

  def init(params):
    columns = ({}, {}, {}, {})
    for path, leaf in flatten(params).items():
      found = _over_rows(start, _rows(path, leaf.shape, options))(leaf)
      for column, value in zip(columns, found):
        column[path] = value
    return AdafactorState(*map(unflatten, columns))

  def update(grads, state, params=None, *, learning_rate, **unused):
    del unused
    grads, params = flatten(grads), flatten(params)
    moments, updates, kept = [flatten(tree) for tree in state], {}, ({}, {}, {}, {})
    for path, grad in grads.items():
      step, found = _over_rows(direction, _rows(path, grad.shape, options))(
          grad, *(column[path] for column in moments))
      group = rules_lib.group_of(path, rules) or rules_lib.BASE_GROUP
      decayed = not any(re.fullmatch(pattern, path) for pattern in options.no_decay)
      if options.weight_decay and decayed:
        step = step + options.weight_decay * params[path].astype(jnp.float32)
      step = -rules_lib.rate_of(group, learning_rate, options.multipliers) * step
      updates[path] = step.astype(params[path].dtype)
      for column, value in zip(kept, found):
        column[path] = value
    return unflatten(updates), AdafactorState(*map(unflatten, kept))

  return optax.GradientTransformationExtraArgs(init, update)
