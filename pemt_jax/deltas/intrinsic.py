"""Experimental: adapters and LoRA whose matrices are linear images of one vector of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from pemt_jax.deltas.adapter import ACTIVATIONS
from pemt_jax.deltas.base import Delta, Values, Weight, Weights, normal_init
from pemt_jax.models.sites import Aux, Base, Site, SiteContext, StackShape


@dataclasses.dataclass(frozen=True)
class _Intrinsic(Delta):
  """Two matrices (z H).reshape, z shared by all sites, H of the site.

  Attributes:
    dimension: of z.
    rank: hidden units.
    biases: add a vector to each flat matrix before it is reshaped; starts from 0.
    stddev: of the first z and H.
  """

  dimension: int = 8
  rank: int = 10
  biases: bool = False
  stddev: float = 0.02
  packs = True

  def _sizes(self, site: Site) -> dict[str, tuple[int, int]]:
    """Name of each matrix and its shape."""
    raise NotImplementedError

  def model_weights(self, shapes: Mapping[str, StackShape]) -> Weights:
    """`z` [intrinsic]."""
    del shapes
    return {'z': Weight((self.dimension,), ('intrinsic',), normal_init(self.stddev))}

  def weights(self, site: Site) -> Weights:
    """`hyper_down`, `hyper_up` [intrinsic, in * out]; with biases `bias_down`, `bias_up`."""
    weights: Weights = {}
    for name, (rows, columns) in self._sizes(site).items():
      weights[f'hyper_{name}'] = Weight((self.dimension, rows * columns),
                                        ('intrinsic', 'generated'), normal_init(self.stddev))
      if self.biases:
        weights[f'bias_{name}'] = Weight((rows * columns,), ('generated',))
    return weights

  def generated(self, values: Values, context: SiteContext, site: Site) -> tuple[jax.Array, ...]:
    """The two matrices [in, out], or [batch, in, out] where rows have experts of their own."""
    found = []
    for name, size in self._sizes(site).items():
      flat = context.model['z'] @ values[f'hyper_{name}'] + values.get(f'bias_{name}', 0.0)
      rows = flat.shape[:1] if flat.ndim == 3 else ()
      found.append(flat.reshape(*rows, *size).astype(site.dtype))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class IntrinsicLoRA(_Intrinsic):
  """y = base(x) + scaling * x A B with generated A and B.

  Attributes:
    scaling: alpha / rank, dimensionless.
  """

  scaling: float = 1.6

  def _sizes(self, site):
    return {'down': (site.in_features, self.rank), 'up': (self.rank, site.features)}

  def act(self, values: Values, base: Base, x: jax.Array, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length, in] -> [batch, length, out]."""
    down, up = self.generated(values, context, site)
    return base(x) + self.scaling * (x.astype(site.dtype) @ down @ up), {}


@dataclasses.dataclass(frozen=True)
class IntrinsicAdapter(_Intrinsic):
  """u = y + act(y A) B with generated A and B, y = base(x).

  Attributes:
    activation: a key of `ACTIVATIONS`.
  """

  activation: str = 'swish'

  def _sizes(self, site):
    return {'down': (site.features, self.rank), 'up': (self.rank, site.features)}

  def act(self, values: Values, base: Base, x: Any, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length, in] -> [batch, length, out]."""
    down, up = self.generated(values, context, site)
    y = base(x)
    return y + ACTIVATIONS[self.activation](y @ down) @ up, {}
