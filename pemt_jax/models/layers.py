"""Layers that the backbones share: projections, norms, tables, dropout, positions, attention."""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.models.products import matmul
from pemt_jax.models.sites import (
    Aux, AttentionInputs, Base, Plan, Site, SiteContext, call_site)
from pemt_jax.sharding.mesh import is_split

# Finite, so that a row without any real position gives a uniform softmax and no NaN.
MASKED = -1e9
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # of Threefry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
  """How a backbone computes; nothing here changes its parameters.

  Attributes:
    dtype: of activations and products; norms, softmax and losses are always float32.
    scan_layers: False unrolls the loop over layers, same numbers; None goes by `stack.is_loop`.
    remat: what the backward pass recomputes of a layer, see `stack.REMAT`.
    mask_targets: self-attention of the decoder does not look at padding of the targets. As the
      padding stands last, this changes nothing but states at padding.
    attention: 'plain', 'fused' or 'auto', see `models/attention.py`.
    attention_dropout: rate of the attention weights; None is the backbone's.
    platform: that programs are made for; '' is that of the default device.
    separate_layers: parameters stand in segments of one layer, see `segments.for_decoding`.
  """

  dtype: str = 'float32'
  scan_layers: bool | None = True
  remat: str = 'none'
  mask_targets: bool = False
  attention: str = 'auto'
  attention_dropout: float | None = None
  platform: str = ''
  separate_layers: bool = False

  @property
  def backend(self) -> str:
    """Platform that programs are made for."""
    return self.platform or jax.default_backend()


def fold_name(key: jax.Array, name: str) -> jax.Array:
  """Derives the key of a named consumer; the same name always gives the same key."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _counters(shape: tuple[int, ...], offsets: dict[int, jax.Array | int]):
  """Two uint32 counter words that name every element by its coordinates.

  The words do not depend on the padded lengths: 16 bits for each of the last two axes, the rest
  in the first word. `offsets` are subtracted from the coordinates of an axis.
  """
  def coordinate(axis):
    iota = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return iota - jnp.asarray(offsets.get(axis, 0), jnp.int32).astype(jnp.uint32)

  rank = len(shape)
  high = coordinate(0)
  for axis in range(1, rank - 2):
    high = high * jnp.uint32(256) + coordinate(axis)
  low = (coordinate(rank - 2) << 16) + (coordinate(rank - 1) & jnp.uint32(0xFFFF))
  return high, low


def threefry(key: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Threefry-2x32 with 20 rounds (Salmon et al. 2011), written out so that XLA fuses it.

  The bits are those of `jax.random`. Its primitive is a loop on the CPU, whose five turns each
  write their state to memory: about six times slower for the masks of a T5.

  Args:
    key: [2] uint32.
    high: first words of the counters, uint32 of any shape.
    low: second words.

  Returns:
    Two uint32 arrays of the same shape.
  """
  keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
  high, low = high + keys[0], low + keys[1]
  for turn in range(5):
    for distance in _ROTATIONS[turn % 2]:
      high = high + low
      low = high ^ ((low << jnp.uint32(distance)) | (low >> jnp.uint32(32 - distance)))
    high = high + keys[(turn + 1) % 3]
    low = low + (keys[(turn + 2) % 3] + jnp.uint32(turn + 1))
  return high, low


def dropout(x: jax.Array, rate: float, key: jax.Array | None,
            offsets: dict[int, jax.Array | int] | None = None) -> jax.Array:
  """Zeroes elements with probability `rate` and scales the others by 1 / (1 - rate).

  The choice for an element depends on the key and its coordinates only (Threefry counters), not
  on the padded shape: a row keeps its noise in a longer bucket, and a replica keeps its noise
  beside replicas with longer inputs.

  Args:
    x: [..., length, features] at least rank 2.
    rate: probability in [0, 1).
    key: random key; None means deterministic.
    offsets: axis -> number of padding positions in front along that axis.
  """
  if key is None or rate == 0.0:
    return x
  keep = _words(key, x.shape, offsets) >= jnp.uint32(min(rate * 2.0**32, 2.0**32 - 1))
  return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x)).astype(x.dtype)


def _words(key, shape, offsets):
  """A random uint32 for every element, by its coordinates."""
  key_words = jax.random.key_data(key).astype(jnp.uint32)
  # The two words of a Threefry block serve the two halves of an axis of fixed size.
  half_axis = len(shape) - 1 if len(shape) < 4 else 1
  half = (shape[half_axis] + 1) // 2
  offsets = offsets or {}
  if is_split('tensor'):  # Devices would exchange the halves: each makes both words of its part.
    behind = jax.lax.broadcasted_iota(jnp.int32, shape, half_axis) >= half
    shift = jnp.where(behind, half, 0) + offsets.get(half_axis, 0)
    first, second = threefry(key_words, *_counters(shape, {**offsets, half_axis: shift}))
    return jnp.where(behind, second, first)
  high, low = _counters(shape[:half_axis] + (half,) + shape[half_axis + 1:], offsets)
  bits = jnp.concatenate(threefry(key_words, high, low), axis=half_axis)
  return jax.lax.slice_in_dim(bits, 0, shape[half_axis], axis=half_axis)


def uniform(key: jax.Array, shape: tuple[int, ...],
            offsets: dict[int, jax.Array | int] | None = None) -> jax.Array:
  """Draws from [0, 1), float32, each by the key and its coordinates only, see `dropout`."""
  return (_words(key, shape, offsets) >> 8).astype(jnp.float32) * 2.0**-24


def normal_init(stddev: float) -> Callable[..., jax.Array]:
  """Normal initialiser with a fixed standard deviation."""
  return nn.initializers.normal(stddev)


def add_vector(y: jax.Array, vector: jax.Array) -> jax.Array:
  """y + vector in the dtype of y; the gradient of the vector is a sum in float32 whatever that is.

  Args:
    y: [..., features].
    vector: what is broadcast to it, over the positions and rows of a batch.
  """
  return (y.astype(jnp.float32) + vector.astype(jnp.float32)).astype(y.dtype)


def scale_features(y: jax.Array, vector: jax.Array) -> jax.Array:
  """y * vector, otherwise as `add_vector`."""
  return (y.astype(jnp.float32) * vector.astype(jnp.float32)).astype(y.dtype)


class Projection(nn.Module):
  """A matrix product; a site.

  Attributes:
    site: where it stands; `site.features` is the output size.
    plan: rules that hold in this layer.
    stddev: standard deviation of the initial kernel.
    bias: add a vector, which starts from 0.
    result: dtype of the output; None is that of the site. Logits are not rounded.
  """

  site: Site
  plan: Plan
  stddev: float
  bias: bool = False
  result: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    site = self.site

    @functools.cache
    def weights(size):
      init = nn.with_logical_partitioning(normal_init(self.stddev), (site.in_axis, site.out_axis))
      kernel = self.param('kernel', init, (size, site.features), jnp.float32)
      if not self.bias:
        return kernel, None
      init = nn.with_logical_partitioning(nn.initializers.zeros, (site.out_axis,))
      return kernel, self.param('bias', init, (site.features,), jnp.float32)

    def base(value):
      kernel, bias = weights(value.shape[-1])
      y = matmul(value.astype(site.dtype), kernel.astype(site.dtype), self.result)
      return y if bias is None else add_vector(y, bias)

    return call_site(self.plan, site, base, x, context)


class OpenSite(nn.Module):
  """A site whose operation is the caller's, such as the embedding, attention or a tied head."""

  site: Site
  plan: Plan

  @nn.compact
  def __call__(self, base: Base, x: Any, context: SiteContext) -> tuple[jax.Array, Aux]:
    """base(x) with the planned deltas around it, and auxiliaries."""
    return call_site(self.plan, self.site, base, x, context)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array,
               epsilon: float = 1e-5) -> jax.Array:
  """Layer norm over the last axis in float32; keeps shape and dtype."""
  value = x.astype(jnp.float32)
  mean = jnp.mean(value, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(value - mean), axis=-1, keepdims=True)
  return ((value - mean) * jax.lax.rsqrt(variance + epsilon) * scale + bias).astype(x.dtype)


class Norm(nn.Module):
  """Norm over the last axis in float32; a site.

  Attributes:
    site: where it stands.
    plan: rules that hold in this layer.
    epsilon: added to the mean square.
    centred: layer norm with mean and bias; otherwise the root-mean-square norm of T5.
  """

  site: Site
  plan: Plan
  epsilon: float
  centred: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    site = self.site

    @functools.cache
    def weight(name, init):
      init = nn.with_logical_partitioning(init, ('norm',))
      return self.param(name, init, (site.features,), jnp.float32)

    def base(value):
      value = value.astype(jnp.float32)
      scale = weight('scale', nn.initializers.ones)
      if self.centred:
        y = layer_norm(value, scale, weight('bias', nn.initializers.zeros), self.epsilon)
        return y.astype(site.dtype)
      variance = jnp.mean(jnp.square(value), axis=-1, keepdims=True)
      return (value * jax.lax.rsqrt(variance + self.epsilon) * scale).astype(site.dtype)

    return call_site(self.plan, site, base, x, context)


class Embedding(nn.Module):
  """A table whose rows are looked up; the table of tokens is a site, `shared`.

  Attributes:
    rows: of the table.
    features: of a row.
    stddev: of the first table.
    axis: logical name of the rows.
    plan: rules for the table itself; an operation without input makes it, and its auxiliaries are
      left out.
  """

  rows: int
  features: int
  stddev: float = 1.0
  axis: str = 'vocab'
  plan: Plan = Plan()

  @nn.compact
  def table(self) -> jax.Array:
    """[rows, features] float32."""
    def base(_):
      init = nn.with_logical_partitioning(normal_init(self.stddev), (self.axis, 'embed_table'))
      return self.param('embedding', init, (self.rows, self.features), jnp.float32)

    site = Site('shared', self.rows, self.features, self.axis, 'embed_table', jnp.float32)
    context = SiteContext(jnp.ones((1, 1)), jnp.ones((1,)))
    return call_site(self.plan, site, base, None, context)[0]

  @property
  def embedding(self) -> jax.Array:
    """The table."""
    return self.table()

  def __call__(self, ids: jax.Array) -> jax.Array:
    """[...] ids -> [..., features]."""
    return jnp.take(self.table(), ids, axis=0)


def relative_buckets(relative: jax.Array, bidirectional: bool, buckets: int,
                     max_distance: int) -> jax.Array:
  """Maps distances (key position - query position) to buckets (Raffel et al. 2020, sec. 2.1).

  Half of the buckets hold exact distances, the others grow logarithmically up to `max_distance`.

  Args:
    relative: int32 of any shape.
    bidirectional: whether later positions have buckets of their own (encoder).
    buckets: number of buckets.
    max_distance: distance from which all positions share the last bucket.

  Returns:
    int32 of the same shape, in [0, buckets).
  """
  result = jnp.zeros_like(relative)
  if bidirectional:
    buckets //= 2
    result += jnp.where(relative > 0, buckets, 0)
    distance = jnp.abs(relative)
  else:
    distance = jnp.maximum(-relative, 0)
  exact = buckets // 2
  ratio = jnp.maximum(distance, 1).astype(jnp.float32) / exact
  large = exact + (jnp.log(ratio) / math.log(max_distance / exact) * (buckets - exact)).astype(
      jnp.int32)
  return result + jnp.where(distance < exact, distance, jnp.minimum(large, buckets - 1))


class RelativeBias(nn.Module):
  """Relative position bias of a stack; computed once and shared by its layers."""

  buckets: int
  heads: int
  max_distance: int
  bidirectional: bool
  stddev: float

  @nn.compact
  def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns [1, heads, queries, keys] float32 for position vectors [queries] and [keys].

    Queries [batch, queries] give [batch, heads, queries, keys].
    """
    init = nn.with_logical_partitioning(normal_init(self.stddev), ('relative_bucket', 'heads'))
    table = self.param('embedding', init, (self.buckets, self.heads), jnp.float32)
    index = relative_buckets(keys - queries[..., None], self.bidirectional, self.buckets,
                             self.max_distance)
    bias = jnp.moveaxis(jnp.take(table, index, axis=0), -1, -3)
    return bias if queries.ndim > 1 else bias[None]


def attend(inputs: AttentionInputs, bias: jax.Array, prefix_bias: jax.Array | None,
           rate: float, rng: tuple[jax.Array | None, dict[int, Any]],
           scale: float = 1.0) -> jax.Array:
  """Attention; softmax in float32.

  Keys of a prefix have no batch axis as a rule, so logits are joined and not keys.

  Args:
    inputs: queries, keys and values.
    bias: broadcastable to [batch, heads, queries, keys], float32.
    prefix_bias: broadcastable to [batch, heads, queries, prefix], or None for zeros.
    rate: dropout rate of the attention weights.
    rng: dropout key (None = deterministic) and padding offsets of the axes.
    scale: of the products of queries and keys; T5 has none.

  Returns:
    [batch, queries, heads * kv].
  """
  if scale != 1.0:
    inputs = inputs.replace(query=inputs.query * scale)
  product = lambda a, b: matmul(a, jnp.swapaxes(b, -1, -2), jnp.float32)
  logits = product(inputs.query, inputs.key) + bias
  prefix = 0
  if inputs.prefix_key is not None:
    prefix = inputs.prefix_key.shape[-2]
    front = product(inputs.query, inputs.prefix_key)
    front = front if prefix_bias is None else front + prefix_bias
    logits = jnp.concatenate([front, logits], axis=-1)
  weights = jax.nn.softmax(logits, axis=-1)
  # The prefix has noise of its own, so that it does not move the noise of the keys.
  own = dropout(weights[..., prefix:], rate, *rng).astype(inputs.value.dtype)
  mixed = matmul(own, inputs.value)
  if prefix:
    key, offsets = rng
    key = None if key is None else fold_name(key, 'prefix')
    rest = {axis: offset for axis, offset in offsets.items() if axis != 3}
    own = dropout(weights[..., :prefix], rate, key, rest).astype(inputs.prefix_value.dtype)
    mixed += matmul(own, inputs.prefix_value)
  batch, heads, length, kv = mixed.shape
  return mixed.transpose(0, 2, 1, 3).reshape(batch, length, heads * kv)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
  """[batch, length, heads * kv] -> [batch, heads, length, kv]."""
  batch, length, joined = x.shape
  return x.reshape(batch, length, heads, joined // heads).transpose(0, 2, 1, 3)
