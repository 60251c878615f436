"""Top-2 routing with a capacity of experts in each sequence (Lepikhin et al. 2020)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Weight, Weights, normal_init
from pemt_jax.experts.token_routing import Routes, TokenRouting, limit, router_loss
from pemt_jax.models.sites import Site, SiteContext

POLICIES = ('all', 'none', 'threshold', 'random')
_SMALLEST_CAPACITY = 4
_EPSILON = 1e-9


@dataclasses.dataclass(frozen=True)
class TopTwo(TokenRouting):
  """A token goes to its two best experts, weighted by their shares of probability.

  Attributes:
    policy: which second choices stay in training: 'all', 'none', those above the 'threshold', or at
      'random' with probability share / threshold.
    eval_policy: the same in evaluation; 'random' (as published) draws the same at every call.
    threshold: share of probability, see `policy`.
    capacity_factor: in training an expert takes max(min(n, int(n * factor / experts)), 4) choices
      of a sequence of n tokens, first choices first; None takes all.
    eval_capacity_factor: the same in evaluation (published: 2); without it whole sequences and
      cached decoding give the same.
  """

  policy: str = 'random'
  eval_policy: str = 'all'
  threshold: float = 0.2
  capacity_factor: float | None = 1.25
  eval_capacity_factor: float | None = None

  def router_weights(self, site: Site) -> Weights:
    """A matrix that starts from N(0, 1)."""
    return {'router/kernel': Weight((site.in_features, self.count), (site.in_axis, 'gate'),
                                    normal_init(1.0), exact=True)}

  def draws(self, context: SiteContext | None) -> bool:
    """Whether the policy draws."""
    training = context is not None and context.key is not None
    return (self.policy if training else self.eval_policy) == 'random'

  def route(self, logits: jax.Array, routed: jax.Array, training: bool,
            draws: jax.Array | None, decoding: bool = False) -> Routes:
    """See `TokenRouting.route`; a second choice stays where its draw is low."""
    probability = jax.nn.softmax(logits, axis=-1)
    first = jnp.argmax(probability, axis=-1).astype(jnp.int32)
    taken = jax.nn.one_hot(first, self.count)
    rest = probability * (1.0 - taken)
    second = jnp.argmax(rest, axis=-1).astype(jnp.int32)
    weight = jnp.stack([jnp.sum(probability * taken, axis=-1), jnp.max(rest, axis=-1)], axis=-1)
    weight /= jnp.sum(weight, axis=-1, keepdims=True) + _EPSILON
    policy = self.policy if training else self.eval_policy
    stays = self._stays(policy, weight[..., 1], draws)
    chosen = jnp.stack([first, jnp.where(stays, second, self.count)], axis=-1)
    chosen = jnp.where(routed[..., None] > 0, chosen, self.count)
    kept, capacity = chosen, None
    factor = self.capacity_factor if training else self.eval_capacity_factor
    if factor is not None and not decoding:
      length = chosen.shape[1]
      capacity = max(min(length, int(length * factor / self.count)), _SMALLEST_CAPACITY)
      kept = self._limited(chosen, capacity)
    wanted = jnp.sum(chosen < self.count)
    aux = {'balance': balance(probability, taken, routed), 'router': router_loss(logits, routed),
           'probability': probability, 'chosen': kept,
           'dropped': (wanted - jnp.sum(kept < self.count)) / jnp.maximum(wanted, 1)}
    return Routes(kept, weight, None, aux, capacity)

  def _stays(self, policy, share, draws):
    if policy == 'random':
      return draws < share / max(self.threshold, _EPSILON)
    return {'all': jnp.ones_like(share, bool), 'none': jnp.zeros_like(share, bool),
            'threshold': share > self.threshold}[policy]

  def _limited(self, chosen, capacity):
    batch, length, choices = chosen.shape
    by_choice = chosen.swapaxes(1, 2).reshape(batch, -1)  # all first choices stand first
    kept = limit(by_choice, self.count, capacity)
    return kept.reshape(batch, choices, length).swapaxes(1, 2)


def balance(probability: jax.Array, first: jax.Array, routed: jax.Array) -> jax.Array:
  """E^2 mean over sequences and experts of f_e P_e (Lepikhin et al. 2020, section 2.2).

  Args:
    probability: [batch, length, expert].
    first: like it, one-hot first choices, before capacity.
    routed: [batch, length] 1 for tokens that count; sequences without any count nothing.
  """
  count = jnp.sum(routed, axis=1)
  mean = lambda a: jnp.sum(a * routed[..., None], axis=1) / jnp.maximum(count, 1.0)[:, None]
  each = jnp.sum(mean(first) * mean(probability), axis=-1)
  return probability.shape[-1] * jnp.sum(each) / jnp.maximum(jnp.sum(count > 0), 1)
