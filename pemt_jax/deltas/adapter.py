"""Bottleneck adapters (Houlsby et al. 2019): after a projection, or beside it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.models.sites import Aux, Base, Site, SiteContext

ACTIVATIONS = {
    'gelu_new': functools.partial(jax.nn.gelu, approximate=True),
    'gelu': functools.partial(jax.nn.gelu, approximate=False),
    'relu': jax.nn.relu,
    'swish': jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class Bottleneck:
  """Shape of up(act(down(x))) with biases.

  Attributes:
    size: width of the bottleneck.
    activation: a key of ACTIVATIONS.
    pre_norm: layer norm of the bottleneck's input.
    post_norm: layer norm of the bottleneck's output, before the residual.
  """

  size: int
  activation: str = 'gelu_new'
  pre_norm: bool = False
  post_norm: bool = False


class LayerNorm(nn.Module):
  """Layer norm with scale and bias in float32, epsilon 1e-5."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., features] -> same shape and dtype."""
    init = nn.with_logical_partitioning
    scale = self.param('scale', init(nn.initializers.ones, ('norm',)), (x.shape[-1],))
    bias = self.param('bias', init(nn.initializers.zeros, ('norm',)), (x.shape[-1],))
    value = x.astype(jnp.float32)
    mean = jnp.mean(value, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(value - mean), axis=-1, keepdims=True)
    return ((value - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias).astype(x.dtype)


class _Dense(nn.Module):
  features: int
  axes: tuple[str, str]

  @nn.compact
  def __call__(self, x):
    init = nn.with_logical_partitioning
    kernel = self.param('kernel', init(nn.initializers.normal(0.01), self.axes),
                        (x.shape[-1], self.features), jnp.float32)
    bias = self.param('bias', init(nn.initializers.zeros, self.axes[1:]), (self.features,))
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def bottleneck(config: Bottleneck, x: jax.Array, features: int,
               axes: tuple[str, str]) -> jax.Array:
  """up(act(down(x))); makes its submodules in the compact method that calls it.

  Args:
    config: shape of the bottleneck.
    x: [..., in].
    features: size of the output.
    axes: logical names of the last axis of input and output.

  Returns:
    [..., features]. Initial kernels are N(0, 0.01^2), biases 0.
  """
  if config.pre_norm:
    x = LayerNorm(name='pre_norm')(x)
  hidden = _Dense(config.size, (axes[0], 'adapter'), name='down')(x)
  hidden = ACTIVATIONS[config.activation](hidden)
  y = _Dense(features, ('adapter', axes[1]), name='up')(hidden)
  return LayerNorm(name='post_norm')(y) if config.post_norm else y


@dataclasses.dataclass(frozen=True)
class Adapter:
  """u = y + bottleneck(y), y = base(x): after the projection (PEMT's target adapter)."""

  bottleneck: Bottleneck

  def module(self, site: Site, name: str) -> nn.Module:
    """Returns the module for a site."""
    return _Adapter(self, site, name=name)

  def prepare(self, stack: str, name: str) -> None:
    """Nothing to prepare."""


class _Adapter(nn.Module):
  config: Adapter
  site: Site

  @nn.compact
  def __call__(self, base: Base, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    y, axis = base(x), self.site.out_axis
    return y + bottleneck(self.config.bottleneck, y, self.site.features, (axis, axis)), {}


@dataclasses.dataclass(frozen=True)
class ParallelAdapter:
  """y = base(x) + bottleneck(x) + n, n = normalised input of the sub-layer.

  This is PEMT's adapter expert: it stands beside `wo`, reads the feed-forward activation and
  carries the sub-layer's input as a residual of its own.
  """

  bottleneck: Bottleneck

  def module(self, site: Site, name: str) -> nn.Module:
    """Returns the module for a site."""
    return _ParallelAdapter(self, site, name=name)

  def prepare(self, stack: str, name: str) -> None:
    """Nothing to prepare."""


class _ParallelAdapter(nn.Module):
  config: ParallelAdapter
  site: Site

  @nn.compact
  def __call__(self, base: Base, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    site = self.site
    beside = bottleneck(self.config.bottleneck, x, site.features, (site.in_axis, site.out_axis))
    return base(x) + beside + context.sublayer_input, {}
