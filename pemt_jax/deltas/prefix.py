"""Prefixes: trained keys and values in front of those of attention (Li & Liang 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Delta, Values, Weight, Weights, normal_init, uniform_init
from pemt_jax.models.sites import (
    AttentionInputs, Aux, Base, Site, SiteContext, StackShape)

LAYOUTS = ('interleaved', 'layered')


def per_layer_rows(rows: jax.Array, shape: StackShape, layout: str) -> jax.Array:
  """Cuts generated numbers into keys and values of every layer.

  Args:
    rows: [prefix, 2 * layer * heads * kv].
    shape: of the stack.
    layout: 'interleaved' reads the array in memory order as [layer, 2, heads, prefix, kv], which
      mixes the prefix axis with the others (as published by Lv et al. 2023); 'layered' gives each
      prefix row its own numbers for each layer.

  Returns:
    [layer, 2, heads, prefix, kv]; keys are 0, values are 1.
  """
  prefix = rows.shape[0]
  if layout == 'interleaved':
    return rows.reshape(shape.layers, 2, shape.heads, prefix, shape.kv)
  cut = rows.reshape(prefix, shape.layers, 2, shape.heads, shape.kv)
  return cut.transpose(1, 2, 3, 0, 4)


@dataclasses.dataclass(frozen=True)
class PreparedPrefix(Delta):
  """Base of prefixes that one computation gives to all layers of a stack.

  Subclasses return {'keys', 'values'} [layer, heads, prefix, kv] as `per_layer` of `prepare`.

  Attributes:
    length: prefix rows.
  """

  length: int
  packs = True

  @property
  def key_positions(self) -> int:
    """All rows of the prefix."""
    return self.length

  def act(self, values: Values, base: Base, x: AttentionInputs, context: SiteContext,
          site: Site) -> tuple[Any, Aux]:
    """Puts this layer's rows in front of keys and values."""
    rows = context.per_layer
    return base(x.with_prefix(rows['keys'].astype(site.dtype),
                              rows['values'].astype(site.dtype))), {}


def keys_values(rows: jax.Array) -> dict[str, jax.Array]:
  """[layer, 2, heads, prefix, kv] -> {'keys', 'values'} of [layer, heads, prefix, kv]."""
  return {'keys': rows[:, 0], 'values': rows[:, 1]}


@dataclasses.dataclass(frozen=True)
class Prefix(PreparedPrefix):
  """Keys and values tanh(table W_in) W_out of all layers; place it at `<stack>/self_attention`.

  Attributes:
    rank: hidden units.
    layout: see `per_layer_rows`.
    biases: add biases to both products (as in Li & Liang 2021).
    stddev: of the first table; the projections start from U(+-1/sqrt(in)).
  """

  rank: int = 24
  layout: str = 'interleaved'
  biases: bool = False
  stddev: float = 0.02

  def stack_weights(self, shape: StackShape) -> Weights:
    """`table` [prefix, embed], `project_in` [embed, rank], `project_out` [rank, generated]."""
    size = 2 * shape.layers * shape.heads * shape.kv
    first, second = uniform_init(shape.embed**-0.5), uniform_init(self.rank**-0.5)
    weights = {
        'table': Weight((self.length, shape.embed), ('prompt', 'embed'), normal_init(self.stddev)),
        'project_in': Weight((shape.embed, self.rank), ('embed', 'rank'), first),
        'project_out': Weight((self.rank, size), ('rank', 'generated'), second)}
    if self.biases:
      weights |= {'bias_in': Weight((self.rank,), ('rank',), first),
                  'bias_out': Weight((size,), ('generated',), second)}
    return weights

  def prepare(self, values: Values, shape: StackShape,
              context: SiteContext) -> tuple[None, dict[str, jax.Array]]:
    """Keys and values of every layer."""
    del context
    hidden = values['table'] @ values['project_in'] + values.get('bias_in', 0.0)
    rows = jnp.tanh(hidden) @ values['project_out'] + values.get('bias_out', 0.0)
    return None, keys_values(per_layer_rows(rows, shape, self.layout))


@dataclasses.dataclass(frozen=True)
class KeyValuePrefix(Delta):
  """Own keys and values at each attention, without a network behind them.

  Attributes:
    length: prefix rows.
    heads: attention heads of the backbone.
    stddev: of the first keys and values, drawn from a normal distribution.
  """

  length: int
  heads: int
  stddev: float = 0.02
  packs = True

  @property
  def key_positions(self) -> int:
    """All rows of the prefix."""
    return self.length

  def weights(self, site: Site) -> Weights:
    """`keys` and `values` [heads, prefix, kv]."""
    shape = (self.heads, self.length, site.features // self.heads)
    weight = Weight(shape, ('heads', 'prompt', 'kv'), normal_init(self.stddev))
    return {'keys': weight, 'values': weight}

  def act(self, values: Values, base: Base, x: AttentionInputs, context: SiteContext,
          site: Site) -> tuple[Any, Aux]:
    """Puts the rows in front of keys and values."""
    del context, site
    return base(x.with_prefix(values['keys'], values['values'])), {}


@dataclasses.dataclass(frozen=True)
class IntrinsicPrefix(PreparedPrefix):
  """Keys and values of all layers as a linear image of one small vector.

  The vector `z` is shared by the stacks: rows = z W + b, read in memory order as
  [layer, 2, heads, prefix, kv].

  Attributes:
    dimension: of the vector.
    stddev: of the first vector and matrix.
  """

  dimension: int = 8
  stddev: float = 0.02

  def model_weights(self, shapes: Mapping[str, StackShape]) -> Weights:
    """`z` [intrinsic]."""
    del shapes
    return {'z': Weight((self.dimension,), ('intrinsic',), normal_init(self.stddev))}

  def stack_weights(self, shape: StackShape) -> Weights:
    """`kernel` [intrinsic, generated] and `bias` [generated]."""
    size = 2 * shape.layers * shape.heads * self.length * shape.kv
    return {'kernel': Weight((self.dimension, size), ('intrinsic', 'generated'),
                             normal_init(self.stddev)),
            'bias': Weight((size,), ('generated',))}

  def prepare(self, values: Values, shape: StackShape,
              context: SiteContext) -> tuple[None, dict[str, jax.Array]]:
    """Keys and values of every layer."""
    rows = context.model['z'] @ values['kernel'] + values['bias']
    rows = rows.reshape(shape.layers, 2, shape.heads, self.length, shape.kv)
    return None, keys_values(rows)
