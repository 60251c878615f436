"""Switch: every token goes to its best expert (Fedus et al. 2021; MPOE, Gao et al. 2022)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Weight, Weights, uniform_init
from pemt_jax.experts.feed_forward import Work
from pemt_jax.experts.token_routing import Routes, TokenRouting, limit, router_loss
from pemt_jax.models.sites import Site, SiteContext

SCALINGS = ('gradient', 'probability')
SCALED = ('input', 'output')
DROPPED = ('zero', 'input')


@dataclasses.dataclass(frozen=True)
class Switch(TokenRouting):
  """Top-1 routing: exact, or with a capacity of experts.

  Attributes:
    scaling: a token's factor is p / stop_gradient(p), which is 1 and gives the router its
      gradient, or the probability p itself.
    scaled: what the factor multiplies: the expert's 'input' (as published) or its 'output' (Fedus
      et al. 2021).
    capacity_factor: in training an expert takes int(factor * tokens / experts) tokens of a batch, a
      random choice; None takes all.
    eval_capacity_factor: the same in evaluation, where the first tokens are taken.
    dropped: what a token beyond capacity gives: 'zero', so that only the residual stream goes on,
      or its 'input' (as published).
  """

  scaling: str = 'gradient'
  scaled: str = 'input'
  capacity_factor: float | None = None
  eval_capacity_factor: float | None = None
  dropped: str = 'zero'

  def router_weights(self, site: Site) -> Weights:
    """A linear map with bias, initialised as PyTorch does."""
    init = uniform_init(site.in_features**-0.5)
    return {'router/kernel': Weight((site.in_features, self.count), (site.in_axis, 'gate'), init,
                                    exact=True),
            'router/bias': Weight((self.count,), ('gate',), init, exact=True)}

  def draws(self, context: SiteContext | None) -> bool:
    """Which tokens of a full expert stay is drawn in training."""
    return self.capacity_factor is not None and context is not None and context.key is not None

  def route(self, logits: jax.Array, routed: jax.Array, training: bool,
            draws: jax.Array | None, decoding: bool = False) -> Routes:
    """See `TokenRouting.route`; tokens with low draws stay where an expert is full."""
    probability = jax.nn.softmax(logits, axis=-1)
    best = jnp.max(probability, axis=-1)
    chosen = jnp.argmax(probability, axis=-1).astype(jnp.int32)
    chosen = jnp.where(routed > 0, chosen, self.count)
    wanted = jnp.sum(chosen < self.count)
    factor = self.capacity_factor if training else self.eval_capacity_factor
    kept, capacity = chosen, None
    if factor is not None and not decoding:
      capacity = int(factor * chosen.size / self.count)
      priority = None if draws is None else draws.reshape(1, -1)
      kept = limit(chosen.reshape(1, -1), self.count, capacity, priority).reshape(chosen.shape)
    left = jnp.sum(kept == self.count) - jnp.sum(chosen == self.count)
    scale = best if self.scaling == 'probability' else best / jax.lax.stop_gradient(best)
    ones = jnp.ones_like(scale)
    aux = {'balance': balance(probability, chosen, routed), 'router': router_loss(logits, routed),
           'probability': probability, 'chosen': kept[..., None],
           'dropped': left / jnp.maximum(wanted, 1)}
    at_input = self.scaled == 'input'
    return Routes(kept[..., None], (ones if at_input else scale)[..., None],
                  scale if at_input else None, aux, capacity, capacity is not None)

  def left_out(self, x: jax.Array, work: Work) -> jax.Array:
    """Zeros or the input, see `dropped`."""
    return x if self.dropped == 'input' else super().left_out(x, work)


def balance(probability: jax.Array, chosen: jax.Array, routed: jax.Array) -> jax.Array:
  """E sum_e f_e P_e with the shares f of tokens and mean probabilities P (Fedus et al., eq. 4).

  Args:
    probability: [batch, length, expert].
    chosen: [batch, length] expert.
    routed: [batch, length] 1 for tokens that count.

  Returns:
    [], at least 1 where f and P agree; 1 for an even load.
  """
  experts = probability.shape[-1]
  count = jnp.maximum(jnp.sum(routed), 1.0)
  share = jnp.sum(jax.nn.one_hot(chosen, experts) * routed[..., None], axis=(0, 1)) / count
  mean = jnp.sum(probability * routed[..., None], axis=(0, 1)) / count
  return experts * jnp.sum(share * mean)
