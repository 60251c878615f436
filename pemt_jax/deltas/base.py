"""What a delta is: tables of weights and pure functions of their values.

A delta is a frozen dataclass that subclasses `Delta`. It names its weights, and what it does is a
pure function of the weights' values, so that banks, merges and exports work on every delta alike.
Weights live at three levels: at each site (per layer), once per stack, and once per model.

`act` must broadcast over a leading [batch] axis of its values, by which rows of one batch use
weights of their own: matrices are [in, out] or [batch, in, out], so `x @ w` serves both; vectors
are [features] or [batch, 1, features]; other shapes are reached by '...' in einsum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.errors import UserError
from pemt_jax.models.sites import Aux, Base, Site, SiteContext, StackShape

Values = dict[str, jax.Array]
zeros, ones = nn.initializers.zeros, nn.initializers.ones


def uniform_init(bound: float) -> Callable[..., jax.Array]:
  """Uniform initialiser on [-bound, bound]."""
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
      key, shape, dtype, -bound, bound)


normal_init = nn.initializers.normal


@dataclasses.dataclass(frozen=True)
class Weight:
  """One array of a delta.

  Attributes:
    shape: without axes of layers or experts.
    axes: logical name of each axis.
    init: (key, shape, dtype) -> first value.
    exact: keep float32 where the backbone computes in another dtype.
    constant: neither trained nor part of an expert's parameters; lives in `constants`.
    dtype: of the stored value; an integer one is never trained and needs `exact`.
  """

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  init: Callable[..., jax.Array] = zeros
  exact: bool = False
  constant: bool = False
  dtype: Any = jnp.float32

  def stacked(self, count: int) -> Weight:
    """The weight of `count` experts, on a leading `expert` axis."""
    def init(key, shape, dtype=jnp.float32):
      return jax.vmap(lambda k: self.init(k, shape[1:], dtype))(jax.random.split(key, count))

    return dataclasses.replace(self, shape=(count, *self.shape), axes=('expert', *self.axes),
                               init=init)


Weights = dict[str, Weight]


def create(module: nn.Module, weights: Mapping[str, Weight], dtype: Any) -> Values:
  """Makes the weights in the compact method of `module`; returns their values by name.

  Args:
    module: the owner; a name such as `down/kernel` goes to a child `down`.
    weights: what to make.
    dtype: of the returned values, but for exact ones.
  """
  values, groups = {}, {}
  for name, weight in weights.items():
    group, _, leaf = name.rpartition('/')
    if group:
      groups.setdefault(group, {})[leaf] = weight
      continue
    if weight.constant:
      make = lambda weight=weight: weight.init(jax.random.key(0), weight.shape, jnp.float32)
      value = module.variable('constants', name, make).value
    else:
      init = nn.with_logical_partitioning(weight.init, weight.axes)
      value = module.param(name, init, weight.shape, weight.dtype)
    values[name] = value if weight.exact or weight.constant else value.astype(dtype)
  for group, inner in groups.items():
    made = _Group(tuple(inner.items()), dtype, name=group)()
    values |= {f'{group}/{leaf}': value for leaf, value in made.items()}
  return values


class _Group(nn.Module):
  weights: tuple[tuple[str, Weight], ...]
  dtype: Any

  @nn.compact
  def __call__(self):
    return create(self, dict(self.weights), self.dtype)


class Delta:
  """Base of all deltas; subclasses are frozen dataclasses and override what they need."""

  replaces = False  # whether `dense` gives what stands in the place of the base's parameters
  packs = False  # whether rows may hold several examples, as in `models.packing`

  @property
  def key_positions(self) -> int:
    """Rows that the delta puts in front of the keys of an attention site."""
    return 0

  @property
  def front_positions(self) -> int:
    """Positions that the delta puts in front of an embedded text."""
    return 0

  @property
  def copies(self) -> int:
    """Copies of the layer that it makes, at the site of a whole layer."""
    return 0

  @property
  def prepares(self) -> bool:
    """Whether `prepare` does anything."""
    return type(self).prepare is not Delta.prepare

  def weights(self, site: Site) -> Weights:
    """Weights at a site; each layer has its own."""
    del site
    return {}

  def source_weights(self, site: Site) -> Weights:
    """What is trained where the weights at a site are computed; as a rule the weights themselves.
    """
    return self.weights(site)

  def from_source(self, values: Values, site: Site) -> Values:
    """Values of `weights` from those of `source_weights`."""
    del site
    return values

  def stack_weights(self, shape: StackShape) -> Weights:
    """Weights that the layers of a stack share."""
    del shape
    return {}

  def model_weights(self, shapes: Mapping[str, StackShape]) -> Weights:
    """Weights that the stacks of a model share; `shapes` has an entry for each stack."""
    del shapes
    return {}

  def prepare(self, values: Values, shape: StackShape, context: SiteContext) -> tuple[Any, Any]:
    """What is computed once per stack and forward pass, and once per generation.

    Args:
      values: of `stack_weights`.
      shape: of the stack.
      context: `context.model` holds the values of `model_weights`.

    Returns:
      (shared, per_layer): any pytrees, or None; leaves of per_layer have a leading [layer] axis.
      `act` finds them in its context, cut to its layer.
    """
    del values, shape, context
    return None, None

  def act(self, values: Values, base: Base, x: Any, context: SiteContext,
          site: Site) -> tuple[Any, Aux]:
    """The site's operation with the delta around it.

    Args:
      values: of `weights(site)`.
      base: the operation, innermost or with other deltas around it.
      x: its input.
      context: what may be read; `shared`, `per_layer` and `model` hold this delta's arrays only.
      site: the place.

    Returns:
      The output, and auxiliaries by kind.
    """
    raise NotImplementedError

  def fold(self, values: Values, kernel: jax.Array, site: Site) -> jax.Array:
    """The kernel [in, out] that does alone what `kernel` and the delta around it do.

    Args:
      values: of `weights(site)`.
      kernel: of the projection, float32.
      site: the place.

    Raises:
      UserError: the delta is no linear map of the projection.
    """
    del values, kernel
    raise UserError(f"the {type(self).__name__} at '{site.path}' cannot be folded into the"
                    ' backbone, since it is no linear change of a kernel; keep it as an expert.')

  def dense(self, values: Values, site: str) -> Values:
    """Leaves of the plain backbone that do what this delta does in their place.

    Args:
      values: of `weights(site)`, with any leading axes.
      site: path of the place.
    """
    raise NotImplementedError

  def module(self, site: Site, name: str) -> nn.Module:
    """The module that stands at a site."""
    return _AtSite(self, site, name=name)

  def stack_module(self, shape: StackShape, name: str) -> nn.Module | None:
    """The module that prepares the delta for a stack, or None."""
    return _OfStack(self, shape, name=name) if self.prepares else None

  def model_module(self, shapes: Mapping[str, StackShape], name: str) -> nn.Module | None:
    """The module that holds what the stacks share, or None."""
    weights = self.model_weights(shapes)
    return _Group(tuple(weights.items()), jnp.float32, name=name) if weights else None


class _AtSite(nn.Module):
  delta: Any
  site: Site

  @nn.compact
  def __call__(self, base: Base, x: Any, context: SiteContext) -> tuple[Any, Aux]:
    values = create(self, self.delta.weights(self.site), self.site.dtype)
    return self.delta.act(values, base, x, context.of_rule(self.name), self.site)


class _OfStack(nn.Module):
  delta: Any
  shape: StackShape

  @nn.compact
  def __call__(self, context: SiteContext) -> tuple[Any, Any]:
    values = create(self, self.delta.stack_weights(self.shape), jnp.float32)
    return self.delta.prepare(values, self.shape, context.of_rule(self.name))
