"""Soft prompts in front of the encoder's embeddings, alone or guided by source prompts (PEMT)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Delta, Values, Weight, Weights, ones, uniform_init
from pemt_jax.models.layers import MASKED, dropout, fold_name
from pemt_jax.models.sites import Aux, Base, Site, SiteContext

HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Prompt(Delta):
  """A task prompt; place it at `encoder/embed`, or at `decoder/embed` where that is alone.

  With sources the prompt is Q = T + sum_j dropout(softmax_rows(T P_j^T)) P_j (PEMT, task
  correlation): one softmax per source, no scale, no projection; gradients reach T by both terms.

  Attributes:
    length: rows of the table, left padding included.
    source_lengths: real lengths of the frozen source prompts P_j; empty for a plain prompt.
    correlation_dropout: rate on the softmax weights in training.
  """

  length: int
  source_lengths: tuple[int, ...] = ()
  correlation_dropout: float = 0.1
  packs = True

  @property
  def front_positions(self) -> int:
    """All rows of the table."""
    return self.length

  def weights(self, site: Site) -> Weights:
    """`table` [prompt, embed], its `mask`; with sources their tables and masks."""
    rows = ('prompt', 'embed')
    weights = {
        'table': Weight((self.length, site.features), rows, uniform_init(0.5), exact=True),
        'mask': Weight((self.length,), ('prompt',), ones, constant=True)}
    if self.source_lengths:
      count, size = len(self.source_lengths), max(self.source_lengths)
      weights['sources'] = Weight((count, size, site.features), ('expert', *rows), exact=True)
      weights['sources_mask'] = Weight((count, size), ('expert', 'prompt'), self._sources_mask,
                                       constant=True)
    return weights

  def _padding(self) -> jax.Array:
    return max(self.source_lengths) - jnp.array(self.source_lengths)

  def _sources_mask(self, key, shape, dtype):
    del key
    return (jnp.arange(shape[1]) >= self._padding()[:, None]).astype(dtype)

  def act(self, values: Values, base: Base, x: jax.Array, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length] tokens -> [batch, prompt + length, embed]; cached steps have no prompt.

    Rows of several examples hold the places of the prompt already: [batch, length, embed].
    """
    if context.position is not None:
      return base(x), {}
    prompt, aux = values['table'], {'prompt_mask': values['mask']}
    if self.source_lengths:
      prompt, aux['correlation'] = self._guided(values, context)
    embedded = base(x)
    if context.packing is not None:
      return context.packing.front(prompt.astype(embedded.dtype), embedded), aux
    rows = jnp.broadcast_to(prompt, (x.shape[0], *prompt.shape[-2:]))
    return jnp.concatenate([rows.astype(embedded.dtype), embedded], axis=1), aux

  def _guided(self, values, context):
    table, sources = values['table'], values['sources']
    correlation = correlate(table, sources, values['sources_mask'])
    weights = correlation
    if context.key is not None:
      offsets = {1: self.length - jnp.sum(values['mask']).astype(jnp.int32),
                 2: self._padding()[:, None, None]}
      key = fold_name(context.key, 'prompt_correlation')
      weights = dropout(weights, self.correlation_dropout, key, offsets)
    return table + jnp.einsum('nps,nse->pe', weights, sources, precision=HIGHEST), correlation


def correlate(table: jax.Array, sources: jax.Array, sources_mask: jax.Array) -> jax.Array:
  """Attention of a target prompt to each source prompt, in float32.

  Args:
    table: [prompt, embed] target prompt T.
    sources: [expert, source_prompt, embed] source prompts P_j.
    sources_mask: [expert, source_prompt] 1 for real rows.

  Returns:
    [expert, prompt, source_prompt]; rows sum to 1 over the real positions of each source.
  """
  logits = jnp.einsum('pe,nse->nps', table, sources, precision=HIGHEST)
  return jax.nn.softmax(logits + (1.0 - sources_mask)[:, None, :] * MASKED, axis=-1)
