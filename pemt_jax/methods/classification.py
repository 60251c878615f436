"""Losses of heads for whole texts: classes and regressions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pemt_jax.methods.base import Method, Metrics
from pemt_jax.models.roberta import Roberta
from pemt_jax.trees import Tree


HEAD = ('head/.*', 'head')


def with_head(method: Method) -> Method:
  """The method with a trained head, in the learning-rate group 'head'."""
  if HEAD in method.tuned:
    return method
  return dataclasses.replace(method, tuned=(HEAD, *method.tuned))


def text_loss(logits: jax.Array, labels: jax.Array,
              rows: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Sum over real rows of -log p of the class, or of squared errors, and the number of rows.

  Args:
    logits: [batch, labels] float32; one label is a regression.
    labels: [batch] ids of classes, or numbers.
    rows: [batch] 1 for real rows.

  Returns:
    ([] nats or squared units, [] rows).
  """
  if logits.shape[-1] == 1:
    each = jnp.square(logits[:, 0] - labels.astype(jnp.float32))
  else:
    chosen = jnp.take_along_axis(logits, labels.astype(jnp.int32)[:, None], axis=-1)[:, 0]
    each = jax.nn.logsumexp(logits, axis=-1) - chosen
  return jnp.sum(each * rows), jnp.sum(rows)


def make_text_loss(model: Roberta, method: Method) -> Callable[..., tuple[jax.Array, Metrics]]:
  """Returns loss_fn(tuned, frozen, constants, batch, key) -> (loss [], metrics) of one replica.

  A batch has `inputs`, `inputs_mask`, `labels` [batch], and may have `token_types` and `task_ids`.
  The loss is the mean over real rows plus the method's extra loss; `metrics['weight']` is the
  number of real rows.
  """
  name = 'squared_error' if model.labels == 1 else 'cross_entropy_nats'

  def loss_fn(tuned: Tree, frozen: Tree, constants: Tree, batch: dict[str, Any],
              key: jax.Array | None) -> tuple[jax.Array, Metrics]:
    variables = method.variables(tuned, frozen, constants)
    logits, aux = model.apply(variables, batch['inputs'], batch['inputs_mask'],
                              batch.get('token_types'), batch.get('task_ids'), key)
    rows = jnp.max(batch['inputs_mask'], axis=1).astype(jnp.float32)
    total, weight = text_loss(logits, batch['labels'], rows)
    mean = total / jnp.maximum(weight, 1.0)
    extra, metrics = method.auxiliary(aux, rows)
    return mean + extra, metrics | {name: mean, 'weight': weight}

  return loss_fn
