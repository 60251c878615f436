"""BART (Lewis et al. 2020): a pure Linen encoder-decoder that knows no method.

The parts are those of the other backbones in post-norm order. The trees have T5's layout, with
positions and a norm of the embeddings in each stack. Position p reads row p + 2 of a table.
Positions are counted from 0 whatever is padding; those of a prompt count, and the text goes on
behind them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.models import layers
from pemt_jax.models.bart_config import FIRST_POSITION, BartConfig
from pemt_jax.models.block_layers import PostNormLayer, layer_sites
from pemt_jax.models.blocks import BlockStyle
from pemt_jax.models.encoder_decoder import EncoderDecoder, TransformerStack
from pemt_jax.models.products import matmul
from pemt_jax.models.sites import Aux, Site, SiteContext
from pemt_jax.models.stack import ModelDeltas

LOGITS_BIAS = 'logits_bias'


def stack_sites(stack: str) -> list[str]:
  """Site paths of one stack, without layer indices; only the encoder's embeddings are a site."""
  embed = ['encoder/embed'] if stack == 'encoder' else []
  return [*embed, f'{stack}/embed_norm', *layer_sites(stack)]


def block_style(config: BartConfig) -> BlockStyle:
  """How the blocks of this family differ from T5's."""
  return BlockStyle(biases=True, centred_norms=True, scaled_attention=True,
                    hidden_dropout=config.activation_dropout, stddev=config.stddev)


class Stack(TransformerStack):
  """Positions of one stack, the norm of its embeddings, and its layers."""

  def setup(self):
    spec, config = self.spec, self.spec.config
    self.make_layers(PostNormLayer, ('__call__', 'cross_memory'))
    outside = dataclasses.replace(spec, plan=spec.plan.outside_layers())
    self.embed = layers.OpenSite(spec.site('embed', ('vocab', 'embed')), outside.plan)
    self.embed_norm = outside.norm('embed_norm')
    self.positions = layers.Embedding(config.position_rows, config.embed, config.stddev,
                                      'position')

  def sites(self) -> list[str]:
    """Site paths of this stack, without layer indices."""
    return stack_sites(self.spec.stack)

  @property
  def longest(self) -> int:
    """Most positions."""
    return self.spec.config.positions

  def begin(self, x: jax.Array, positions: jax.Array,
            context: SiteContext) -> tuple[jax.Array, Aux]:
    """The norm of embeddings and positions; rows that pad a prompt on the left are not counted."""
    padding = context.offset if self.spec.stack == 'encoder' else 0
    positions = positions - padding if context.packing is None else context.packing.positions
    rows = jnp.maximum(positions, 0) + FIRST_POSITION
    return self.embed_norm(x + self.positions(rows), context)


class Bart(EncoderDecoder):
  """BART encoder-decoder; `config` is a `BartConfig`."""

  stack_class = Stack

  def setup(self):
    config = self.config
    spec, self.shared = self.first_parts('encoder', block_style(config), config.stddev)
    self.encoder = self.stack_class(spec)
    decoder = dataclasses.replace(spec, stack='decoder')
    self.decoder = self.stack_class(decoder)
    self.deltas = ModelDeltas(self.plan, (spec.shape, decoder.shape))
    head = Site('lm_head', config.embed, config.vocab_size, 'embed', 'vocab', spec.dtype)
    self.lm_head = layers.OpenSite(head, self.plan.outside_layers())
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('vocab',))
    self.logits_bias = self.param(LOGITS_BIAS, zeros, (config.vocab_size,), jnp.float32)

  def stack_sites(self, stack: str) -> list[str]:
    """Site paths of one stack, without layer indices."""
    return stack_sites(stack)

  def head(self, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    """[..., embed] -> float32 logits [..., vocab]; the bias belongs to the site."""
    table = self.shared.embedding.astype(x.dtype)
    base = lambda x: self.logits_bias + matmul(x, table.T, jnp.float32)
    return self.lm_head(base, x, context)
