"""Soft prompts in front of the encoder's embeddings, alone or guided by source prompts (PEMT)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.deltas.lora import uniform_init
from pemt_jax.models.layers import MASKED, dropout, fold_name
from pemt_jax.models.sites import Aux, Base, Site, SiteContext

HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A task prompt; place it at `encoder/embed`.

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

  def module(self, site: Site, name: str) -> nn.Module:
    """Returns the module for a site."""
    return _Prompt(self, site, name=name)

  def prepare(self, stack: str, name: str) -> None:
    """Nothing to prepare."""


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


class _Prompt(nn.Module):
  config: Prompt
  site: Site

  @nn.compact
  def __call__(self, base: Base, tokens: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    config, embed = self.config, self.site.features
    table = self.param(
        'table', nn.with_logical_partitioning(uniform_init(0.5), ('prompt', 'embed')),
        (config.length, embed), jnp.float32)
    mask = self.variable('constants', 'mask', jnp.ones, (config.length,), jnp.float32).value
    prompt, aux = table, {'prompt_mask': mask}
    if config.source_lengths:
      prompt, aux['correlation'] = self._guided(table, mask, context)
    embedded = base(tokens)
    rows = jnp.broadcast_to(prompt.astype(embedded.dtype), (tokens.shape[0], *prompt.shape))
    return jnp.concatenate([rows, embedded], axis=1), aux

  def _guided(self, table, mask, context):
    lengths, size = self.config.source_lengths, max(self.config.source_lengths)
    sources = self.param(
        'sources', nn.with_logical_partitioning(nn.initializers.zeros,
                                                ('expert', 'prompt', 'embed')),
        (len(lengths), size, self.site.features), jnp.float32)
    padding = size - jnp.array(lengths)
    sources_mask = self.variable(
        'constants', 'sources_mask',
        lambda: (jnp.arange(size) >= padding[:, None]).astype(jnp.float32)).value
    correlation = correlate(table, sources, sources_mask)
    weights = correlation
    if context.key is not None:
      offsets = {1: self.config.length - jnp.sum(mask).astype(jnp.int32),
                 2: padding[:, None, None]}
      key = fold_name(context.key, 'prompt_correlation')
      weights = dropout(weights, self.config.correlation_dropout, key, offsets)
    return table + jnp.einsum('nps,nse->pe', weights, sources, precision=HIGHEST), correlation
