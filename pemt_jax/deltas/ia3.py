"""(IA)^3: learned factors of activations (Liu et al. 2022)."""

from __future__ import annotations

import dataclasses

import jax

from pemt_jax.deltas.base import Delta, Values, Weight, Weights, ones
from pemt_jax.models.layers import scale_features
from pemt_jax.models.sites import Aux, Base, Site, SiteContext

SIDES = ('output', 'input')


@dataclasses.dataclass(frozen=True)
class IA3(Delta):
  """y = base(x) * scale, or base(x * scale); starts from the backbone.

  Attributes:
    side: 'output' (keys and values) or 'input' (the feed-forward activation, at `mlp/wo`).
  """

  side: str = 'output'
  packs = True

  def weights(self, site: Site) -> Weights:
    """`scale` [features of the scaled side]."""
    size, axis = ((site.features, site.out_axis) if self.side == 'output'
                  else (site.in_features, site.in_axis))
    return {'scale': Weight((size,), (axis,), ones)}

  def act(self, values: Values, base: Base, x: jax.Array, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length, in] -> [batch, length, out]."""
    del context
    scale = values['scale']
    if self.side == 'output':
      return scale_features(base(x), scale), {}
    return base(scale_features(x.astype(site.dtype), scale)), {}

  def fold(self, values: Values, kernel: jax.Array, site: Site) -> jax.Array:
    """Columns or rows of the kernel times the factors."""
    del site
    scale = values['scale']
    return kernel * (scale if self.side == 'output' else scale[:, None])
