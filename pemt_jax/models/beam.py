"""Beam search with static shapes, with the rules of Hugging Face transformers 5.

`running` beams are open hypotheses; the `pool` holds the best finished ones of each example. Each
step extends the running beams to 2 * beams candidates: at most `beams` of them can be eos, so that
at least `beams` stay open. Candidates that end enter the pool only from the best `beams` places.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from pemt_jax.models.decoding import Cache, GenerationConfig, Step, any_row, process_scores

# Added to scores that must lose. Finite: minus infinity belongs to the constraints.
_LOSES = -1e9


def expand_to_beams(tree: Any, beams: int, axis: int = 1) -> Any:
  """Repeats each row of a pytree `beams` times, copies of one row next to each other.

  Args:
    tree: pytree of arrays with rows on `axis`.
    beams: number of copies.
    axis: the axis of rows: 1 for a cache, 0 for inputs and encoder states.

  Returns:
    The pytree with rows * beams rows.
  """
  return jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=axis), tree)


class _Search(NamedTuple):
  """The carry of the loop."""

  position: jax.Array  # [] int32: position of the last token of the running beams
  running: jax.Array  # [batch, beams, max_length] int32, best first
  running_scores: jax.Array  # [batch, beams] sums of log-probabilities
  pool: jax.Array  # [batch, beams, max_length] int32, best first
  pool_scores: jax.Array  # [batch, beams] sums divided by length^penalty
  pool_filled: jax.Array  # [batch, beams] bool: the place holds a finished hypothesis
  improvable: jax.Array  # [batch] bool: a running beam may still enter the pool
  cache: Cache


def beam_search(
    step: Step,
    cache: Cache,
    batch_size: int,
    config: GenerationConfig,
    axis_name: str | None = None,
    starts: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Finds the finished hypothesis with the best length-normalised score.

  Scores and tokens are those of Hugging Face, up to one difference: after eos the output holds
  padding, where Hugging Face repeats eos if the padding id is 0.

  Args:
    step: the decoding step with rows = batch * beams, an example's beams next to each other.
    cache: pytree of arrays [layer, batch * beams, ...], equal for all beams of an example; see
      `expand_to_beams`. Leaves that `step` returns as they came are not reordered: cross-attention
      keys and values cost nothing here.
    batch_size: number of examples.
    config: the options.
    axis_name: name of the enclosing `vmap` axis, or None. If given, all its entries run until the
      last one has ended: equal results, and no copy of the cache to hold the ended entries.
    starts: [batch] first token of each output; None takes `config.start_id`.

  Returns:
    tokens [batch, max_length] int32: the start token, the output, eos, padding.
    scores [batch] float32: sum of log-probabilities / length^length_penalty.
  """
  places = (batch_size, config.num_beams)
  tokens = jnp.full((*places, config.max_length), config.pad_id, jnp.int32)
  tokens = tokens.at[..., 0].set(config.start_id if starts is None else starts[:, None])
  lost = jnp.full(places, _LOSES, jnp.float32)
  start = _Search(
      position=jnp.int32(0),
      running=tokens,
      running_scores=lost.at[:, 0].set(0.0),  # equal beams: only the first may be extended
      pool=tokens,
      pool_scores=lost,
      pool_filled=jnp.zeros(places, bool),
      improvable=jnp.ones(batch_size, bool),
      cache=cache,
  )

  def unfinished(search):
    open_rows = search.improvable
    if config.early_stopping is True:
      open_rows &= ~jnp.all(search.pool_filled, axis=-1)
    return (search.position < config.max_length - 1) & any_row(open_rows, axis_name)

  result = lax.while_loop(unfinished, lambda search: _advance(search, step, config), start)
  return result.pool[:, 0], result.pool_scores[:, 0]


def _advance(search: _Search, step: Step, config: GenerationConfig) -> _Search:
  """Extends every running beam by one token."""
  candidates, scores, parents, cache = _candidates(search, step, config)
  beams, length = config.num_beams, search.position + 1
  last = lax.dynamic_index_in_dim(candidates, length, axis=2, keepdims=False)
  ended = (last == config.eos_id) | (length >= config.max_length - 1)

  running_scores, kept = lax.top_k(scores + _LOSES * ended, beams)
  running = _take_beams(candidates, kept)
  parents = _take_beams(parents, kept)
  cache = jax.tree.map(
      lambda new, old: new if new is old else _reorder(new, parents), cache, search.cache
  )

  enters = ended & (jnp.arange(2 * beams) < beams)
  closed = ~search.improvable
  if config.early_stopping is True:
    closed |= jnp.all(search.pool_filled, axis=-1)
  divisors = _divisors(config)
  normalised = scores / divisors[length] + _LOSES * ~enters + _LOSES * closed[:, None]
  pool_scores, best = lax.top_k(jnp.concatenate([search.pool_scores, normalised], 1), beams)
  pool = _take_beams(jnp.concatenate([search.pool, candidates], 1), best)
  pool_filled = _take_beams(jnp.concatenate([search.pool_filled, enters], 1), best)

  reachable = _reachable(running_scores[:, 0], scores[:, 0], length, config)
  worst = jnp.where(jnp.all(pool_filled, axis=-1), jnp.min(pool_scores, axis=-1), _LOSES)
  return _Search(
      position=length,
      running=running,
      running_scores=running_scores,
      pool=pool,
      pool_scores=pool_scores,
      pool_filled=pool_filled,
      improvable=search.improvable & (reachable > worst),
      cache=cache,
  )


def _candidates(search: _Search, step: Step, config: GenerationConfig):
  """Best extensions of the running beams: [batch, 2 * beams] tokens, scores, parents; the cache."""
  batch, beams, max_length = search.running.shape
  flat = search.running.reshape(batch * beams, max_length)
  current = lax.dynamic_index_in_dim(flat, search.position, axis=1, keepdims=False)
  logits, cache = step(current, search.position, search.cache)
  scores = jax.nn.log_softmax(logits.astype(jnp.float32))
  scores = process_scores(scores, flat, search.position, config)
  vocab = scores.shape[-1]
  scores = scores.reshape(batch, beams, vocab) + search.running_scores[..., None]
  scores, index = lax.top_k(scores.reshape(batch, beams * vocab), 2 * beams)
  parents = index // vocab
  candidates = _take_beams(search.running, parents)
  candidates = lax.dynamic_update_index_in_dim(
      candidates, index % vocab, search.position + 1, axis=2
  )
  return candidates, scores, parents, cache


def _take_beams(x: jax.Array, index: jax.Array) -> jax.Array:
  """Selects beams of each example: x [batch, beams, ...], index [batch, chosen]."""
  return jax.vmap(lambda row, chosen: row[chosen])(x, index)


def _reorder(leaf: jax.Array, parents: jax.Array) -> jax.Array:
  """Gives each running beam the cache of its parent: leaf [layer, batch * beams, ...]."""
  batch, beams = parents.shape
  # Beams are gathered inside their example, so that a sharded batch needs no communication.
  split = leaf.reshape(leaf.shape[0], batch, beams, *leaf.shape[2:])
  return jax.vmap(_take_beams, in_axes=(0, None))(split, parents).reshape(leaf.shape)


def _reachable(running: jax.Array, candidate: jax.Array, length: jax.Array,
               config: GenerationConfig) -> jax.Array:
  """Score [batch] that an open beam may still reach; see `GenerationConfig.early_stopping`."""
  divisors = _divisors(config)
  if config.early_stopping == 'candidates':
    return candidate / divisors[length + 1]
  optimistic = config.early_stopping == 'never' and config.length_penalty > 0
  return running / divisors[config.max_length - 1 if optimistic else length]


def _divisors(config: GenerationConfig) -> jax.Array:
  """Score divisors length^penalty for lengths 0 ... max_length; entry 0 is not used."""
  lengths = np.maximum(np.arange(config.max_length + 1, dtype=np.float64), 1.0)
  return jnp.asarray(lengths**config.length_penalty, jnp.float32)
