"""The decoding protocol, its options and the constraints on the next token.

A decoder takes part in decoding as a pure function

  step(tokens [rows] int32, position [] int32, cache) -> (logits [rows, vocab], cache)

that reads the token at `position`, updates the cache and predicts the token at `position + 1`. Each
cache leaf has layers on axis 0 and rows on axis 1 and keeps its shape and dtype. Arrays that never
change (parameters, encoder states) may live in the closure of `step` instead of the cache.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from pemt_jax.errors import UserError, number

Cache = Any  # pytree of arrays [layer, rows, ...]


class Step(Protocol):
  """One cached decoding step; see the module's docstring."""

  def __call__(
      self, tokens: jax.Array, position: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]: ...


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
  """Decoding options, with the names and meanings of Hugging Face.

  Hashable, therefore usable as a static argument of `jax.jit`.

  Attributes:
    max_length: length of the longest output in tokens, the start token included.
    num_beams: beams of the beam search; 1 is greedy decoding.
    length_penalty: exponent p of a hypothesis' score, sum of log-probabilities / length^p; the
      length counts eos and does not count the start token.
    early_stopping: when an example ends that has `num_beams` finished hypotheses: True, at once;
      False, when its best open beam, divided by its present length^p, is below all of them;
      'never', the same with `max_length - 1` for the length if the penalty is positive;
      'candidates', when the best candidate of the step, an ended one included, divided by a length
      that counts the start token, is below all of them (an older rule of Hugging Face).
    no_repeat_ngram_size: n-grams of this size occur once in an output; 0 allows repetition.
    min_length: eos is not predicted while the output, the start token included, is shorter.
    forced_bos_token_id: token that follows the start token, or None.
    forced_eos_token_id: token at the last position of an output of `max_length`, or None.
    start_id: first token of every output.
    eos_id: token that ends an output.
    pad_id: token that fills an output after its end.
    labels: tokens of the only texts that may be predicted, eos included; the most probable one is,
      whatever beams and constraints say. () decodes freely.

  Raises:
    UserError: a value is outside its range.
  """

  max_length: int = 20
  num_beams: int = 1
  length_penalty: float = 1.0
  early_stopping: bool | str = False
  no_repeat_ngram_size: int = 0
  min_length: int = 0
  forced_bos_token_id: int | None = None
  forced_eos_token_id: int | None = None
  start_id: int = 0
  eos_id: int = 1
  pad_id: int = 0
  labels: tuple[tuple[int, ...], ...] = ()

  def __post_init__(self):
    lowest = {'max_length': 2, 'num_beams': 1, 'no_repeat_ngram_size': 0, 'min_length': 0}
    for name, bound in lowest.items():
      value = getattr(self, name)
      if value < bound:
        raise UserError(
            f'Generation option {name}={value!r} is too small; set {name} to at least {bound}.'
        )
    words = ('never', 'candidates')
    if not isinstance(self.early_stopping, bool) and self.early_stopping not in words:
      raise UserError(
          f'Generation option early_stopping={self.early_stopping!r} is not known; set it to True,'
          " False, 'never' or 'candidates'."
      )


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a distribution is changed before a token is drawn, in this order.

  Attributes:
    temperature: divides the logits; above 0.
    top_k: only that many of the most probable tokens may be drawn; 0 for all.
    top_p: only the fewest most probable tokens that together have this probability (Holtzman et al.
      2020), in (0, 1].

  Raises:
    UserError: a value is outside its range.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    number('sampling.temperature', self.temperature, self.temperature > 0, 'above 0')
    number('sampling.top_k', self.top_k, self.top_k >= 0, 'of at least 0')
    number('sampling.top_p', self.top_p, 0 < self.top_p <= 1, 'above 0 and at most 1')

  def __call__(self, scores: jax.Array) -> jax.Array:
    """[rows, vocab] logits -> logits; minus infinity where nothing may be drawn."""
    scores = scores.astype(jnp.float32) / self.temperature
    if 0 < self.top_k < scores.shape[-1]:
      least = lax.top_k(scores, self.top_k)[0][:, -1:]
      scores = jnp.where(scores < least, -jnp.inf, scores)
    if self.top_p < 1:
      falling = -jnp.sort(-scores, axis=-1)
      chances = jax.nn.softmax(falling, axis=-1)
      kept = jnp.cumsum(chances, axis=-1) - chances < self.top_p  # of all before it
      least = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
      scores = jnp.where(scores < least, -jnp.inf, scores)
    return scores


def any_row(flags: jax.Array, axis_name: str | None) -> jax.Array:
  """Whether a flag is set anywhere, also along the enclosing `vmap` axis if it is named.

  Args:
    flags: [rows] bool.
    axis_name: name of the enclosing `vmap` axis, or None.

  Returns:
    [] bool.
  """
  found = jnp.any(flags)
  return found if axis_name is None else lax.pmax(found.astype(jnp.int32), axis_name) > 0


def process_scores(
    scores: jax.Array, tokens: jax.Array, position: jax.Array, config: GenerationConfig
) -> jax.Array:
  """Applies the constraints of the options to the scores of the next token.

  The order is that of Hugging Face: repeated n-grams, minimal length, forced first and last token.
  A forced token has score 0 and every other token minus infinity.

  Args:
    scores: [rows, vocab] logits or log-probabilities of the token at `position + 1`.
    tokens: [rows, max_length] outputs, valid up to and including `position`.
    position: [] position of the last valid token.
    config: the options.

  Returns:
    [rows, vocab] scores.
  """
  if config.no_repeat_ngram_size > 0:
    banned = _repeated(tokens, position, config.no_repeat_ngram_size, scores.shape[-1])
    scores = jnp.where(banned, -jnp.inf, scores)
  vocabulary = jnp.arange(scores.shape[-1])
  if config.min_length > 0:
    too_short = position + 1 < config.min_length
    scores = jnp.where(too_short & (vocabulary == config.eos_id), -jnp.inf, scores)
  forced = ((config.forced_bos_token_id, 0), (config.forced_eos_token_id, config.max_length - 2))
  for token, place in forced:
    if token is not None:
      only = jnp.where(vocabulary == token, 0.0, -jnp.inf).astype(scores.dtype)
      scores = jnp.where(position == place, only, scores)
  return scores


def _repeated(tokens: jax.Array, position: jax.Array, size: int, vocab: int) -> jax.Array:
  """Tokens that would complete an n-gram which the output already has: [rows, vocab] bool."""
  rows, max_length = tokens.shape
  if size > max_length:
    return jnp.zeros((rows, vocab), bool)
  starts = np.arange(max_length - size + 1)
  complete = starts + size <= position + 1
  # The slice is out of range only while no n-gram is complete.
  suffix = lax.dynamic_slice_in_dim(tokens, position + 2 - size, size - 1, axis=1)
  heads = tokens[:, starts[:, None] + np.arange(size - 1)]
  matches = jnp.all(heads == suffix[:, None], axis=-1) & complete
  banned = jnp.zeros((rows, vocab), bool)
  return banned.at[jnp.arange(rows)[:, None], tokens[:, starts + size - 1]].max(matches)
