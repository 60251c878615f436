"""LoRA: a low-rank update beside a projection (Hu et al. 2021)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Delta, Values, Weight, Weights, uniform_init, zeros
from pemt_jax.models.products import matmul
from pemt_jax.models.sites import Aux, Base, Site, SiteContext


@dataclasses.dataclass(frozen=True)
class LoRA(Delta):
  """y = base(x) + scaling * x A B.

  Attributes:
    rank: columns of A.
    scaling: alpha / rank, dimensionless.
    up_init: 'uniform' draws B from U(+-1/sqrt(rank)) (PEMT stage 1, as published: the model is
      changed at step 0); 'zero' starts from the backbone.
    down_bound: A is drawn from U(+-down_bound); None takes 1/sqrt(in).
    row_biases: add a vector to every row of A and one to every row of B; start from 0.
  """

  rank: int = 64
  scaling: float = 1.0
  up_init: str = 'uniform'
  down_bound: float | None = None
  row_biases: bool = False
  packs = True

  def weights(self, site: Site) -> Weights:
    """`down` [in, rank] and `up` [rank, out]; with row biases `down_bias`, `up_bias`."""
    bound = site.in_features**-0.5 if self.down_bound is None else self.down_bound
    up = uniform_init(self.rank**-0.5) if self.up_init == 'uniform' else zeros
    weights = {'down': Weight((site.in_features, self.rank), (site.in_axis, 'rank'),
                              uniform_init(bound)),
               'up': Weight((self.rank, site.features), ('rank', site.out_axis), up)}
    if self.row_biases:
      weights |= {'down_bias': Weight((self.rank,), ('rank',)),
                  'up_bias': Weight((site.features,), (site.out_axis,))}
    return weights

  def _factors(self, values):
    if not self.row_biases:
      return values['down'], values['up']
    return values['down'] + values['down_bias'], values['up'] + values['up_bias']

  def act(self, values: Values, base: Base, x: jax.Array, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length, in] -> [batch, length, out]."""
    down, up = self._factors(values)
    hidden = matmul(x.astype(site.dtype), down)
    return base(x) + self.scaling * (matmul(hidden, up)), {}

  def fold(self, values: Values, kernel: jax.Array, site: Site) -> jax.Array:
    """kernel + scaling * A B."""
    del site
    down, up = self._factors(values)
    return kernel + self.scaling * jnp.matmul(down, up, precision=jax.lax.Precision.HIGHEST)
