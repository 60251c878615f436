"""A feed-forward in which a router sends every token to a few of many experts."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.deltas.base import Delta, Values, Weight, Weights, create
from pemt_jax.errors import UserError
from pemt_jax.experts import grouped
from pemt_jax.experts.feed_forward import Experts, Work
from pemt_jax.models.layers import fold_name, uniform
from pemt_jax.models.sites import Aux, Base, Site, SiteContext
from pemt_jax.trees import Tree, flatten, unflatten


@flax.struct.dataclass
class Routes:
  """Where tokens go.

  Attributes:
    chosen: [batch, length, choice] expert, the number of experts for none.
    weight: like `chosen`, float32: factor of each expert's output.
    scale: [batch, length] float32 factor of the experts' input; None for 1.
    aux: auxiliaries by kind.
    capacity: most choices of an expert in a group, if there is a limit.
    together: all tokens of the batch are one group; otherwise each row is one.
  """

  chosen: jax.Array
  weight: jax.Array
  scale: jax.Array | None
  aux: Aux
  capacity: int | None = flax.struct.field(pytree_node=False, default=None)
  together: bool = flax.struct.field(pytree_node=False, default=False)


@dataclasses.dataclass(frozen=True)
class TokenRouting(Delta):
  """Base of routed feed-forwards; they stand at the site of a whole feed-forward.

  Auxiliaries: `load` [expert], the share of the real tokens' first choices that goes to each
  expert; `dropped` [], the share of all choices that capacity leaves out; `balance` [] and `router`
  [], losses of the layer; `probability` [batch, length, expert]; `chosen` and `weight` [batch,
  length, choice], capacity considered.

  Attributes:
    experts: their form.
    count: number of experts.
    route_padding: padding is routed too and takes part in capacity and losses (as published);
      otherwise it has no expert.
    jitter: in training the router reads its input times U(1 - jitter, 1 + jitter) (Fedus et al.
      2021, section 2.4).
    form: how tokens are grouped, see `experts/grouped.py`.
  """

  experts: Experts
  count: int
  route_padding: bool = True
  jitter: float = 0.0
  form: str = 'auto'
  replaces = True

  def router_weights(self, site: Site) -> Weights:
    """Weights of the router, float32."""
    raise NotImplementedError

  def route(self, logits: jax.Array, routed: jax.Array, training: bool,
            draws: jax.Array | None, decoding: bool = False) -> Routes:
    """Where tokens go.

    Args:
      logits: [batch, length, expert] float32.
      routed: [batch, length] 1 for tokens that have an expert.
      training: capacity and policies may differ.
      draws: [batch, length] in [0, 1), what the layer draws for each token; None without noise.
      decoding: a token comes alone, the length axis holds beams.
    """
    raise NotImplementedError

  def draws(self, context: SiteContext | None) -> bool:
    """Whether `route` reads draws."""
    raise NotImplementedError

  def weights(self, site: Site) -> Weights:
    """`router/...`, and those of the experts."""
    return self.router_weights(site) | self.experts.weights(site, self.count)

  def act(self, values: Values, base: Base, x: jax.Array, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length, embed] -> same shape; `values` hold kernels, see `module`.

    Raises:
      UserError: each row has experts of its own.
    """
    if values['router/kernel'].ndim > 2:
      raise UserError(f"the routed feed-forward at '{site.path}' cannot stand in a bank; train a"
                      ' model of its own for each task, or one for all of them.')
    key = None if context.key is None else fold_name(context.key, 'mlp/router')
    offsets = {1: context.offset} if site.stack == 'encoder' else None
    seen = x.astype(jnp.float32)
    if self.jitter and key is not None:
      noise = uniform(fold_name(key, 'jitter'), seen.shape, offsets)
      seen *= 1.0 + self.jitter * (2.0 * noise - 1.0)
    draws = None
    if self.draws(context):
      own = jax.random.key(0) if key is None else key
      draws = uniform(own, (*x.shape[:2], 1), offsets)[..., 0]
    decoding = context.position is not None
    mask = jnp.ones(x.shape[:2]) if decoding else jnp.broadcast_to(context.mask, x.shape[:2])
    routed = jnp.ones_like(mask) if self.route_padding else mask
    routes = self.route(self.logits(values, seen), routed, key is not None, draws, decoding)
    y = self.mixed(values, x, routes, Work(base, context, site))
    return y, routes.aux | {'load': load(routes, mask, self.count), 'weight': routes.weight}

  def logits(self, values: Values, x: jax.Array) -> jax.Array:
    """[batch, length, expert] float32."""
    logits = jnp.matmul(x.astype(jnp.float32), values['router/kernel'],
                        precision=jax.lax.Precision.HIGHEST)
    return logits + values['router/bias'] if 'router/bias' in values else logits

  def mixed(self, values: Values, x: jax.Array, routes: Routes, work: Work) -> jax.Array:
    """[batch, length, embed]: the weighted outputs of the experts that each token has."""
    if routes.scale is not None:
      x = (x * routes.scale[..., None]).astype(x.dtype)
    batch, length, choices = routes.chosen.shape
    shape = (1, batch * length) if routes.together else (batch, length)
    groups = grouped.group(routes.chosen.reshape(*shape, choices), self.count, self.form,
                           routes.capacity)
    y = self.experts(values, x, groups, work)
    weight = jnp.where(routes.chosen < self.count, routes.weight, 0.0)
    mixed = jnp.einsum('blkd,blk->bld', y, weight.astype(y.dtype))
    left = jnp.all(routes.chosen == self.count, axis=-1)
    return jnp.where(left[..., None], self.left_out(x, work), mixed)

  def left_out(self, x: jax.Array, work: Work) -> jax.Array:
    """What tokens without expert give."""
    return self.experts.unrouted(x, work)

  def dense(self, values: Values, site: str) -> Values:
    """Leaves of the plain feed-forward that a single expert is.

    Raises:
      UserError: several experts, or one that is no feed-forward of its own.
    """
    kernels = {} if self.count > 1 else self.experts.kernels(
        {name: value for name, value in values.items() if not name.startswith('router/')})
    if not any(name.endswith('/kernel') for name in kernels):
      raise UserError(f"the {self.count} experts of the feed-forwards at '{site}' are no plain"
                      ' feed-forward, so they cannot be folded into the backbone; keep the model as'
                      ' an expert.')
    return {name: value[..., 0, :, :] if name.endswith('/kernel')
            else value[..., 0, :] if self.experts.biases == 'expert' else value
            for name, value in kernels.items()}

  def module(self, site: Site, name: str) -> nn.Module:
    """The module at a site: it takes kernels where they are given, and makes them otherwise."""
    return _AtSite(self, site, name=name)


class _AtSite(nn.Module):
  delta: TokenRouting
  site: Site

  @nn.compact
  def __call__(self, base: Base, x: Any, context: SiteContext) -> tuple[Any, Aux]:
    delta, site = self.delta, self.site
    kernels = delta.experts.kernel_weights(site, delta.count)
    if kernels.keys() <= flatten(self.variables.get('params', {})).keys():
      values = create(self, delta.router_weights(site) | kernels, site.dtype)
    else:
      made = create(self, delta.weights(site), site.dtype)
      values = delta.experts.kernels(made)
    return delta.act(values, base, x, context.of_rule(self.name), site)


def load(routes: Routes, mask: jax.Array, experts: int) -> jax.Array:
  """[expert] share of the real tokens' first choices."""
  first = jax.nn.one_hot(routes.chosen[..., 0], experts) * mask[..., None]
  return jnp.sum(first, axis=(0, 1)) / jnp.maximum(jnp.sum(first), 1.0)


def router_loss(logits: jax.Array, routed: jax.Array) -> jax.Array:
  """Mean over tokens of logsumexp(logits)^2 (z-loss, Zoph et al. 2022, eq. 5).

  Args:
    logits: [batch, length, expert].
    routed: [batch, length] 1 for tokens that count.
  """
  each = jnp.square(jax.nn.logsumexp(logits, axis=-1))
  return jnp.sum(each * routed) / jnp.maximum(jnp.sum(routed), 1.0)


def limit(chosen: jax.Array, experts: int, capacity: int,
          priority: jax.Array | None = None) -> jax.Array:
  """Choices [group, choice] of which each expert keeps the first `capacity`, the others none."""
  return jnp.where(grouped.ranks(chosen, experts, priority) < capacity, chosen, experts)


def rebuilt(params: Tree, name: str, experts: Experts) -> Tree:
  """Parameters with the kernels of one rule's experts in place of what they are computed from.

  Args:
    params: of the model, whole or cut into segments.
    name: of the rule.
    experts: form of its experts.
  """
  flat = flatten(params)
  places = sorted({path.split(f'/{name}/')[0] for path in flat if f'/mlp/whole/{name}/' in path})
  for place in places:
    start = f'{place}/{name}/'
    own = {path.removeprefix(start): flat.pop(path) for path in list(flat)
           if path.startswith(start)}
    router = {path: value for path, value in own.items() if path.startswith('router/')}
    rest = {path: value for path, value in own.items() if path not in router}
    flat |= {f'{start}{path}': value for path, value in (router | experts.kernels(rest)).items()}
  return unflatten(flat)
