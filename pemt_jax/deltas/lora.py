"""LoRA: a low-rank update beside a projection (Hu et al. 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.models.sites import Aux, Base, Site, SiteContext


def uniform_init(bound: float) -> Callable[..., jax.Array]:
  """Uniform initialiser on [-bound, bound]."""
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
      key, shape, dtype, -bound, bound)


@dataclasses.dataclass(frozen=True)
class LoRA:
  """y = base(x) + scaling * x A B.

  Attributes:
    rank: columns of A.
    scaling: alpha / rank, dimensionless.
    up_init: 'uniform' draws B from U(+-1/sqrt(rank)) (PEMT stage 1, as published: the model is
      changed at step 0); 'zero' starts from the backbone.
  """

  rank: int = 64
  scaling: float = 1.0
  up_init: str = 'uniform'

  def module(self, site: Site, name: str) -> nn.Module:
    """Returns the module for a site."""
    return _LoRA(self, site, name=name)

  def prepare(self, stack: str, name: str) -> None:
    """Nothing to prepare."""


class _LoRA(nn.Module):
  config: LoRA
  site: Site

  @nn.compact
  def __call__(self, base: Base, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    config, site = self.config, self.site
    down = self.param(
        'down', nn.with_logical_partitioning(uniform_init(x.shape[-1]**-0.5),
                                             (site.in_axis, 'rank')),
        (x.shape[-1], config.rank), jnp.float32)
    up_init = nn.initializers.zeros
    if config.up_init == 'uniform':
      up_init = uniform_init(config.rank**-0.5)
    up = self.param('up', nn.with_logical_partitioning(up_init, ('rank', site.out_axis)),
                    (config.rank, site.features), jnp.float32)
    hidden = x.astype(site.dtype) @ down.astype(site.dtype)
    return base(x) + config.scaling * (hidden @ up.astype(site.dtype)), {}
