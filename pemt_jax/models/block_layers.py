"""The layers of all backbones: sub-layers with norms in front of them or behind their sums."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from pemt_jax.models.blocks import MLP, Attention, LayerInputs, StackInputs, StackSpec
from pemt_jax.models.layers import OpenSite
from pemt_jax.models.sites import Aux, SiteContext

Cache = dict[str, jax.Array]


def layer_sites(stack: str, gated: bool = False, cross_attention: bool = True) -> list[str]:
  """Site paths of the layers of one stack, without layer indices.

  Args:
    stack: `encoder` or `decoder`.
    gated: the feed-forward has two branches.
    cross_attention: layers of a decoder attend to an encoder.
  """
  crosses = cross_attention and stack == 'decoder'
  names = ['layer']
  for kind in ('self_attention', *(('cross_attention',) if crosses else ())):
    names += [f'{kind}_norm', kind, f'{kind}_residual', *(f'{kind}/{name}' for name in 'qkvo')]
  inner = ('wi_0', 'wi_1', 'wo') if gated else ('wi', 'wo')
  names += ['mlp_norm', 'mlp', *(f'mlp/{name}' for name in inner), 'mlp_residual']
  return [f'{stack}/{name}' for name in names]


class BlockLayer(nn.Module):
  """One block of an encoder or a decoder; a subclass says where the norms stand."""

  spec: StackSpec

  @property
  def sublayers(self) -> tuple[str, ...]:
    """Names of the sub-layers."""
    crosses = self.spec.stack == 'decoder' and self.spec.style.cross_attention
    return ('self_attention', *(('cross_attention',) if crosses else ()), 'mlp')

  def setup(self):
    spec = self.spec
    for name in self.sublayers:
      setattr(self, name, MLP(spec) if name == 'mlp' else Attention(spec, name))
      setattr(self, f'{name}_norm', spec.norm(f'{name}_norm'))
      site = spec.site(f'{name}_residual', ('embed', 'embed'))
      setattr(self, f'{name}_residual', OpenSite(site, spec.plan))

  def begin(self, name: str, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    """What a sub-layer reads of the residual stream x [batch, length, embed]."""
    raise NotImplementedError

  def end(self, name: str, x: jax.Array, y: jax.Array,
          context: SiteContext) -> tuple[jax.Array, Aux]:
    """The stream behind a sub-layer, from the stream x in front of it and its output y."""
    raise NotImplementedError

  def _sum(self, name: str, x: jax.Array, y: jax.Array,
           context: SiteContext) -> tuple[jax.Array, Aux, SiteContext]:
    """x plus the dropped out y, a site; and the context with both parts."""
    y = self.spec.drop(y, context, name)
    context = context.replace(residual=x, sublayer_output=y)
    total, aux = getattr(self, f'{name}_residual')(lambda value: x + value, y, context)
    return total, aux, context

  def cross_memory(self, carry: Any, inputs: StackInputs,
                   layer: LayerInputs) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """Keys and values of cross-attention, computed once for a generation."""
    context = inputs.at_layer(layer).context
    key, value, _ = self.cross_attention.keys_values(context.encoder_states, context)
    return carry, (key, value)

  def __call__(self, carry: tuple[jax.Array, Cache | None], inputs: StackInputs,
               layer: LayerInputs) -> tuple[tuple[jax.Array, Cache | None], Aux]:
    """carry = ([batch, length, embed], self-attention cache or None)."""
    x, cache = carry
    inputs = inputs.at_layer(layer)
    context, auxiliaries = inputs.context, {}
    x = nn.with_logical_constraint(x, ('act_batch', 'act_length', 'act_embed'))
    for name in self.sublayers:
      read, aux = self.begin(name, x, context)
      reading = context.replace(sublayer_input=read, residual=x)
      if name == 'mlp':
        y, more = self.mlp(read, reading)
      elif name == 'cross_attention':
        y, more = self._cross(read, inputs, layer, reading)
      elif cache is None:
        y, more = self.self_attention(read, inputs.replace(context=reading))
      else:
        y, cache, more = self.self_attention.cached(
            read, inputs.replace(context=reading), cache, layer.place)
      x, last = self.end(name, x, y, context)
      auxiliaries |= aux | more | last
    return (x, cache), auxiliaries

  def _cross(self, x, inputs, layer, reading):
    """Attention to the encoder; keys and values do not depend on what is read."""
    context, aux = inputs.context, {}
    key, value = layer.cross_keys, layer.cross_values
    if key is None:
      key, value, aux = self.cross_attention.keys_values(context.encoder_states, context)
    y, more = self.cross_attention.mix(x, (key, value), (None, inputs.cross_mask), reading)
    return y, aux | more


class PreNormLayer(BlockLayer):
  """x + sub-layer(norm(x)), as in T5 (Raffel et al. 2020)."""

  def begin(self, name: str, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    """The norm of the residual stream x [batch, length, embed]."""
    return getattr(self, f'{name}_norm')(x, context)

  def end(self, name: str, x: jax.Array, y: jax.Array,
          context: SiteContext) -> tuple[jax.Array, Aux]:
    """The sum."""
    total, aux, _ = self._sum(name, x, y, context)
    return total, aux


class PostNormLayer(BlockLayer):
  """norm(x + sub-layer(x)), as in BERT, RoBERTa and BART (Vaswani et al. 2017)."""

  def begin(self, name: str, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    """The residual stream itself."""
    return x, {}

  def end(self, name: str, x: jax.Array, y: jax.Array,
          context: SiteContext) -> tuple[jax.Array, Aux]:
    """The norm of the sum; the context of its site has both parts."""
    total, aux, context = self._sum(name, x, y, context)
    x, more = getattr(self, f'{name}_norm')(total, context)
    return x, aux | more
