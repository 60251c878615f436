"""The loss of plain text: every token is predicted from those before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pemt_jax.methods.base import LossForm, Method, Metrics, formed_loss
from pemt_jax.models.gpt2 import GPT2
from pemt_jax.trees import Tree

NAME = 'language_modelling'


def is_language(stage: str) -> bool:
  """Whether a stage reads plain text: `language_modelling`, or that and a name of the zoo."""
  return stage == NAME or stage.startswith(f'{NAME}/')


def tuned_by(stage: str) -> str:
  """What a stage tunes, in names of the zoo: 'lora' of 'language_modelling/lora'."""
  return stage.removeprefix(f'{NAME}/')


def next_tokens(batch: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
  """What positions [batch, length - 1] predict, and 1 where both tokens are real."""
  mask = batch['inputs_mask']
  return batch['inputs'][:, 1:], mask[:, 1:] * mask[:, :-1]


def make_language_loss(model: GPT2, method: Method,
                       form: LossForm = LossForm()) -> Callable[..., tuple[jax.Array, Metrics]]:
  """Returns loss_fn(tuned, frozen, constants, batch, key) -> (loss [], metrics) of one replica.

  A batch has `inputs` and `inputs_mask` [batch, length], and may have `task_ids`. The first token
  of a row is not predicted. The rest is as in `methods.base.make_loss`.
  """
  def loss_fn(tuned: Tree, frozen: Tree, constants: Tree, batch: dict[str, Any],
              key: jax.Array | None) -> tuple[jax.Array, Metrics]:
    variables = method.variables(tuned, frozen, constants)

    def apply(key):
      logits, aux = model.apply(variables, batch['inputs'], batch['inputs_mask'],
                                batch.get('task_ids'), key, method='read')
      return logits[:, :-1], aux

    rows = jnp.max(batch['inputs_mask'], axis=1).astype(jnp.float32)
    return formed_loss(method, form, apply, (*next_tokens(batch), rows), key)

  return loss_fn
