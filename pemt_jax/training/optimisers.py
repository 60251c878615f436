"""Optimisers and gradient clipping.

An optimiser here is an `optax.GradientTransformationExtraArgs` whose `update` takes `learning_rate`
at call time: a scalar, or a mapping from learning-rate group to scalar. No learning rate is
compiled in, so that replicas with different rates share one program.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pemt_jax.errors import UserError
from pemt_jax.training import adafactor as adafactor_lib, rules as rules_lib
from pemt_jax.trees import flatten, unflatten

Params = rules_lib.Params
Rules = rules_lib.Rules
EVERYTHING = rules_lib.EVERYTHING
Optimiser = optax.GradientTransformationExtraArgs


def clip_by_global_norm(grads: Params, limit: float | None) -> tuple[Params, jax.Array]:
  """Scales gradients by min(1, limit / (norm + 1e-6)), the rule of torch's clip_grad_norm_.

  Args:
    grads: tree of arrays.
    limit: largest global norm, > 0; None or 0 leaves the gradients as they are.

  Returns:
    (gradients, global norm before clipping [] float32).
  """
  norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
  if not limit:
    return grads, norm
  scale = jnp.minimum(1.0, limit / (norm + 1e-6))
  return jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads), norm


COUNTERS = ('always', 'from_first_gradient', 'nonzero_gradient')


@dataclasses.dataclass(frozen=True)
class AdamWOptions:
  """Options of `adamw`.

  Attributes:
    beta1: decay of the first moment, in [0, 1).
    beta2: decay of the second moment, in [0, 1).
    epsilon: added to sqrt(second moment) before bias correction, > 0.
    weight_decay: decoupled decay per unit of learning rate, >= 0.
    no_decay: patterns of whole paths that are not decayed.
    multipliers: (learning-rate group, factor) pairs; a group without an entry has factor 1.
    counters: 'always' steps every tensor at each update; 'from_first_gradient' leaves a tensor
      alone until its first non-zero gradient; 'nonzero_gradient' steps a tensor only when its
      gradient is not zero.
    row_axes: (path pattern, n): the first n axes of such a tensor index separate tensors with a
      counter each.
  """

  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  weight_decay: float = 0.0
  no_decay: tuple[str, ...] = ()
  multipliers: tuple[tuple[str, float], ...] = ()
  counters: str = 'always'
  row_axes: tuple[tuple[str, int], ...] = ()


class AdamWState(NamedTuple):
  """Moments of `adamw`; each field is a tree with the structure of the parameters."""

  count: Any   # [rows...] int32, updates made so far
  first: Any   # float32, exponential mean of the gradient
  second: Any  # float32, exponential mean of the squared gradient


def _rows(path: str, options: AdamWOptions) -> int:
  return next((n for pattern, n in options.row_axes if re.fullmatch(pattern, path)), 0)


def _spread(rows: jax.Array, like: jax.Array) -> jax.Array:
  """Reshapes [rows...] so that it broadcasts against `like` [rows..., ...]."""
  return rows.reshape(rows.shape + (1,) * (like.ndim - rows.ndim))


def _adamw_leaf(grad, param, moments, rate, options: AdamWOptions, decay: float):
  """Updates one tensor; moments = (count [rows...], first, second) go in and come out."""
  count, first, second = moments
  grad, value = grad.astype(jnp.float32), param.astype(jnp.float32)
  new_count = count + 1
  new_first = options.beta1 * first + (1.0 - options.beta1) * grad
  new_second = options.beta2 * second + (1.0 - options.beta2) * grad * grad
  # 1 - beta^t by expm1: in float32 the direct form loses four digits at t = 1 and beta = 0.999.
  times = new_count.astype(jnp.float32)
  correction1, correction2 = (
      -jnp.expm1(times * math.log(beta)) if beta else jnp.ones_like(times)
      for beta in (options.beta1, options.beta2))
  size = _spread(rate * jnp.sqrt(correction2) / correction1, value)
  new_value = value - size * new_first / (jnp.sqrt(new_second) + options.epsilon)
  new_value = new_value * (1.0 - rate * decay) if decay else new_value
  update = new_value - value
  if options.counters == 'always':
    return update.astype(param.dtype), (new_count, new_first, new_second)
  moving = jnp.any(grad != 0.0, axis=tuple(range(count.ndim, grad.ndim)))
  if options.counters == 'from_first_gradient':
    moving = moving | (count > 0)
  wide = _spread(moving, value)
  kept = (jnp.where(moving, new_count, count), jnp.where(wide, new_first, first),
          jnp.where(wide, new_second, second))
  return jnp.where(wide, update, 0.0).astype(param.dtype), kept


def adamw(options: AdamWOptions = AdamWOptions(), rules: Rules = EVERYTHING) -> Optimiser:
  """AdamW as the original programs run it; it differs from `optax.adamw` in two places.

  With m, v the moments: p <- p - lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) +
  epsilon), that is, epsilon is added before bias correction; then p <- p - lr * weight_decay * p
  on the updated p.

  Args:
    options: constants.
    rules: (path pattern, learning-rate group) of the tuned tree; rules for frozen paths are
      ignored.

  Returns:
    Transformation whose `update(grads, state, params, learning_rate=...)` takes a scalar that is
    multiplied by the group's factor, or a mapping {group: scalar}.

  Raises:
    UserError: unknown `counters`.
  """
  if options.counters not in COUNTERS:
    raise UserError(f"config.train.counters is '{options.counters}'; choose one of "
                    f"{', '.join(COUNTERS)}.")

  def init(params):
    flat = flatten(params)
    count = {path: jnp.zeros(leaf.shape[:_rows(path, options)], jnp.int32)
             for path, leaf in flat.items()}
    first = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in flat.items()}
    second = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in flat.items()}
    return AdamWState(*map(unflatten, (count, first, second)))

  def update(grads, state, params=None, *, learning_rate, **unused):
    del unused
    columns = [flatten(tree) for tree in (grads, params, state.count, state.first, state.second)]
    updates, moments = {}, ({}, {}, {})
    for path, grad in columns[0].items():
      param, count, first, second = (column[path] for column in columns[1:])
      group = rules_lib.group_of(path, rules) or rules_lib.BASE_GROUP
      rate = rules_lib.rate_of(group, learning_rate, options.multipliers)
      decayed = not any(re.fullmatch(pattern, path) for pattern in options.no_decay)
      decay = options.weight_decay if decayed else 0.0
      updates[path], kept = _adamw_leaf(grad, param, (count, first, second), rate, options, decay)
      for column, value in zip(moments, kept):
        column[path] = value
    return unflatten(updates), AdamWState(*map(unflatten, moments))

  return optax.GradientTransformationExtraArgs(init, update)


def _adamw_from_config(config, rules: Rules) -> Optimiser:
  return adamw(AdamWOptions(
      beta1=config.beta1, beta2=config.beta2, epsilon=config.epsilon,
      weight_decay=config.weight_decay, no_decay=tuple(config.no_decay),
      multipliers=tuple(sorted(config.group_multipliers.items())),
      counters=config.counters, row_axes=tuple(tuple(pair) for pair in config.row_axes)), rules)


def _adafactor_from_config(config, rules: Rules) -> Optimiser:
  return adafactor_lib.adafactor(adafactor_lib.AdafactorOptions(
      second_decay=config.second_decay, clip_rms=config.clip_rms,
      weight_decay=config.weight_decay, no_decay=tuple(config.no_decay),
      multipliers=tuple(sorted(config.group_multipliers.items())),
      row_axes=tuple(tuple(pair) for pair in config.row_axes)), rules)


# The one table of optimisers: name -> function of (config.train, rules).
OPTIMISERS: dict[str, Callable[..., Optimiser]] = {
    'adamw': _adamw_from_config, 'adafactor': _adafactor_from_config}


def make_optimiser(config: Any, rules: Rules = EVERYTHING) -> Optimiser:
  """Builds the optimiser that `config.train` names.

  Args:
    config: the `train` part of a config, see `training.config`.
    rules: ordered (path pattern, learning-rate group or 'frozen').

  Raises:
    UserError: `group_multipliers` names a group that no rule has.
  """
  groups = sorted({group for _, group in rules if group != rules_lib.FROZEN})
  for group in config.group_multipliers:
    if group not in groups:
      raise UserError(f"config.train.group_multipliers names the group '{group}'; the trainable "
                      f"rules have {', '.join(groups)}.")
  return OPTIMISERS[config.optimizer](config, rules)
