"""T5 (v1.0, v1.1, LM-adapted, Flan): a pure Linen encoder-decoder that knows no method.

Parameters of all layers of a stack are stacked on a leading [layer] axis and run by `nn.scan`.
A plan (`models/sites.py`) places deltas at sites; with the empty plan this is the plain model.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pemt_jax.models import layers
from pemt_jax.models.block_layers import PreNormLayer, layer_sites
from pemt_jax.models.blocks import BlockStyle
from pemt_jax.models.encoder_decoder import EncoderDecoder, TransformerStack
from pemt_jax.models.products import matmul
from pemt_jax.models.sites import Aux, Site, SiteContext
from pemt_jax.models.stack import ModelDeltas
from pemt_jax.models.t5_config import T5Config


def stack_sites(config: T5Config, stack: str) -> list[str]:
  """Site paths of one stack, without layer indices; only the encoder's embeddings are a site."""
  embed = ['encoder/embed'] if stack == 'encoder' else []
  return [*embed, *layer_sites(stack, config.gated), f'{stack}/final_norm']


class Stack(TransformerStack):
  """The layers of one stack, their position bias and final norm."""

  def setup(self):
    spec, config = self.spec, self.spec.config
    self.relative_bias = layers.RelativeBias(
        config.relative_buckets, config.heads, config.relative_max_distance,
        bidirectional=spec.stack == 'encoder', stddev=config.embed**-0.5)
    self.make_layers(PreNormLayer, ('__call__', 'cross_memory'))
    outside = dataclasses.replace(spec, plan=spec.plan.outside_layers())
    self.final_norm = outside.norm('final_norm')
    self.embed = layers.OpenSite(spec.site('embed', ('vocab', 'embed')), outside.plan)

  def sites(self) -> list[str]:
    """Site paths of this stack, without layer indices."""
    return stack_sites(self.spec.config, self.spec.stack)

  def position_bias(self, queries: jax.Array, keys: jax.Array,
                    context: SiteContext) -> tuple[jax.Array | None, jax.Array]:
    """Relative bias; rows that deltas put in front stand before the first real position."""
    prefix = self.spec.prefix
    if not prefix:
      return None, self.relative_bias(queries, keys)
    if context.packing is not None:  # They stand before the first position of every example.
      front = self.relative_bias(context.packing.positions, jnp.arange(-prefix, 0))
      return front, self.relative_bias(queries, keys)
    start = 0 if self.spec.stack == 'decoder' else context.offset
    bias = self.relative_bias(queries, jnp.concatenate([jnp.arange(-prefix, 0) + start, keys]))
    return bias[..., :prefix], bias[..., prefix:]

  def end(self, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    """The final norm."""
    x, aux = self.final_norm(x, context)
    return self.spec.drop(x, context, 'final'), aux


class T5(EncoderDecoder):
  """T5 encoder-decoder; `config` is a `T5Config`."""

  def setup(self):
    config = self.config
    spec, self.shared = self.first_parts('encoder', BlockStyle())
    self.encoder = Stack(spec)
    decoder = dataclasses.replace(spec, stack='decoder')
    self.decoder = Stack(decoder)
    self.deltas = ModelDeltas(self.plan, (spec.shape, decoder.shape))
    head = Site('lm_head', config.embed, config.vocab_size, 'embed', 'vocab', spec.dtype)
    outside = self.plan.outside_layers()
    self.lm_head = (layers.OpenSite(head, outside) if config.tied_head
                    else layers.Projection(head, outside, 1.0, result=jnp.float32))

  def stack_sites(self, stack: str) -> list[str]:
    """Site paths of one stack, without layer indices."""
    return stack_sites(self.config, stack)

  def head(self, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    """[..., embed] -> float32 logits [..., vocab]."""
    if not self.config.tied_head:
      if self.config.scaled_head:
        x = x * self.config.embed**-0.5
      return self.lm_head(x, context)
    table = self.shared.embedding.astype(x.dtype)
    base = lambda x: matmul(x, table.T, jnp.float32)
    return self.lm_head(base, x * self.config.embed**-0.5, context)
