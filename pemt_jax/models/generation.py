"""Cached decoding with static shapes, and label scores.

Everything here is a pure function of the decoding step that `pemt_jax.models.decoding` defines, and
runs under `jit` and `vmap`.
"""

from __future__ import annotations

from typing import Callable

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from pemt_jax.models.beam import beam_search, expand_to_beams
from pemt_jax.models.decoding import (
    Cache, GenerationConfig, Sampling, Step, any_row, process_scores)


def generate(
    step: Step,
    cache: Cache,
    batch_size: int,
    config: GenerationConfig,
    axis_name: str | None = None,
    starts: jax.Array | None = None,
) -> jax.Array:
  """Decodes greedily for one beam and by beam search for more, or chooses one of the labels.

  Args:
    step: a decoding step that works for any number of rows.
    cache: pytree of arrays [layer, batch, ...], not expanded to beams.
    batch_size: number of examples.
    config: the options.
    axis_name: name of the enclosing `vmap` axis; see `beam_search`.
    starts: [batch] first token of each output, such as the last one of a text that is continued;
      None takes `config.start_id`.

  Returns:
    [batch, max_length] int32 tokens: the start token, the output, eos, padding.
  """
  if config.labels:
    return best_label(step, cache, batch_size, config)
  if config.num_beams == 1:
    return greedy(step, cache, batch_size, config, axis_name, starts)
  cache = expand_to_beams(cache, config.num_beams)
  return beam_search(step, cache, batch_size, config, axis_name, starts)[0]


def greedy(
    step: Step,
    cache: Cache,
    batch_size: int,
    config: GenerationConfig,
    axis_name: str | None = None,
    starts: jax.Array | None = None,
) -> jax.Array:
  """Decodes the most probable token at each position.

  The loop ends when every row has ended, so that short answers cost short loops.

  Args:
    step: the decoding step with rows = batch.
    cache: pytree of arrays [layer, batch, ...].
    batch_size: number of rows.
    config: the options; those of beam search are ignored.
    axis_name: name of the enclosing `vmap` axis, or None. If given, all its entries run until the
      last one has ended: equal results, and no copy of the cache to hold the ended entries.
    starts: see `generate`.

  Returns:
    [batch, max_length] int32 tokens: the start token, the output, eos, padding.
  """
  choose = lambda scores, position: jnp.argmax(scores, axis=-1)
  return _one_by_one(step, cache, batch_size, config, axis_name, starts, choose)


def sample(
    step: Step,
    cache: Cache,
    batch_size: int,
    config: GenerationConfig,
    key: jax.Array,
    sampling: Sampling = Sampling(),
    starts: jax.Array | None = None,
) -> jax.Array:
  """Draws each token from the model's distribution.

  Args:
    step: the decoding step with rows = batch.
    cache: pytree of arrays [layer, batch, ...].
    batch_size: number of rows.
    config: the options; those of beam search are ignored.
    key: of the draws.
    sampling: how the distribution is changed.
    starts: see `generate`.

  Returns:
    [batch, max_length] int32 tokens: the start token, the output, eos, padding.
  """
  def choose(scores, position):
    return jax.random.categorical(jax.random.fold_in(key, position), sampling(scores))

  return _one_by_one(step, cache, batch_size, config, None, starts, choose)


def _one_by_one(step, cache, batch_size, config, axis_name, starts, choose):
  """Takes one token after the other; `choose` is (scores [rows, vocab], position) -> [rows]."""
  tokens = jnp.full((batch_size, config.max_length), config.pad_id, jnp.int32)
  tokens = tokens.at[:, 0].set(config.start_id if starts is None else starts)

  def unfinished(carry):
    position, _, ended, _ = carry
    return (position < config.max_length - 1) & any_row(~ended, axis_name)

  def advance(carry):
    position, tokens, ended, cache = carry
    current = lax.dynamic_index_in_dim(tokens, position, axis=1, keepdims=False)
    logits, cache = step(current, position, cache)
    scores = process_scores(logits, tokens, position, config)
    chosen = choose(scores, position).astype(jnp.int32)
    chosen = jnp.where(ended, config.pad_id, chosen)
    tokens = lax.dynamic_update_index_in_dim(tokens, chosen, position + 1, axis=1)
    return position + 1, tokens, ended | (chosen == config.eos_id), cache

  start = (jnp.int32(0), tokens, jnp.zeros(batch_size, bool), cache)
  return lax.while_loop(unfinished, advance, start)[1]


def best_label(step: Step, cache: Cache, batch_size: int, config: GenerationConfig) -> jax.Array:
  """The most probable label of each example; all are scored side by side, like beams.

  Args:
    step: a decoding step that works for any number of rows.
    cache: pytree of arrays [layer, batch, ...], not expanded, with room for `max_length` tokens.
    batch_size: number of examples.
    config: the options; `labels` have fewer tokens than `max_length`.

  Returns:
    As `generate`.
  """
  sizes = np.array([len(label) for label in config.labels])
  mask = np.arange(config.max_length - 1) < sizes[:, None]
  labels = np.full(mask.shape, config.pad_id, np.int32)
  labels[mask] = np.concatenate(config.labels)
  tokens, counts = jnp.asarray(labels), jnp.asarray(mask, jnp.float32)
  scores = label_scores(step, expand_to_beams(cache, len(labels)), batch_size,
                        tokens[:, :sizes.max()], counts[:, :sizes.max()], config.start_id)
  chosen = tokens[jnp.argmax(scores, axis=1)]
  return jnp.pad(chosen, ((0, 0), (1, 0)), constant_values=config.start_id)


def label_scores(
    step: Step,
    cache: Cache,
    batch_size: int,
    labels: jax.Array,
    labels_mask: jax.Array,
    start_id: int = 0,
) -> jax.Array:
  """Log-probability of each label's token sequence, through the cached step.

  Args:
    step: the decoding step with rows = batch * labels, an example's labels next to each other.
    cache: pytree of arrays [layer, batch * labels, ...]; see `expand_to_beams`.
    batch_size: number of examples.
    labels: [labels, length] tokens, eos included, or [batch, labels, length].
    labels_mask: like `labels`; 1 for tokens that count, 0 for padding.
    start_id: first token that the decoder reads.

  Returns:
    [batch, labels] sums of log-probabilities in nats.
  """
  shape = (batch_size, *labels.shape[-2:])
  targets, mask = (jnp.broadcast_to(x, shape).reshape(-1, shape[-1]) for x in (labels, labels_mask))
  inputs = shift_right(targets, start_id)

  def advance(carry, column):
    total, cache = carry
    position, current, target, counts = column
    logits, cache = step(current, position, cache)
    return (total + log_probability(logits, target) * counts, cache), None

  columns = (jnp.arange(shape[-1], dtype=jnp.int32), inputs.T, targets.T, mask.T)
  (total, _), _ = lax.scan(advance, (jnp.zeros(len(targets), jnp.float32), cache), columns)
  return total.reshape(shape[:2])


def label_scores_from_logits(
    logits_fn: Callable[[jax.Array], jax.Array],
    batch_size: int,
    labels: jax.Array,
    labels_mask: jax.Array,
    start_id: int = 0,
) -> jax.Array:
  """Log-probability of each label's token sequence, in one teacher-forced pass for each label.

  Encoder states stay [batch, ...]: labels are visited one after the other, positions in parallel.

  Args:
    logits_fn: decoder inputs [batch, length] int32 -> logits [batch, length, vocab].
    batch_size: number of examples.
    labels: [labels, length] tokens, eos included, or [batch, labels, length].
    labels_mask: like `labels`; 1 for tokens that count, 0 for padding.
    start_id: first token that the decoder reads.

  Returns:
    [batch, labels] sums of log-probabilities in nats.
  """
  shape = (batch_size, *labels.shape[-2:])
  # [labels, batch, length]
  targets, mask = (jnp.broadcast_to(x, shape).swapaxes(0, 1) for x in (labels, labels_mask))

  def score(label):
    targets, mask = label
    logits = logits_fn(shift_right(targets, start_id))
    return jnp.sum(log_probability(logits, targets) * mask, axis=-1)

  return lax.map(score, (targets, mask)).T


def shift_right(targets: jax.Array, start_id: int) -> jax.Array:
  """Decoder inputs of teacher forcing: [rows, length] -> [rows, length]."""
  first = jnp.full((targets.shape[0], 1), start_id, jnp.int32)
  return jnp.concatenate([first, targets[:, :-1].astype(jnp.int32)], axis=1)


def log_probability(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Log-probability in float32 of targets [...] under logits [..., vocab]."""
  logits = logits.astype(jnp.float32)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)
