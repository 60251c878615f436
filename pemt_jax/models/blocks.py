"""Blocks of transformers: attention, feed-forward, and what the layers of a stack share."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.models import attention, layers
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.models.layers import Compute, Norm, OpenSite, Projection
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.sites import (
    Aux, AttentionInputs, Plan, Site, SiteContext, StackShape)
from pemt_jax.models.t5_config import T5Config

Config = T5Config | BartConfig | RobertaConfig | GPT2Config
MEMORY = ('memory/key', 'memory/value')  # auxiliaries, see `StackInputs.remember`
ACTIVATIONS = {'relu': jax.nn.relu, 'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
               'gelu': functools.partial(jax.nn.gelu, approximate=False)}


@dataclasses.dataclass(frozen=True)
class BlockStyle:
  """In what the blocks of a family differ; the defaults are T5's.

  Attributes:
    biases: projections have biases.
    centred_norms: norms have a mean and a bias.
    scaled_attention: products of queries and keys are divided by sqrt(kv).
    hidden_dropout: rate between the two projections of the feed-forward; None takes the config's.
    cross_attention: layers of a decoder attend to an encoder.
    stddev: of all initial kernels; None goes by the width of their input.
    end_stddev: of the kernels that end a sub-layer; None is `stddev`.
  """

  biases: bool = False
  centred_norms: bool = False
  scaled_attention: bool = False
  hidden_dropout: float | None = None
  cross_attention: bool = True
  stddev: float | None = None
  end_stddev: float | None = None


@flax.struct.dataclass
class LayerInputs:
  """What is scanned beside the parameters; leaves have a leading [layer] axis in the scan.

  Attributes:
    index: [] layer index.
    per_layer: arrays that deltas prepared, by rule name.
    cross_keys: [batch, heads, source_length, kv] of a decoding step, else None.
    cross_values: like `cross_keys`.
    slot: [] place of the layer in its cache; None is the layer index.
  """

  index: jax.Array
  per_layer: dict[str, Any] = dataclasses.field(default_factory=dict)
  cross_keys: jax.Array | None = None
  cross_values: jax.Array | None = None
  slot: jax.Array | None = None

  @property
  def place(self) -> jax.Array:
    """[] place of the layer in its cache."""
    return self.index if self.slot is None else self.slot


@flax.struct.dataclass
class StackInputs:
  """What all layers of a stack share.

  Attributes:
    context: what deltas may read.
    bias: [1, heads, queries, keys] relative position bias of self-attention; [] zero without.
    front: [1, heads, queries, prefix] bias of the rows that deltas put in front; None without.
    mask: broadcastable to [batch, heads, queries, keys]; 0 where attention may look.
    cross_mask: the same for cross-attention, or None.
    position: [] position of a cached decoding step, or None.
    remember: whether self-attention over a whole sequence leaves its keys and values [batch,
      heads, length, kv] among the auxiliaries, under `MEMORY`.
  """

  context: SiteContext
  bias: jax.Array
  mask: jax.Array
  front: jax.Array | None = None
  cross_mask: jax.Array | None = None
  position: jax.Array | None = None
  remember: bool = flax.struct.field(pytree_node=False, default=False)

  @property
  def self_bias(self) -> tuple[jax.Array | None, jax.Array]:
    """What self-attention adds to its logits: for rows in front, and for keys."""
    return self.front, self.bias + self.mask

  def at_layer(self, layer: LayerInputs) -> StackInputs:
    """The same with the context of one layer: its index, its key, its prepared arrays."""
    context = self.context
    key = None if context.key is None else jax.random.fold_in(context.key, layer.index)
    return self.replace(
        context=context.replace(layer=layer.index, key=key, per_layer=layer.per_layer))


@dataclasses.dataclass(frozen=True)
class StackSpec:
  """The static part of a stack: configuration, plan, name and how to compute."""

  config: Config
  plan: Plan
  stack: str
  compute: Compute
  style: BlockStyle = BlockStyle()

  @property
  def dtype(self) -> Any:
    """dtype of activations."""
    return jnp.dtype(self.compute.dtype)

  @property
  def shape(self) -> StackShape:
    """Sizes of this stack."""
    config = self.config
    layers_ = config.encoder_layers if self.stack == 'encoder' else config.decoder_layers
    return StackShape(self.stack, layers_, config.embed, config.heads, config.kv, config.mlp,
                      self.dtype)

  @property
  def prefix(self) -> int:
    """Most rows that a layer's deltas put in front of the keys of self-attention."""
    path = f'{self.stack}/self_attention'
    return max(self.plan.for_layer(self.stack, layer).key_positions(path)
               for layer in range(self.shape.layers))

  def site(self, name: str, axes: tuple[str, str]) -> Site:
    """Returns a site of this stack."""
    config = self.config
    sizes = {'embed': config.embed, 'mlp': config.mlp, 'joined_kv': config.joined_kv,
             'vocab': config.vocab_size}
    return Site(f'{self.stack}/{name}', sizes[axes[0]], sizes[axes[1]], *axes, self.dtype)

  def with_plan(self, plan: Plan) -> StackSpec:
    """The same under another plan."""
    return dataclasses.replace(self, plan=plan)

  def projection(self, name: str, axes: tuple[str, str], stddev: float) -> Projection:
    """Returns a projection of this stack; `stddev` gives way to that of the style."""
    style = self.style
    stddev = stddev if style.stddev is None else style.stddev
    if style.end_stddev is not None and axes[1] == 'embed':
      stddev = style.end_stddev
    return Projection(self.site(name, axes), self.plan, stddev, self.style.biases)

  @property
  def has_front(self) -> bool:
    """Whether a prompt may stand in front of the positions of this stack."""
    return self.stack == 'encoder' or not self.style.cross_attention

  def norm(self, name: str) -> Norm:
    """Returns a norm of this stack."""
    site = self.site(name, ('embed', 'embed'))
    return Norm(site, self.plan, self.config.norm_epsilon, self.style.centred_norms)

  def drop(self, x: jax.Array, context: SiteContext, name: str,
           rate: float | None = None) -> jax.Array:
    """Dropout on [batch, length, features] at the named place; `rate` None takes the config's."""
    if context.key is None:
      return x
    offsets = {1: context.offset} if self.has_front else None
    rate = self.config.dropout if rate is None else rate
    return layers.dropout(x, rate, layers.fold_name(context.key, name), offsets)


class Attention(nn.Module):
  """Multi-head attention; `kind` is `self_attention` or `cross_attention`."""

  spec: StackSpec
  kind: str

  def setup(self):
    config, spec = self.spec.config, self.spec
    into, out = ('embed', 'joined_kv'), ('joined_kv', 'embed')
    self.q = spec.projection(f'{self.kind}/q', into, (config.embed * config.kv)**-0.5)
    self.k = spec.projection(f'{self.kind}/k', into, config.embed**-0.5)
    self.v = spec.projection(f'{self.kind}/v', into, config.embed**-0.5)
    self.o = spec.projection(f'{self.kind}/o', out, config.joined_kv**-0.5)
    self.attend = OpenSite(spec.site(self.kind, ('joined_kv', 'joined_kv')), spec.plan)

  def keys_values(self, states: jax.Array,
                  context: SiteContext) -> tuple[jax.Array, jax.Array, Aux]:
    """Returns keys and values [batch, heads, length, kv] of the states, and auxiliaries."""
    key, key_aux = self.k(states, context)
    value, value_aux = self.v(states, context)
    heads = self.spec.config.heads
    return layers.split_heads(key, heads), layers.split_heads(value, heads), key_aux | value_aux

  def rng(self, context: SiteContext) -> tuple[jax.Array | None, dict[int, Any]]:
    """Dropout key of the attention weights and padding offsets of their axes."""
    if context.key is None:
      return None, {}
    offsets = {}
    if self.spec.has_front:
      offsets = {2: context.offset, 3: context.offset}
    elif self.kind == 'cross_attention':
      offsets = {3: context.offset}
    return layers.fold_name(context.key, f'{self.kind}/weights'), offsets

  def mix(self, x: jax.Array, memory: tuple[jax.Array, jax.Array],
          bias: tuple[jax.Array | None, jax.Array], context: SiteContext) -> tuple[jax.Array, Aux]:
    """Attention of [batch, length, embed] to keys and values.

    Args:
      x: states that ask.
      memory: keys and values [batch, heads, keys, kv].
      bias: of the rows that deltas put in front (None for zeros) and of the keys.
      context: of the layer.

    Returns:
      [batch, length, embed] and auxiliaries.
    """
    query, query_aux = self.q(x, context)
    query = layers.split_heads(query, self.spec.config.heads)
    inputs = AttentionInputs(query, *memory)
    rate = self.spec.compute.attention_dropout
    rate = self.spec.config.attention_dropout if rate is None else rate
    mixed, aux = self._attend(inputs, bias, context, rate)
    out, out_aux = self.o(mixed, context)
    return out, query_aux | aux | out_aux

  def _attend(self, inputs, bias, context, rate):
    """The site of attention itself."""
    front, bias = bias
    scale = self.spec.config.kv**-0.5 if self.spec.style.scaled_attention else 1.0

    def base(inputs):
      own, rows = front, inputs.query.shape[0]
      if inputs.prefix_key is not None:
        if own is not None:  # A layer may have fewer rows in front than others of its stack.
          own = own[..., own.shape[-1] - inputs.prefix_key.shape[-2]:]
        if inputs.prefix_key.ndim == 4 and inputs.prefix_key.shape[0] != rows:
          spread = lambda a: jnp.repeat(a, rows // a.shape[0], axis=0)  # one copy for each beam
          inputs = inputs.replace(prefix_key=spread(inputs.prefix_key),
                                  prefix_value=spread(inputs.prefix_value))
      kernel = None
      if context.position is None and not self.is_initializing():
        dropped = rate if context.key is not None else 0.0
        kernel = attention.choose(self.spec.compute, inputs, dropped)
      if kernel is not None:
        return attention.run(kernel, inputs, bias, context.mask[:, 0], scale)
      return layers.attend(inputs, bias, own, rate, self.rng(context), scale)

    return self.attend(base, inputs, context)

  def __call__(self, x: jax.Array, inputs: StackInputs) -> tuple[jax.Array, Aux]:
    """Self-attention over the whole sequence."""
    key, value, aux = self.keys_values(x, inputs.context)
    out, more = self.mix(x, (key, value), inputs.self_bias, inputs.context)
    if inputs.remember:
      more |= dict(zip(MEMORY, (key, value), strict=True))
    return out, aux | more

  def cached(self, x: jax.Array, inputs: StackInputs, cache: dict[str, jax.Array],
             index: jax.Array) -> tuple[jax.Array, dict[str, jax.Array], Aux]:
    """Self-attention of one new position.

    Args:
      x: [batch, beams, embed]; beams stand on the length axis, each with a history of its own.
      inputs: what layers share; `position` is the new position.
      cache: `key` and `value`, [layer, batch * beams, heads, max_length, kv].
      index: [] place of the layer in the cache.

    Returns:
      [batch, beams, embed], the updated cache, auxiliaries.
    """
    batch, beams, _ = x.shape
    heads = self.spec.config.heads
    rows = lambda a: a.reshape(batch * beams, 1, -1)
    (query, a0), (key, a1), (value, a2) = (p(x, inputs.context) for p in (self.q, self.k, self.v))
    new = {'key': layers.split_heads(rows(key), heads),
           'value': layers.split_heads(rows(value), heads)}
    start = (index, 0, 0, inputs.position, 0)
    cache = cache | {
        name: jax.lax.dynamic_update_slice(old, new[name][None].astype(old.dtype), start)
        for name, old in cache.items() if name in new}
    key, value = (jax.lax.dynamic_index_in_dim(cache[name], index, 0, keepdims=False)
                  for name in ('key', 'value'))
    read = AttentionInputs(layers.split_heads(rows(query), heads), key, value)
    mixed, a3 = self._attend(read, inputs.self_bias, inputs.context, 0.0)
    out, a4 = self.o(mixed.reshape(batch, beams, -1), inputs.context)
    return out, cache, a0 | a1 | a2 | a3 | a4


class MLP(nn.Module):
  """Feed-forward: wo(act(wi x)), or wo(act(wi_0 x) * wi_1 x) when gated (v1.1); a site as a whole.
  """

  spec: StackSpec

  def setup(self):
    config, spec = self.spec.config, self.spec
    into, stddev = ('embed', 'mlp'), config.embed**-0.5
    self.whole = OpenSite(spec.site('mlp', ('embed', 'embed')), spec.plan)
    if config.gated:
      self.wi_0 = spec.projection('mlp/wi_0', into, stddev)
      self.wi_1 = spec.projection('mlp/wi_1', into, stddev)
    else:
      self.wi = spec.projection('mlp/wi', into, stddev)
    self.wo = spec.projection('mlp/wo', ('mlp', 'embed'), config.mlp**-0.5)

  def __call__(self, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    """[batch, length, embed] -> same shape."""
    inner: Aux = {}

    def base(x):
      y, aux = self._dense(x, context)
      inner.update(aux)
      return y

    y, aux = self.whole(base, x, context)
    return y, inner | aux

  def _dense(self, x, context):
    activation = ACTIVATIONS[self.spec.config.activation]
    if self.spec.config.gated:
      gate, aux = self.wi_0(x, context)
      linear, more = self.wi_1(x, context)
      hidden, aux = activation(gate) * linear, aux | more
    else:
      hidden, aux = self.wi(x, context)
      hidden = activation(hidden)
    hidden = nn.with_logical_constraint(hidden, ('act_batch', 'act_length', 'act_mlp'))
    hidden = self.spec.drop(hidden, context, 'mlp/hidden', self.spec.style.hidden_dropout)
    out, more = self.wo(hidden, context)
    return out, aux | more
