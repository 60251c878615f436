"""Model-agnostic meta-learning (Finn et al. 2017, arXiv 1703.03400), as CrossFit uses it.

A batch is a number of episodes. The rows of an episode are of one task: the first half is the
support, the second the query. The loss is that of the query after one step of plain gradient
descent on the support; gradients go through that step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pemt_jax.errors import at_least, number
from pemt_jax.methods.base import LossFunction, Method, Metrics
from pemt_jax.models.layers import fold_name
from pemt_jax.models.products import differentiated_twice
from pemt_jax.models.sites import Plan
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree

NAME = 'maml'


@dataclasses.dataclass(frozen=True)
class MamlOptions:
  """Meta-learning of every parameter of the backbone.

  Attributes:
    inner_rate: rate of the step on the support, >= 0 (published: 3e-5).
    rows: of the support, and of the query; an episode has twice as many.
    second_order: differentiate through the step; False takes its gradient for a constant.
  """

  inner_rate: float = 3e-5
  rows: int = 16
  second_order: bool = True

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: a number out of its range.
    """
    at_least(self, 0, 'inner_rate')
    at_least(self, 1, 'rows')


def after_a_step(loss_fn: LossFunction, options: MamlOptions, summed: bool) -> LossFunction:
  """Returns the loss of the queries of a batch, each after a step on its support.

  Args:
    loss_fn: (tuned, frozen, constants, batch, key) -> (loss [], metrics).
    options: see `MamlOptions`.
    summed: whether the loss is the sum over episodes, otherwise their mean.

  Returns:
    A function of the same form. Its metrics are means over episodes of those of the query, and
    `support_loss`, the loss of the support before the step.

  Raises:
    UserError: (when called) a batch that is no whole number of episodes.
  """
  def meta(tuned: Tree, frozen: Tree, constants: Tree, batch: dict[str, Any],
           key: jax.Array | None) -> tuple[jax.Array, Metrics]:
    rows = len(batch['inputs'])
    number('config.data.batch_size', rows, rows % (2 * options.rows) == 0,
           f'that is a multiple of {2 * options.rows}, the rows of an episode')
    parts = jax.tree.map(
        lambda leaf: leaf.reshape(-1, 2, options.rows, *leaf.shape[1:]), batch)
    noise = lambda index, name: None if key is None else fold_name(
        jax.random.fold_in(key, index), name)

    def episode(_, inside):
      index, own = inside
      half = lambda place: jax.tree.map(lambda leaf: leaf[place], own)
      with differentiated_twice():
        (before, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            tuned, frozen, constants, half(0), noise(index, 'support'))
      if not options.second_order:
        grads = jax.lax.stop_gradient(grads)
      moved = jax.tree.map(lambda value, grad: value - options.inner_rate * grad, tuned, grads)
      loss, metrics = loss_fn(moved, frozen, constants, half(1), noise(index, 'query'))
      return None, (loss, metrics | {'support_loss': before})

    count = rows // (2 * options.rows)
    _, (losses, metrics) = jax.lax.scan(episode, None, (jnp.arange(count), parts))
    loss = losses.sum() if summed else losses.mean()
    return loss, jax.tree.map(lambda values: values.mean(0), metrics)

  return meta


def maml(options: MamlOptions, config: T5Config, prompt_length: int) -> Method:
  """Every parameter of the backbone, learned so that one step on a task helps it."""
  del config, prompt_length
  return Method(NAME, Plan(), (('.*', 'backbone'),),
                transform_loss=lambda loss_fn, summed: after_a_step(loss_fn, options, summed))
