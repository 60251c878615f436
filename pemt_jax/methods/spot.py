"""SPoT: first values of a prompt from prompts of source tasks (Vu et al. 2022)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST
WEIGHTINGS = ('copy', 'similarity', 'random')


def cosine_sums(sources: jax.Array, target: jax.Array) -> jax.Array:
  """Sum over the rows of the cosine of each row to the same row of the target.

  Args:
    sources: [expert, prompt, embed].
    target: [prompt, embed].

  Returns:
    [expert] float32.
  """
  sources, target = (jnp.asarray(a, jnp.float32) for a in (sources, target))
  unit = lambda a: a / jnp.maximum(jnp.linalg.norm(a, axis=-1, keepdims=True), 1e-8)
  return jnp.einsum('npe,pe->n', unit(sources), unit(target), precision=HIGHEST)


def similarity_weights(sources: jax.Array, target: jax.Array) -> jax.Array:
  """`cosine_sums`, divided by their sum: [expert]."""
  sums = cosine_sums(sources, target)
  return sums / jnp.sum(sums)


def mix(sources: jax.Array, weights: jax.Array) -> jax.Array:
  """Weighted sum of prompts: [expert, prompt, embed], [expert] -> [prompt, embed]."""
  sources, weights = (jnp.asarray(a, jnp.float32) for a in (sources, weights))
  return jnp.einsum('n,npe->pe', weights, sources, precision=HIGHEST)
