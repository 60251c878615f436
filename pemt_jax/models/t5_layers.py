"""The layers of T5's encoder and decoder (Raffel et al. 2020)."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from pemt_jax.models.blocks import MLP, Attention, LayerInputs, StackInputs, StackSpec
from pemt_jax.models.layers import OpenSite
from pemt_jax.models.sites import Aux, SiteContext


class Layer(nn.Module):
  """One pre-norm block of the encoder or the decoder."""

  spec: StackSpec

  @property
  def sublayers(self) -> tuple[str, ...]:
    """Names of the sub-layers."""
    cross = ('cross_attention',) if self.spec.stack == 'decoder' else ()
    return ('self_attention', *cross, 'mlp')

  def setup(self):
    self.self_attention_norm = self.spec.norm('self_attention_norm')
    self.self_attention = Attention(self.spec, 'self_attention')
    if self.spec.stack == 'decoder':
      self.cross_attention_norm = self.spec.norm('cross_attention_norm')
      self.cross_attention = Attention(self.spec, 'cross_attention')
    self.mlp_norm = self.spec.norm('mlp_norm')
    self.mlp = MLP(self.spec)
    for name in self.sublayers:
      site = self.spec.site(f'{name}_residual', ('embed', 'embed'))
      setattr(self, f'{name}_residual', OpenSite(site, self.spec.plan))

  def _end(self, name: str, x: jax.Array, y: jax.Array,
           context: SiteContext) -> tuple[jax.Array, Aux]:
    """The end of a sub-layer: dropout of its output y, sum with the residual stream x; a site."""
    y = self.spec.drop(y, context, name)
    return getattr(self, f'{name}_residual')(
        lambda value: x + value, y, context.replace(residual=x, sublayer_output=y))

  def cross_memory(self, carry: Any, inputs: StackInputs,
                   layer: LayerInputs) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """Keys and values of cross-attention, computed once for a generation."""
    context = inputs.at_layer(layer).context
    key, value, _ = self.cross_attention.keys_values(context.encoder_states, context)
    return carry, (key, value)

  def __call__(self, carry: tuple[jax.Array, Any], inputs: StackInputs,
               layer: LayerInputs) -> tuple[tuple[jax.Array, Any], Aux]:
    """carry = ([batch, length, embed], self-attention cache or None)."""
    x, cache = carry
    spec, inputs = self.spec, inputs.at_layer(layer)
    context = inputs.context
    x = nn.with_logical_constraint(x, ('act_batch', 'act_length', 'act_embed'))
    normed, auxiliaries = self.self_attention_norm(x, context)
    reading = inputs.replace(context=context.replace(sublayer_input=normed, residual=x))
    if cache is None:
      y, aux = self.self_attention(normed, reading)
    else:
      y, cache, aux = self.self_attention.cached(normed, reading, cache, layer.index)
    x, more = self._end('self_attention', x, y, context)
    auxiliaries |= aux | more
    if spec.stack == 'decoder':
      y, aux = self._cross(x, inputs, layer)
      x, more = self._end('cross_attention', x, y, context)
      auxiliaries |= aux | more
    normed, aux = self.mlp_norm(x, context)
    y, more = self.mlp(normed, context.replace(sublayer_input=normed, residual=x))
    x, end = self._end('mlp', x, y, context)
    return (x, cache), auxiliaries | aux | more | end

  def _cross(self, x, inputs, layer):
    context = inputs.context
    normed, auxiliaries = self.cross_attention_norm(x, context)
    if layer.cross_keys is None:
      key, value, aux = self.cross_attention.keys_values(context.encoder_states, context)
      auxiliaries |= aux
    else:
      key, value = layer.cross_keys, layer.cross_values
    y, aux = self.cross_attention.mix(normed, (key, value), (None, inputs.cross_mask),
                                      context.replace(sublayer_input=normed, residual=x))
    return y, auxiliaries | aux
