"""Experimental low-rank forms on projections (Lv et al. 2023): tanh behind the product, biases."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Delta, Values, Weight, Weights, normal_init, uniform_init
from pemt_jax.models.layers import add_vector
from pemt_jax.models.sites import Aux, Base, Site, SiteContext


@dataclasses.dataclass(frozen=True)
class TanhLoRA(Delta):
  """y = base(x) + scaling * tanh(x A B) C; starts from the backbone, since B is 0.

  Attributes:
    rank: columns of A.
    scaling: alpha / rank, dimensionless.
    stddev: of the first C.
  """

  rank: int = 10
  scaling: float = 1.6
  stddev: float = 0.02
  packs = True

  def weights(self, site: Site) -> Weights:
    """`down` [in, rank] from U(+-1/sqrt(in)), `up` [rank, out], `mix` [out, out]."""
    return {'down': Weight((site.in_features, self.rank), (site.in_axis, 'rank'),
                           uniform_init(site.in_features**-0.5)),
            'up': Weight((self.rank, site.features), ('rank', site.out_axis)),
            'mix': _mix(site, self.stddev)}

  def act(self, values: Values, base: Base, x: jax.Array, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length, in] -> [batch, length, out]."""
    del context
    hidden = jnp.tanh(x.astype(site.dtype) @ values['down'] @ values['up'])
    return base(x) + self.scaling * (hidden @ values['mix']), {}


@dataclasses.dataclass(frozen=True)
class LowRankBias(Delta):
  """y = base(x) + scaling * b, b = r B or tanh(r B) C: a bias that does not depend on x.

  A second stage trains the vector r alone.

  Attributes:
    rank: size of the vector r.
    scaling: alpha / rank, dimensionless.
    tanh: whether a tanh and a square matrix C follow. Then r starts from a normal distribution,
      otherwise from 0.
    stddev: of first values.
  """

  rank: int = 10
  scaling: float = 1.6
  tanh: bool = False
  stddev: float = 0.02
  packs = True

  def weights(self, site: Site) -> Weights:
    """`vector` [rank], `up` [rank, out] and with a tanh `mix` [out, out]."""
    vector = Weight((self.rank,), ('rank',))
    init = normal_init(self.stddev)
    weights = {'vector': dataclasses.replace(vector, init=init) if self.tanh else vector,
               'up': Weight((self.rank, site.features), ('rank', site.out_axis), init)}
    return weights | ({'mix': _mix(site, self.stddev)} if self.tanh else {})

  def act(self, values: Values, base: Base, x: jax.Array, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length, in] -> [batch, length, out]."""
    del context, site
    bias = values['vector'] @ values['up']
    if self.tanh:
      bias = jnp.tanh(bias) @ values['mix']
    return add_vector(base(x), self.scaling * bias), {}


def _mix(site: Site, stddev: float) -> Weight:
  # A mesh axis serves one dimension of an array, so the first one has no name of the site's.
  return Weight((site.features,) * 2, ('generated', site.out_axis), normal_init(stddev))
