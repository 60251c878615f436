"""Weights of sources from similarities, and the weighted sum (Lv et al. 2023, ACL short 24).

The published merge of a target i is theta_i = sum_{j != i} w_ij theta_j with
w_i = softmax_j(sign * s_ij / temperature) over the other sources: a target never uses itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.errors import UserError, number


def stack_sources(trees: Sequence[Any]) -> Any:
  """Stacks equal trees on a new leading [source] axis."""
  return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


@jax.jit
def weighted_sum(stacked: Any, weights: jax.Array) -> Any:
  """sum_j w_j leaf_j in float32, for every leaf.

  Args:
    stacked: pytree with leaves [source, ...].
    weights: [source], or [target, source] for one sum per target.

  Returns:
    The tree without its source axis, or with a [target] axis in its place; float32.
  """
  weights = jnp.asarray(weights, jnp.float32)

  def mix(leaf):
    return jnp.tensordot(weights, leaf.astype(jnp.float32), axes=(weights.ndim - 1, 0),
                         precision=jax.lax.Precision.HIGHEST)

  return jax.tree.map(mix, stacked)


def average(stacked: Any) -> Any:
  """Plain mean over the sources."""
  count = jax.tree.leaves(stacked)[0].shape[0]
  return weighted_sum(stacked, np.full(count, 1.0 / count))


def softmax_weights(scores: np.ndarray, sign: int, temperature: float) -> np.ndarray:
  """softmax(sign * s / temperature) over the last axis, in float32.

  Args:
    scores: [..., source]; entries of minus or plus infinity that lose get the weight 0.
    sign: 1 where a larger score means more similar, -1 where a smaller one does.
    temperature: above 0, in the unit of the scores.

  Raises:
    UserError: a sign that is not 1 or -1, or a temperature that is not above 0.
  """
  number('the sign of a similarity', sign, sign in (1, -1), 'that is 1 or -1')
  number('the temperature', temperature, temperature > 0, 'above 0')
  logits = np.float32(sign) * np.asarray(scores, np.float32) / np.float32(temperature)
  top = np.max(logits, axis=-1, keepdims=True)
  powers = np.exp(logits - top, dtype=np.float32)
  return powers / np.sum(powers, axis=-1, keepdims=True, dtype=np.float32)


def leave_one_out(targets: Sequence[str], sources: Sequence[str]) -> np.ndarray:
  """[target, source] booleans: which sources a target may use, all but the one of its own name.

  Raises:
    UserError: a target is left without a source.
  """
  allowed = np.array([[source != target for source in sources] for target in targets], bool)
  return _require_sources(allowed.reshape(len(targets), len(sources)), targets)


def within_families(targets: Sequence[str], sources: Sequence[str],
                    families: Mapping[str, Sequence[str]]) -> np.ndarray:
  """As `leave_one_out`, but only sources of the target's family (manual division).

  Args:
    targets: names of rows.
    sources: names of columns.
    families: family -> names of its tasks.

  Raises:
    UserError: a target is in no family or two, or its family has no other source.
  """
  allowed = leave_one_out(targets, sources)
  for row, target in zip(allowed, targets, strict=True):
    own = [name for name, members in families.items() if target in members]
    if len(own) != 1:
      found = f'in {len(own)} families ({", ".join(own)})' if own else 'in no family'
      raise UserError(f"target '{target}' is {found}; list it in one family.")
    row &= np.array([source in families[own[0]] for source in sources], bool)
  return _require_sources(allowed, targets)


def _require_sources(allowed: np.ndarray, targets: Sequence[str]) -> np.ndarray:
  for row, target in zip(allowed, targets, strict=True):
    if not row.any():
      raise UserError(f"target '{target}' has no source but itself; give further sources.")
  return allowed


def mean_weights(allowed: np.ndarray) -> np.ndarray:
  """Equal weights [target, source] over the allowed sources of each target, float32."""
  return (allowed / allowed.sum(axis=1, keepdims=True)).astype(np.float32)


def similarity_weights(scores: np.ndarray, allowed: np.ndarray, sign: int,
                       temperature: float) -> np.ndarray:
  """Softmax weights [target, source] over the allowed sources; the others have the weight 0.

  Args:
    scores: [target, source] similarities.
    allowed: [target, source] booleans.
    sign: see `softmax_weights`.
    temperature: see `softmax_weights`.
  """
  weights = np.zeros(np.shape(scores), np.float32)
  for row, own, chosen in zip(weights, np.asarray(scores), allowed, strict=True):
    row[chosen] = softmax_weights(own[chosen], sign, temperature)
  return weights
