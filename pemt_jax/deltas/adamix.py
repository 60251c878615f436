"""AdaMix: a mixture of adapter matrices with random routing (Wang et al. 2022)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Delta, Values, Weight, Weights, normal_init
from pemt_jax.models.layers import add_vector, fold_name
from pemt_jax.models.sites import Aux, Base, Site, SiteContext

# What chooses the experts where the model is not trained.
INFERENCE = ('token', 'sentence', 'average')
_SEED = 0  # of the draws in evaluation, which are then the same each time


@dataclasses.dataclass(frozen=True)
class AdaMix(Delta):
  """y + up_j(gelu(down_i(y))), y = base(x): each forward pass draws the experts i and j.

  Attributes:
    experts: number of down and of up projections.
    size: units of the bottleneck.
    share_down: one down projection instead of `experts`.
    share_up: the same for up.
    inference: without a key, 'average' uses the mean of the experts' weights, weighted by softmax
      of `score`; 'sentence' draws an expert for each row, 'token' for each position.
    recorded: the draws are the constants `down/draw` and `up/draw`: [1] for all rows, [batch] or
      [batch, length].
  """

  experts: int
  size: int
  share_down: bool = False
  share_up: bool = False
  inference: str = 'average'
  recorded: bool = False

  def weights(self, site: Site) -> Weights:
    """`kernel` [member, in, out], `bias` [member, out] and `score` [member] of down and up."""
    weights: Weights = {}
    parts = {'down': (site.features, self.size, site.out_axis, 'adapter', self.share_down),
             'up': (self.size, site.features, 'adapter', site.out_axis, self.share_up)}
    for name, (inward, outward, in_axis, out_axis, shared) in parts.items():
      count = 1 if shared else self.experts
      weights |= {
          f'{name}/kernel': Weight((count, inward, outward), ('member', in_axis, out_axis),
                                   normal_init(0.01)),
          f'{name}/bias': Weight((count, outward), ('member', out_axis)),
          f'{name}/score': Weight((count,), ('member',), exact=True)}
      if self.recorded:
        weights[f'{name}/draw'] = Weight((1,), ('act_batch',), constant=True)
    return weights

  def _chosen(self, name: str, values: Values, x: jax.Array, context: SiteContext,
              site: Site) -> jax.Array:
    """Weights of the experts: [member], [batch, member] or [batch, length, member]."""
    score = values[f'{name}/score']
    count = score.shape[-1]
    if self.recorded:
      draw = values[f'{name}/draw'].astype(jnp.int32)
    elif context.key is not None:
      draw = jax.random.randint(fold_name(context.key, f'{site.path}/{name}'), (), 0, count)
    elif self.inference == 'average':
      weights = jax.nn.softmax(score.astype(jnp.float32), axis=-1)
      return weights[:, 0] if weights.ndim == 3 else weights
    else:
      key = fold_name(jax.random.key(_SEED), f'{site.path}/{name}')
      draw = self._draw(jax.random.fold_in(key, context.layer), x, context, site, count)
    return jax.nn.one_hot(draw, count, dtype=jnp.float32)

  def _draw(self, key, x, context, site, count):
    rows = jax.random.randint(fold_name(key, 'rows'), x.shape[:1], 0, count)
    if self.inference == 'sentence':
      return rows
    # A position draws the same in a cached step, in a whole sequence and behind padding.
    if context.position is None:
      start = context.offset if site.stack == 'encoder' else 0
      positions = jnp.arange(x.shape[1]) - start
    else:
      positions = jnp.full(x.shape[1], context.position)
    draw = lambda position: jax.random.randint(
        jax.random.fold_in(key, position), x.shape[:1], 0, count)
    return jax.vmap(draw, out_axes=1)(positions.astype(jnp.uint32))

  def _project(self, name, values, x, context, site):
    kernel, bias = values[f'{name}/kernel'], values[f'{name}/bias']
    chosen = self._chosen(name, values, x, context, site).astype(x.dtype)
    if chosen.ndim == 3:
      each = add_vector(jnp.einsum('...li,...eio->...leo', x, kernel), bias[..., None, :, :])
      return jnp.einsum('...leo,...le->...lo', each, chosen)
    kernel = jnp.einsum('...e,...eio->...io', chosen, kernel)
    bias = jnp.einsum('...e,...eo->...o', chosen, bias)
    return add_vector(x @ kernel, bias[:, None, :] if bias.ndim == 2 else bias)

  def act(self, values: Values, base: Base, x: jax.Array, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length, in] -> [batch, length, out]."""
    y = base(x)
    hidden = self._project('down', values, y, context, site)
    hidden = jax.nn.gelu(hidden, approximate=False)
    return y + self._project('up', values, hidden, context, site), {}
