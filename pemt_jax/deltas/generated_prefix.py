"""A prefix of one attention as one matrix of rows, trained itself or made by a network."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Delta, Values, Weight, Weights, normal_init, uniform_init
from pemt_jax.models.sites import AttentionInputs, Aux, Base, Site, SiteContext


@dataclasses.dataclass(frozen=True)
class RowPrefix(Delta):
  """Keys are the first half of the columns of `rows`, values the second.

  Attributes:
    length: prefix rows.
    heads: attention heads of the backbone.
    hidden: hidden units of a network, rows = tanh(table W_in + b_in) W_out + b_out, that makes the
      rows where they are a prototype of masks (Zeng et al. 2023); 0 trains the rows themselves.
    stddev: of the first table, or of the rows.
  """

  length: int
  heads: int
  hidden: int = 0
  stddev: float = 1.0
  packs = True

  @property
  def key_positions(self) -> int:
    """All rows of the prefix."""
    return self.length

  def weights(self, site: Site) -> Weights:
    """`rows` [prefix, 2 * heads * kv]."""
    return {'rows': Weight((self.length, 2 * site.features), ('prompt', 'generated'),
                           normal_init(self.stddev))}

  def source_weights(self, site: Site) -> Weights:
    """`table` [prefix, embed], `project_in`, `bias_in`, `project_out`, `bias_out`; or the rows."""
    if not self.hidden:
      return self.weights(site)
    width, size = site.in_features, 2 * site.features
    first, second = uniform_init(width**-0.5), uniform_init(self.hidden**-0.5)
    return {
        'table': Weight((self.length, width), ('prompt', 'embed'), normal_init(self.stddev)),
        'project_in': Weight((width, self.hidden), ('embed', 'rank'), first),
        'bias_in': Weight((self.hidden,), ('rank',), first),
        'project_out': Weight((self.hidden, size), ('rank', 'generated'), second),
        'bias_out': Weight((size,), ('generated',), second)}

  def from_source(self, values: Values, site: Site) -> Values:
    """The rows."""
    del site
    if not self.hidden:
      return values
    hidden = jnp.tanh(values['table'] @ values['project_in'] + values['bias_in'])
    return {'rows': hidden @ values['project_out'] + values['bias_out']}

  def act(self, values: Values, base: Base, x: AttentionInputs, context: SiteContext,
          site: Site) -> tuple[Any, Aux]:
    """Puts the rows in front of keys and values."""
    del context, site
    keys, values_ = (self._heads(half) for half in jnp.split(values['rows'], 2, axis=-1))
    return base(x.with_prefix(keys, values_)), {}

  def _heads(self, rows: jax.Array) -> jax.Array:
    """[..., prefix, heads * kv] -> [..., heads, prefix, kv]."""
    return jnp.swapaxes(rows.reshape(*rows.shape[:-1], self.heads, -1), -2, -3)
