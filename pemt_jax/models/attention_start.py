"""Attention that looks somewhere before it has learned: a start for a model trained on little.

From random weights a small T5 learns for thousands of steps what stands in the targets alone, and
its decoder may never read the encoder. Queries and keys that match equal tokens (the mimetic start
of Trockman and Kolter 2023, arXiv 2305.09828) let a sentinel find its own place in the input at
once, and position biases that favour neighbours bring the words around it there.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from pemt_jax.models.layers import relative_buckets
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree, flatten, unflatten

# Distances to the keys that each of the first heads favours.
_ENCODER = ((-1,), (1,), (-2, -3), (2, 3))
_DECODER = ((-1,), (-2,))
_FAVOUR = 4.0  # added to the logit of a favoured distance
_MATCH = 8.0  # logit, in each head, of a token with itself where a layer reads nothing else


def matching_attention(params: Tree, config: T5Config, seed: int) -> Tree:
  """Returns parameters whose cross-attention matches tokens and whose biases favour neighbours.

  Args:
    params: of a T5, layers stacked.
    config: its shapes.
    seed: of the projections that queries and keys share.
  """
  flat, draws = dict(flatten(params)), np.random.default_rng(seed)
  place = 'decoder/layers/cross_attention/{}/kernel'
  layers, _, inner = flat[place.format('q')].shape
  size = np.sqrt(_MATCH / config.kv)
  shared = np.stack([size * _orthogonal(draws, config.embed, inner) for _ in range(layers)])
  for name in ('q', 'k'):
    flat[place.format(name)] = shared.astype(np.float32)
  for stack, favoured in (('encoder', _ENCODER), ('decoder', _DECODER)):
    path = f'{stack}/relative_bias/embedding'
    flat[path] = _favouring(flat[path], favoured, stack == 'encoder', config)
  return unflatten(flat)


def _orthogonal(draws, rows, columns):
  """[rows, columns] whose shorter side is orthonormal, with squared columns of 1 on average."""
  long, short = max(rows, columns), min(rows, columns)
  found = np.linalg.qr(draws.standard_normal((long, short)))[0] * np.sqrt(long / rows)
  return found if rows == long else found.T


def _favouring(table, favoured, bidirectional, config):
  """The bias table [bucket, head] with more for the favoured distances of each head."""
  table = np.array(table, np.float32)
  for head, distances in zip(range(config.heads), favoured):
    rows = np.unique(relative_buckets(jnp.array(distances), bidirectional, config.relative_buckets,
                                      config.relative_max_distance))
    table[rows, head] += _FAVOUR
  return table
