"""The train step: one update of all replicas on one frozen tree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pemt_jax.errors import UserError
from pemt_jax.training import optimisers
from pemt_jax.training.state import Rates, RunState


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """Options of `make_train_step`.

  Attributes:
    clip_norm: largest global gradient norm, > 0; None or 0 does not clip.
    accumulate: microbatches that each batch is cut into, >= 1; rows must be a multiple of it.
    summed: gradients of microbatches are summed, not averaged by their weights.
    transform_gradients: (grads, key, step) -> grads of one replica, before clipping.
    transform_clipped: the same behind clipping.
    next_constants: (constants, step) -> constants of one replica for the next step; `step` counts
      the updates made, this one included.
    spmd_axis_name: mesh axis that the replica axis is sharded over.
  """

  clip_norm: float | None = 1.0
  accumulate: int = 1
  summed: bool = False
  transform_gradients: Callable[[Any, jax.Array, jax.Array], Any] | None = None
  transform_clipped: Callable[[Any, jax.Array, jax.Array], Any] | None = None
  next_constants: Callable[[Any, jax.Array], Any] | None = None
  spmd_axis_name: str | None = None


def over_replicas(function: Callable[..., Any], mapped: tuple[bool, ...],
                  spmd_axis_name: str | None = None) -> Callable[..., Any]:
  """Lifts a function of one replica to arguments with a leading [replica] axis.

  One replica is squeezed and expanded instead of mapped: the program is then that of a single run.

  Args:
    function: positional arguments only.
    mapped: for each argument, whether its leaves have the replica axis.
    spmd_axis_name: mesh axis of the replica axis.
  """
  in_axes = tuple(0 if flag else None for flag in mapped)

  def lifted(*args):
    first = next(leaf for flag, arg in zip(mapped, args) if flag for leaf in jax.tree.leaves(arg))
    if first.shape[0] > 1 or spmd_axis_name:
      return jax.vmap(function, in_axes=in_axes, spmd_axis_name=spmd_axis_name)(*args)
    squeezed = [jax.tree.map(lambda x: x[0], arg) if flag else arg
                for flag, arg in zip(mapped, args)]
    return jax.tree.map(lambda x: jnp.asarray(x)[None], function(*squeezed))

  return lifted


def _cut(batch: Any, parts: int) -> Any:
  """Cuts [batch, ...] leaves into [parts, batch / parts, ...], row i to part i modulo `parts`.

  Strided parts keep the rows of a sharded batch on their devices.
  """
  def cut(leaf):
    if leaf.shape[0] % parts:
      raise UserError(f'config.train.accumulate is {parts}, which does not divide a batch of '
                      f'{leaf.shape[0]} rows; choose a divisor of the batch size.')
    return jnp.swapaxes(leaf.reshape((leaf.shape[0] // parts, parts) + leaf.shape[1:]), 0, 1)
  return jax.tree.map(cut, batch)


def loss_and_gradients(loss_fn: Callable[..., Any], tuned: Any, rest: tuple[Any, ...], batch: Any,
                       key: jax.Array, parts: int,
                       summed: bool = False) -> tuple[jax.Array, dict[str, jax.Array], Any]:
  """Differentiates the loss of one batch, in `parts` microbatches one after the other.

  A microbatch counts by metrics['weight'] (for example its number of target tokens; 1 if absent),
  so that a weighted mean over the whole batch does not depend on `parts`.

  Args:
    loss_fn: (tuned, frozen, constants, batch, key) -> (loss [], metrics).
    tuned: the tree to differentiate.
    rest: (frozen, constants).
    batch: dict of [batch, ...] arrays.
    key: key of this step.
    parts: number of microbatches, >= 1.
    summed: add the gradients of microbatches up, each with weight 1; the loss stays a mean.

  Returns:
    (loss [], metrics, gradients).
  """
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
  if parts == 1:
    (loss, metrics), grads = value_and_grad(tuned, *rest, batch, key)
    return loss, dict(metrics), grads

  def body(total, part):
    index, rows = part
    (loss, metrics), grads = value_and_grad(tuned, *rest, rows, jax.random.fold_in(key, index))
    metrics = {'weight': jnp.ones((), jnp.float32), **metrics, 'loss': loss}
    weight = metrics['weight'].astype(jnp.float32)
    factor = 1.0 if summed else weight
    return jax.tree.map(lambda t, g: t + factor * g, total, grads), metrics

  zeros = jax.tree.map(jnp.zeros_like, tuned)
  grads, metrics = jax.lax.scan(body, zeros, (jnp.arange(parts), _cut(batch, parts)))
  weights = metrics.pop('weight').astype(jnp.float32)
  total = jnp.maximum(weights.sum(), jnp.finfo(jnp.float32).tiny)
  means = jax.tree.map(lambda m: jnp.tensordot(weights, m.astype(jnp.float32), 1) / total, metrics)
  grads = grads if summed else jax.tree.map(lambda g: g / total, grads)
  return means.pop('loss'), {**means, 'weight': weights.sum()}, grads


def make_train_step(loss_fn: Callable[..., Any], tx: optax.GradientTransformationExtraArgs,
                    schedule: Callable[..., Any], options: StepOptions = StepOptions(),
                    state_shardings: Any = None) -> Callable[..., Any]:
  """Makes the jitted step (state, frozen, batch, rates) -> (state, metrics).

  Args:
    loss_fn: loss of ONE replica, (tuned, frozen, constants, batch, key) -> (loss [], metrics).
    tx: optimiser that takes `learning_rate`, see `optimisers`.
    schedule: (step, peak, warmup, total) -> learning rate, or mapping {group: learning rate}.
    options: see `StepOptions`.
    state_shardings: of the new state, as `Placement.state` gives them; None leaves them to jit.

  Returns:
    Step; the state is donated, `frozen` (no replica axis) is not. Batch leaves are [replica, batch,
    ...]. Metrics are [replica, ...]: those of `loss_fn`, loss, grad_norm (before clipping),
    learning_rate and finite. A replica that is not active, has made its total steps or met a
    non-finite value keeps its tuned leaves, moments and constants.
  """
  def one_replica(mine: RunState, rates: Rates, batch, frozen, step):
    live = mine.active & (step < rates.total) & (mine.first_bad_step < 0)
    key = jax.random.fold_in(jax.random.wrap_key_data(mine.key), step)
    loss, metrics, grads = loss_and_gradients(
        loss_fn, mine.tuned, (frozen, mine.constants), batch, key, options.accumulate,
        options.summed)
    if options.transform_gradients:
      grads = options.transform_gradients(grads, key, step)
    grads, norm = optimisers.clip_by_global_norm(grads, options.clip_norm)
    if options.transform_clipped:
      grads = options.transform_clipped(grads, key, step)
    rate = schedule(step, rates.peak, rates.warmup, rates.total)
    updates, moments = tx.update(grads, mine.moments, mine.tuned, learning_rate=rate)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    advance = options.next_constants or (lambda constants, _: constants)
    new = (optax.apply_updates(mine.tuned, updates), moments, advance(mine.constants, step + 1))
    old = (mine.tuned, mine.moments, mine.constants)
    tuned, moments, constants = jax.tree.map(
        lambda a, b: jnp.where(live & finite, a, b), new, old)
    bad = jnp.where(live & ~finite, step + 1, mine.first_bad_step)
    named = rate if isinstance(rate, Mapping) else {'': rate}
    metrics |= {'loss': loss, 'grad_norm': norm, 'finite': finite,
                **{f'learning_rate{name and "_" + name}': value for name, value in named.items()}}
    return mine.replace(tuned=tuned, moments=moments, constants=constants,
                        first_bad_step=bad), metrics

  every = over_replicas(one_replica, (True, True, True, False, False), options.spmd_axis_name)

  def train_step(state: RunState, frozen, batch, rates: Rates):
    new, metrics = every(state.replace(step=None), rates, batch, frozen, state.step)
    return new.replace(step=state.step + 1), metrics

  if state_shardings is None:
    return jax.jit(train_step, donate_argnums=0)
  return jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings, None))
