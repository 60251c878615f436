"""The adapter of a backbone that norms behind the residual sum (Pfeiffer et al. 2021)."""

from __future__ import annotations

import dataclasses

import jax

from pemt_jax.deltas.adapter import Bottleneck, bottleneck, bottleneck_weights
from pemt_jax.deltas.base import Delta, Values, Weights
from pemt_jax.errors import UserError
from pemt_jax.models.sites import Aux, Base, Site, SiteContext


@dataclasses.dataclass(frozen=True)
class PostNormAdapter(Delta):
  """norm(f + bottleneck(norm(f + h)) + h), at the norm behind a sub-layer with output f.

  The norm of the backbone is used twice; h is the residual stream.

  Attributes:
    bottleneck: its shape.
  """

  bottleneck: Bottleneck
  packs = True

  def weights(self, site: Site) -> Weights:
    """Those of the bottleneck."""
    axis = site.out_axis
    return bottleneck_weights(self.bottleneck, (site.features,) * 2, (axis, axis))

  def act(self, values: Values, base: Base, x: jax.Array, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length, embed] sum f + h -> the same shape.

    Raises:
      UserError: the norm stands in front of its sub-layer, or at no sub-layer.
    """
    output = context.sublayer_output
    if output is None:
      raise UserError(f"'{site.path}' is no norm behind a sub-layer, where this adapter stands;"
                      ' choose another site or another backbone.')
    changed = output + bottleneck(self.bottleneck, values, base(x)).astype(output.dtype)
    return base(changed + context.residual), {}
