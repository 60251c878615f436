"""Biases where the backbone has none: BitFit (Ben Zaken et al. 2022)."""

from __future__ import annotations

import dataclasses

import jax

from pemt_jax.deltas.base import Delta, Values, Weight, Weights
from pemt_jax.models.layers import add_vector
from pemt_jax.models.sites import Aux, Base, Site, SiteContext


@dataclasses.dataclass(frozen=True)
class Bias(Delta):
  """y = base(x) + b, for projections, norms and the head; b starts at 0."""

  packs = True

  def weights(self, site: Site) -> Weights:
    """`bias` [out]."""
    return {'bias': Weight((site.features,), (site.out_axis,), exact=True)}

  def act(self, values: Values, base: Base, x: jax.Array, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length, in] -> [batch, length, out]."""
    return add_vector(base(x), values['bias']), {}
