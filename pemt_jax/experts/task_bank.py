"""Banks whose experts are chosen by the task of each row: batches of mixed tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Delta, Values, Weight, Weights
from pemt_jax.models.sites import Aux, Base, Site, SiteContext, StackShape


@dataclasses.dataclass(frozen=True)
class TaskBank(Delta):
  """`count` experts of one delta; row b of a batch uses expert `task_ids[b]`.

  Weights have a leading `expert` axis, behind the axis of layers. What a delta prepares is
  prepared once for every expert. Constants are shared, so prompts of a bank have one length.

  Attributes:
    delta: what is banked.
    count: experts.
    members: for each task id its expert; () gives each task its own.
    shared: beginnings of the names of weights at sites that all experts share, such as
      'post_norm/'.
    one_task: all rows of every batch have the task of the first row; cheaper than rows of their
      own.
  """

  delta: Delta
  count: int
  members: tuple[int, ...] = ()
  shared: tuple[str, ...] = ()
  one_task: bool = False

  @property
  def key_positions(self) -> int:
    """Those of the delta."""
    return self.delta.key_positions

  @property
  def packs(self) -> bool:
    """As the delta: the examples of a row have one task."""
    return self.delta.packs

  @property
  def front_positions(self) -> int:
    """Those of the delta."""
    return self.delta.front_positions

  @property
  def prepares(self) -> bool:
    """As the delta."""
    return self.delta.prepares

  def _stack(self, weights: Weights) -> Weights:
    return {name: weight if weight.constant else weight.stacked(self.count)
            for name, weight in weights.items()}

  def _is_shared(self, name: str, weight: Weight) -> bool:
    return weight.constant or name.startswith(self.shared)

  def weights(self, site: Site) -> Weights:
    """[expert, ...] of the delta's; shared ones as they are."""
    return {name: weight if self._is_shared(name, weight) else weight.stacked(self.count)
            for name, weight in self.delta.weights(site).items()}

  def stack_weights(self, shape: StackShape) -> Weights:
    """[expert, ...] of the delta's."""
    return self._stack(self.delta.stack_weights(shape))

  def model_weights(self, shapes: Mapping[str, StackShape]) -> Weights:
    """[expert, ...] of the delta's."""
    return self._stack(self.delta.model_weights(shapes))

  def prepare(self, values: Values, shape: StackShape, context: SiteContext) -> tuple[Any, Any]:
    """The delta's arrays of every expert: shared [expert, ...], per_layer [layer, expert, ...]."""
    shared, per_layer = jax.vmap(
        lambda own, model: self.delta.prepare(own, shape, context.replace(model=model)),
        out_axes=(0, 1))(values, context.model)
    return shared, per_layer

  def act(self, values: Values, base: Base, x: Any, context: SiteContext,
          site: Site) -> tuple[Any, Aux]:
    """Each row with the values of its expert."""
    ids = experts_of(context.task_ids, self.members, self.one_task)
    weights = self.delta.weights(site)
    own = {name: value if self._is_shared(name, weights[name]) else rows_of(value, ids)
           for name, value in values.items()}
    pick = lambda tree: jax.tree.map(lambda a: rows_of(a, ids), tree)
    context = context.replace(shared=pick(context.shared), per_layer=pick(context.per_layer),
                              model=pick(context.model))
    return self.delta.act(own, base, x, context, site)


def experts_of(task_ids: jax.Array, members: tuple[int, ...], one_task: bool) -> jax.Array:
  """Expert of each row [batch], or [] of all rows where they have one task.

  Args:
    task_ids: [batch].
    members: for each task id its expert; () where they are the same.
    one_task: whether all rows have the task of the first row.
  """
  ids = task_ids[0] if one_task else task_ids
  return jnp.asarray(members)[ids] if members else ids


def rows_of(value: jax.Array, ids: jax.Array) -> jax.Array:
  """Values [expert, ...] -> [batch, ...]; vectors become [batch, 1, features] (`deltas.base`).

  One id [] for all rows gives values without a batch axis.
  """
  if value.ndim == 0:  # a constant that the experts share
    return value
  rows = value[ids]
  return rows[:, None, :] if ids.ndim and rows.ndim == 2 else rows
