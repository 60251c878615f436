"""What the loop must be told about a job; it knows nothing else of methods, models and data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.sharding.placement import Placement
from pemt_jax.training import rules as rules_lib

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Replica:
  """One of the independent runs of a program.

  Attributes:
    name: unique in the run, a valid folder name; keys rng and data.
    seed: seed of initialisation, dropout and data order, >= 0.
    learning_rate: peak rate, >= 0.
    warmup_steps: steps from rate 0 to the peak, >= 0.
    total_steps: updates to make, >= 1.
  """

  name: str
  seed: int
  learning_rate: float
  warmup_steps: int
  total_steps: int


class Stream(Protocol):
  """Endless, checkpointable batches of one replica.

  Where several processes share batches, it also has `batch_size` and `keep`, see
  `data.pipeline.Stream`.
  """

  def __next__(self) -> Batch:
    """Returns the next batch, a dict of [batch, ...] arrays."""

  def get_state(self) -> dict[str, Any]:
    """Returns the position behind the last batch, JSON-able."""

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to a position of `get_state`."""


def stack_batches(batches: Sequence[Batch]) -> Batch:
  """Stacks equal batches of several replicas to a dict of [replica, batch, ...]."""
  return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def batch_ids(batch: Batch) -> list[int]:
  """Returns the example ids of one replica's batch without filler rows; empty if it has none."""
  return [int(i) for i in np.ravel(batch.get('example_ids', ())) if i >= 0]


def count_tokens(batch: Batch) -> int:
  """Returns the number of non-padding tokens: the sum of all leaves called `*_mask`."""
  return int(sum(np.sum(leaf) for name, leaf in batch.items() if name.endswith('_mask')))


@dataclasses.dataclass
class Experiment:
  """A job for `training.loop.train`.

  Attributes:
    replicas: the runs, at least one; names are unique.
    frozen: parameters that all replicas read and nobody changes; may be empty.
    init: replica -> (tuned, constants), nested dicts of arrays without a replica axis.
    loss_fn: (tuned, frozen, constants, batch, key) -> (loss [], metrics) of ONE replica. metrics is
      a dict of arrays; metrics['weight'] is what the loss is a mean over, see
      `step.loss_and_gradients`.
    stream: replica -> `Stream` of training batches.
    evaluate: (tuned, frozen, constants, replicas, split) -> one {metric: float} per replica; trees
      have the replica axis in the order of `replicas`. An empty dict says: no such split.
    steps_per_epoch: replica -> updates per pass over its data, >= 1.
    stack: batches of several replicas -> one batch with a replica axis.
    batch_ids: batch of one replica -> ids of its examples, for error messages.
    count_tokens: batch of one replica -> number of non-padding tokens.
    rules: (path pattern, learning-rate group or 'frozen') as given to `rules.split_params`.
    transform_gradients: see `step.StepOptions`.
    transform_clipped: see `step.StepOptions`.
    next_constants: see `step.StepOptions`.
    watch: (tuned, frozen, constants, replicas, step, workdir) -> None, called at every evaluation,
      as `evaluate` is, to write what the run shall keep of it; or None.
    notes: what environment.json says besides, such as which kernels a program uses.
    placement: where arrays stand; `frozen` stands there already. Where the mesh has an axis for
      replicas, finished ones stay in the state.
  """

  replicas: tuple[Replica, ...]
  frozen: Any
  init: Callable[[Replica], tuple[Any, Any]]
  loss_fn: Callable[..., Any]
  stream: Callable[[Replica], Stream]
  evaluate: Callable[..., list[Mapping[str, float]]]
  steps_per_epoch: Callable[[Replica], int]
  stack: Callable[[Sequence[Batch]], Batch] = stack_batches
  batch_ids: Callable[[Batch], Sequence[int]] = batch_ids
  count_tokens: Callable[[Batch], int] = count_tokens
  rules: rules_lib.Rules = rules_lib.EVERYTHING
  transform_gradients: Callable[..., Any] | None = None
  transform_clipped: Callable[..., Any] | None = None
  next_constants: Callable[..., Any] | None = None
  watch: Callable[..., None] | None = None
  placement: Placement = Placement()
  notes: Mapping[str, str] = dataclasses.field(default_factory=dict)


def make_replica(name: str, config: Any, steps_per_epoch: int, *, seed: int | None = None,
                 learning_rate: float | None = None, warmup_steps: int | None = None) -> Replica:
  """Builds a replica from `config.train`; arguments that are not None replace its values.

  Args:
    name: name of the replica.
    config: the `train` part of a config.
    steps_per_epoch: updates per pass over the replica's data; counts where `config.steps` is 0.

  Raises:
    UserError: the name is no folder name, or no step is left to make.
  """
  if not name or '/' in name or name.startswith('.'):
    raise UserError(f"'{name}' cannot name a replica; choose a name that can be a folder.")
  total = config.steps or round(config.epochs * steps_per_epoch)
  if total < 1:
    raise UserError(f"Replica '{name}' has {total} training steps (config.train.steps "
                    f'{config.steps}, config.train.epochs {config.epochs}, {steps_per_epoch} steps '
                    'per epoch); set config.train.steps or config.train.epochs higher.')
  return Replica(
      name=name, seed=config.seed if seed is None else seed,
      learning_rate=config.learning_rate if learning_rate is None else learning_rate,
      warmup_steps=config.warmup_steps if warmup_steps is None else warmup_steps,
      total_steps=total)
