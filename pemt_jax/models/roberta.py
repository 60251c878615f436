"""RoBERTa and BERT: a pure Linen encoder with a head for whole texts; it knows no method.

The parts are those of T5 (`models/blocks.py`, `models/stack.py`) in post-norm order. Trees have the
layout of T5's encoder: `shared/embedding`, `encoder/layers/...`, and `head/...`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.models import layers
from pemt_jax.models.block_layers import PostNormLayer, layer_sites
from pemt_jax.models.blocks import BlockStyle, StackSpec
from pemt_jax.models.encoder_decoder import Backbone, TransformerStack
from pemt_jax.models.layers import fold_name
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.sites import Aux, Site, SiteContext
from pemt_jax.models.stack import Encoded, ModelDeltas

ENCODER_SITES = ('encoder/embed', 'encoder/embed_norm', *layer_sites('encoder'))
HEAD_SITES = ('head/dense', 'head/out')


def block_style(config: RobertaConfig) -> BlockStyle:
  """How the blocks of this family differ from T5's."""
  return BlockStyle(biases=True, centred_norms=True, scaled_attention=True, hidden_dropout=0.0,
                    stddev=config.stddev)


class Encoder(TransformerStack):
  """Positions, token types, their norm, and the layers."""

  def setup(self):
    spec, config = self.spec, self.spec.config
    self.make_layers(PostNormLayer)
    outside = dataclasses.replace(spec, plan=spec.plan.outside_layers())
    self.embed = layers.OpenSite(spec.site('embed', ('vocab', 'embed')), outside.plan)
    self.embed_norm = outside.norm('embed_norm')
    self.positions = layers.Embedding(config.positions, config.embed, config.stddev, 'position')
    self.token_types = layers.Embedding(config.token_types, config.embed, config.stddev,
                                        'token_type')

  def sites(self) -> list[str]:
    """Site paths of the stack, without layer indices."""
    return list(ENCODER_SITES)

  def position_ids(self, tokens: jax.Array, context: SiteContext) -> jax.Array:
    """Rows of the position table, prompt positions included: [batch, prompt + length] int32.

    RoBERTa counts what is no padding from pad_id + 1; padding has pad_id itself. BERT counts every
    position from 0. Rows that pad a prompt on the left are not counted.
    """
    config, length = self.spec.config, context.mask.shape[1]
    if config.kind == 'bert':
      numbers = jnp.maximum(jnp.arange(length) - context.offset, 0)
      return jnp.broadcast_to(numbers, context.mask.shape).astype(jnp.int32)
    real = (tokens != config.pad_id).astype(jnp.int32)
    if context.prompt_mask is not None:
      front = jnp.broadcast_to(context.prompt_mask, (len(tokens), length - tokens.shape[1]))
      real = jnp.concatenate([front.astype(jnp.int32), real], axis=1)
    return config.pad_id + jnp.cumsum(real, axis=1) * real

  def __call__(self, x: jax.Array, tokens: jax.Array, token_types: jax.Array | None,
               context: SiteContext) -> tuple[jax.Array, Aux]:
    """Runs the stack over whole sequences.

    Args:
      x: [batch, prompt + length, embed] embeddings of tokens.
      tokens: [batch, length] ids.
      token_types: [batch, length] ids, or None for zeros; positions of a prompt have 0.
      context: masks, task ids and dropout key.

    Returns:
      [batch, prompt + length, embed] and auxiliaries with a leading [layer] axis.
    """
    size = x.shape[1]
    self.check_length(size)
    types = jnp.zeros((1, 1), jnp.int32)
    if token_types is not None:
      types = jnp.pad(token_types, ((0, 0), (size - tokens.shape[1], 0)))
    x = x + self.positions(self.position_ids(tokens, context)) + self.token_types(types)
    return super().__call__(x, context)

  @property
  def longest(self) -> int:
    """Most positions."""
    return self.spec.config.max_length

  def begin(self, x: jax.Array, positions: jax.Array,
            context: SiteContext) -> tuple[jax.Array, Aux]:
    """The norm of the embeddings, which hold their positions already."""
    del positions
    return self.embed_norm(x, context)


class Head(nn.Module):
  """dropout, dense, tanh, dropout, out: of the state that stands for the text."""

  spec: StackSpec
  labels: int

  def setup(self):
    config, plan = self.spec.config, self.spec.plan.outside_layers()
    size, stddev, dtype = config.embed, config.stddev, self.spec.dtype
    dense = Site('head/dense', size, size, 'embed', 'joined_kv', dtype)
    out = Site('head/out', size, self.labels, 'joined_kv', 'label', dtype)
    self.dense = layers.Projection(dense, plan, stddev, bias=True)
    self.out = layers.Projection(out, plan, stddev, bias=True, result=jnp.float32)

  def __call__(self, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    """[batch, embed] -> float32 logits [batch, labels], and auxiliaries."""
    if context.key is not None:
      context = context.replace(key=fold_name(context.key, 'head'))
    # Sites read [batch, length, features].
    x, aux = self.dense(self._drop(x[:, None], context, 'in'), context)
    x, more = self.out(self._drop(jnp.tanh(x), context, 'out'), context)
    return x[:, 0], aux | more

  def _drop(self, x, context, name):
    key = None if context.key is None else fold_name(context.key, name)
    return layers.dropout(x, self.spec.config.dropout, key)


class Roberta(Backbone):
  """Encoder of RoBERTa or BERT with a head; `config` is a `RobertaConfig`.

  Attributes:
    labels: outputs of the head: classes, or 1 for a regression; 0 for no head.
  """

  labels: int = 2

  def setup(self):
    spec, self.shared = self.first_parts('encoder', block_style(self.config), self.config.stddev)
    self.encoder = Encoder(spec)
    self.deltas = ModelDeltas(self.plan, (spec.shape,))
    if self.labels:
      self.head = Head(spec, self.labels)

  def depths(self) -> dict[str, int]:
    """Number of layers of each stack."""
    return {'encoder': self.config.encoder_layers}

  def sites(self) -> list[str]:
    """All site paths, without layer indices."""
    return ['shared', *ENCODER_SITES, *(HEAD_SITES if self.labels else ())]

  @nn.nowrap
  def example_batch(self, batch: int = 1, length: int = 2) -> tuple[jax.Array, ...]:
    """Smallest arguments of a call: inputs, mask, token types, task ids."""
    tokens = jnp.ones((batch, length), jnp.int32)
    return (tokens, jnp.ones((batch, length), jnp.float32), 0 * tokens,
            jnp.zeros((batch,), jnp.int32))

  def encode(self, inputs: jax.Array, inputs_mask: jax.Array,
             token_types: jax.Array | None = None, task_ids: jax.Array | None = None,
             key: jax.Array | None = None) -> Encoded:
    """Encodes [batch, length] tokens, as `EncoderDecoder.encode`.

    `token_types` are [batch, length] ids (BERT), or None for zeros.
    """
    x, context, aux = self.embed(self.encoder, inputs, inputs_mask, task_ids, key)
    x, more = self.encoder(x, inputs, token_types, context)
    return Encoded(x, context.mask, context.rows, context.prompt_mask, aux | more)

  def classify(self, encoded: Encoded, task_ids: jax.Array | None = None,
               key: jax.Array | None = None) -> tuple[jax.Array, Aux]:
    """Logits [batch, labels] float32 of the first token's state; a prompt is not a token."""
    first = 0 if encoded.prompt_mask is None else encoded.prompt_mask.shape[0]
    context = SiteContext(jnp.ones((encoded.mask.shape[0], 1)), encoded.rows, task_ids=task_ids,
                          key=key, model=self.deltas())
    return self.head(encoded.states[:, first], context)

  def __call__(self, inputs: jax.Array, inputs_mask: jax.Array,
               token_types: jax.Array | None = None, task_ids: jax.Array | None = None,
               key: jax.Array | None = None) -> tuple[jax.Array, Aux]:
    """Logits [batch, labels], or states [batch, length, embed] without a head; auxiliaries."""
    encoded = self.encode(inputs, inputs_mask, token_types, task_ids, key)
    if not self.labels:
      return encoded.states, encoded.aux
    logits, aux = self.classify(encoded, task_ids, key)
    return logits, encoded.aux | aux
