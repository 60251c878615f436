"""Learning-rate schedules: pure functions of the number of updates made so far."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike as Array

from pemt_jax.errors import UserError
from pemt_jax.training.rules import FROZEN, Rules


def _warm(step, warmup):
  """Warm-up factor: step / warmup below `warmup` (0 at the first step), then 1."""
  step, warmup = jnp.asarray(step, jnp.float32), jnp.asarray(warmup, jnp.float32)
  return jnp.where(step < warmup, step / jnp.maximum(warmup, 1.0), 1.0)


def _progress(step, warmup, total):
  """Share of the steps after warm-up that are done, in [0, 1]."""
  step, warmup, total = (jnp.asarray(x, jnp.float32) for x in (step, warmup, total))
  return jnp.clip((step - warmup) / jnp.maximum(total - warmup, 1.0), 0.0, 1.0)


def linear_schedule(step: Array, peak: Array, warmup: Array, total: Array,
                    floor: float = 0.0) -> jax.Array:
  """Warm-up from 0 to `peak`, then linear to 0 at `total`; scalars or [replica].

  Behind the warm-up the rate stays at `floor` where it would fall below (`final_lr` of MPOP, Liu et
  al. 2021).
  """
  rate = peak * _warm(step, warmup) * (1.0 - _progress(step, warmup, total))
  return jnp.where(jnp.asarray(step) < jnp.asarray(warmup), rate, jnp.maximum(rate, floor))


def constant_schedule(step: Array, peak: Array, warmup: Array, total: Array) -> jax.Array:
  """Warm-up from 0 to `peak`, then `peak`; scalars or [replica]."""
  del total
  return peak * _warm(step, warmup)


def cosine_schedule(step: Array, peak: Array, warmup: Array, total: Array) -> jax.Array:
  """Warm-up from 0 to `peak`, then half a cosine to 0 at `total`; scalars or [replica]."""
  return peak * _warm(step, warmup) * 0.5 * (1.0 + jnp.cos(jnp.pi * _progress(step, warmup, total)))


def inverse_sqrt_schedule(step: Array, peak: Array, warmup: Array, total: Array) -> jax.Array:
  """Warm-up from 0 to `peak`, then peak * sqrt(warmup / step); scalars or [replica]."""
  del total
  knee = jnp.maximum(jnp.asarray(warmup, jnp.float32), 1.0)
  late = jnp.maximum(jnp.asarray(step, jnp.float32), knee)
  return peak * _warm(step, warmup) * jnp.sqrt(knee / late)


def polynomial_schedule(step: Array, peak: Array, warmup: Array, total: Array, power: float = 1.0,
                        end: float = 1e-7) -> jax.Array:
  """Warm-up from 0 to `peak`, then `end` + (peak - end) * (share of steps left)^power.

  As in Hugging Face `get_polynomial_decay_schedule_with_warmup`; scalars or [replica].

  Args:
    step: updates made so far.
    peak: highest rate.
    warmup: steps from 0 to it.
    total: step from which the rate is `end`.
    power: of the share of steps that are left; 1 is linear.
    end: last rate, an absolute value below `peak`.
  """
  left = 1.0 - _progress(step, warmup, total)
  falling = end + (peak - end) * left**power
  return jnp.where(jnp.asarray(step) < jnp.asarray(warmup), peak * _warm(step, warmup), falling)


def restarts_schedule(step: Array, peak: Array, warmup: Array, total: Array,
                      cycles: int = 1) -> jax.Array:
  """Warm-up from 0 to `peak`, then `cycles` halves of a cosine from `peak` to 0, 0 from `total` on.

  As in Hugging Face `get_cosine_with_hard_restarts_schedule_with_warmup`; scalars or [replica]. The
  place in a cycle is exact, so that a restart comes at its step.
  """
  step, warmup, total = (jnp.asarray(x, jnp.float32) for x in (step, warmup, total))
  span = jnp.maximum(total - warmup, 1.0)
  place = jnp.mod(cycles * jnp.maximum(step - warmup, 0.0), span) / span
  rate = peak * _warm(step, warmup) * 0.5 * (1.0 + jnp.cos(jnp.pi * place))
  return jnp.where(step - warmup >= span, 0.0, rate)


SCHEDULES: dict[str, Callable[..., jax.Array]] = {
    'linear': linear_schedule,
    'constant': constant_schedule,
    'cosine': cosine_schedule,
    'inverse_sqrt': inverse_sqrt_schedule,
    'polynomial': polynomial_schedule,
    'cosine_w_restarts': restarts_schedule,
}
# Schedule -> its options: argument and field of `config.train`.
OPTIONS: Mapping[str, Mapping[str, str]] = {
    'linear': {'floor': 'schedule_floor'},
    'polynomial': {'power': 'schedule_power', 'end': 'schedule_end'},
    'cosine_w_restarts': {'cycles': 'schedule_cycles'},
}


@dataclasses.dataclass(frozen=True)
class FirstSteps:
  """A run whose first steps move one group only (Zeng et al. 2023: scores of masks).

  Attributes:
    group: learning-rate group that moves.
    steps: number of these steps; the schedule of the others starts behind them.
    factor: of the peak rate, which is the group's rate then.
  """

  group: str
  steps: int = 1
  factor: float = 3.0


def grouped(schedule: Callable[..., jax.Array], groups: Sequence[str],
            multipliers: Mapping[str, float],
            first: FirstSteps) -> Callable[..., dict[str, jax.Array]]:
  """Returns a schedule with a rate for each group, behind first steps of one of them.

  As published, that group keeps its first rate for one step more if its factor is 1: the original
  program sets its rate only where it differs.

  Args:
    schedule: a value of `SCHEDULES`.
    groups: all learning-rate groups.
    multipliers: group -> factor of its rate; 1 if absent.
    first: what moves first.

  Returns:
    (step, peak, warmup, total) -> {group: rate}.
  """
  def rates(step, peak, warmup, total):
    step = jnp.asarray(step, jnp.int32)
    base = schedule(jnp.maximum(step - first.steps, 0), peak, warmup, total)
    found = {}
    for group in groups:
      factor = multipliers.get(group, 1.0)
      alone = group == first.group
      early = step <= first.steps if alone and factor == 1.0 else step < first.steps
      found[group] = jnp.where(early, peak * first.factor if alone else 0.0, base * factor)
    return found

  return rates


def make_schedule(config: Any, rules: Rules) -> Callable[..., Any]:
  """Builds the schedule that `config.train` names.

  Args:
    config: the `train` part of a config, see `training.config`.
    rules: ordered (path pattern, learning-rate group or 'frozen').

  Returns:
    (step, peak, warmup, total) -> rate, or {group: rate} where one group moves first.

  Raises:
    UserError: `first_group` is no group of the rules.
  """
  schedule = SCHEDULES[config.schedule]
  own = {name: config[field] for name, field in OPTIONS.get(config.schedule, {}).items()}
  if own:
    schedule = functools.partial(schedule, **own)
  if not config.first_group:
    return schedule
  groups = sorted({group for _, group in rules if group != FROZEN})
  if config.first_group not in groups:
    raise UserError(f"config.train.first_group is '{config.first_group}'; the trainable rules have"
                    f" {', '.join(groups)}.")
  return grouped(schedule, groups, dict(config.group_multipliers),
                 FirstSteps(config.first_group, config.first_steps, config.first_factor))
