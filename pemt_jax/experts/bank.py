"""Banks: experts stacked on a leading `expert` axis, run as one wide delta.

The update of E low-rank experts is one pair of matrix products of width E * rank with gated
columns; the separate expert outputs [expert, batch, length, embed] are never formed. Every expert
has the form e_i = h_i U_i + c_i with hidden activations h_i [rank], so inner products with the
expert outputs follow from h_i alone (see `similarity`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.deltas.adapter import ACTIVATIONS
from pemt_jax.deltas.base import uniform_init
from pemt_jax.models.layers import add_vector, scale_features
from pemt_jax.models.sites import Site

# Norms below this count as zero in a cosine (as in torch.nn.functional.cosine_similarity).
COSINE_EPSILON = 1e-8


@dataclasses.dataclass(frozen=True)
class LoRAExperts:
  """Experts e_i = scaling * x A_i B_i."""

  rank: int
  scaling: float = 1.0

  def module(self, site: Site, count: int, name: str) -> nn.Module:
    """Returns a bank of `count` experts."""
    return _LoRABank(self, site, count, name=name)


@dataclasses.dataclass(frozen=True)
class AdapterExperts:
  """Experts e_i = act(x D_i + b_i) U_i + c_i + n, n = normalised input of the sub-layer."""

  size: int
  activation: str = 'gelu_new'

  def module(self, site: Site, count: int, name: str) -> nn.Module:
    """Returns a bank of `count` experts."""
    return _AdapterBank(self, site, count, name=name)


@dataclasses.dataclass(frozen=True)
class BankOutput:
  """The experts' hidden activations and what maps them to outputs e_i = h_i U_i + bias_i + shared.

  Attributes:
    hidden: [batch, length, expert, rank].
    up: [expert, rank, embed].
    bias: [expert, embed] or None.
    shared: [batch, length, embed] residual that each expert carries, or None.
  """

  hidden: jax.Array
  up: jax.Array
  bias: jax.Array | None = None
  shared: jax.Array | None = None

  def mix(self, gate: jax.Array) -> jax.Array:
    """sum_i gate_i e_i for gates [batch, expert] or [batch, length, expert].

    Returns:
      [batch, length, embed].
    """
    gate = gate[:, None, :] if gate.ndim == 2 else gate
    gated = scale_features(self.hidden, gate[..., None])
    mixed = jnp.einsum('blxr,xre->ble', gated, self.up)
    if self.bias is not None:
      mixed = add_vector(mixed, gate @ self.bias.astype(gate.dtype))
    if self.shared is not None:
      mixed += scale_features(self.shared, jnp.sum(gate, axis=-1, keepdims=True))
    return mixed

  def similarity(self, u: jax.Array) -> jax.Array:
    """Cosine of u [batch, length, embed] with every expert's output, in float32.

    u.e_i = h_i.(U_i u) + c_i.u and |e_i|^2 = h_i (U_i U_i^T) h_i + 2 h_i.(U_i c_i) + |c_i|^2
    with c_i = bias_i + shared; nothing larger than [batch, length, expert, rank] is kept.

    Returns:
      [batch, length, expert].
    """
    to_float = lambda a: a.astype(jnp.float32)
    u, up, hidden = to_float(u), to_float(self.up), to_float(self.hidden)
    dot = jnp.sum(hidden * jnp.einsum('ble,xre->blxr', u, up), axis=-1)
    gram = jnp.einsum('xre,xse->xrs', up, up)
    square = jnp.einsum('blxr,xrs,blxs->blx', hidden, gram, hidden)
    if self.bias is not None:
      bias = to_float(self.bias)
      dot += jnp.einsum('ble,xe->blx', u, bias)
      square += 2 * jnp.einsum('blxr,xr->blx', hidden, jnp.einsum('xre,xe->xr', up, bias))
      square += jnp.sum(bias**2, axis=-1)
    if self.shared is not None:
      shared = to_float(self.shared)
      dot += jnp.sum(u * shared, axis=-1)[..., None]
      square += 2 * jnp.sum(hidden * jnp.einsum('ble,xre->blxr', shared, up), axis=-1)
      square += jnp.sum(shared**2, axis=-1)[..., None]
      if self.bias is not None:
        square += 2 * jnp.einsum('ble,xe->blx', shared, bias)
    own = jnp.sum(u**2, axis=-1)[..., None]
    return dot / (_guarded_norm(own) * _guarded_norm(square))


def _guarded_norm(square: jax.Array) -> jax.Array:
  """sqrt(max(square, epsilon^2)): finite gradients where an expert is silent (B = 0)."""
  return jnp.sqrt(jnp.maximum(square, COSINE_EPSILON**2))


class _LoRABank(nn.Module):
  config: LoRAExperts
  site: Site
  count: int

  @nn.compact
  def __call__(self, x: jax.Array, residual: jax.Array) -> BankOutput:
    config, site, init = self.config, self.site, nn.with_logical_partitioning
    down = self.param(
        'down', init(uniform_init(x.shape[-1]**-0.5), ('expert', site.in_axis, 'rank')),
        (self.count, x.shape[-1], config.rank), jnp.float32)
    up = self.param('up', init(nn.initializers.zeros, ('expert', 'rank', site.out_axis)),
                    (self.count, config.rank, site.features), jnp.float32)
    hidden = jnp.einsum('blf,xfr->blxr', x.astype(site.dtype), down.astype(site.dtype))
    return BankOutput(hidden * config.scaling, up.astype(site.dtype))


class _AdapterBank(nn.Module):
  config: AdapterExperts
  site: Site
  count: int

  @nn.compact
  def __call__(self, x: jax.Array, residual: jax.Array) -> BankOutput:
    config, site = self.config, self.site
    normal, zeros = nn.initializers.normal(0.01), nn.initializers.zeros

    def param(name, init, axes, shape):
      boxed = nn.with_logical_partitioning(init, ('expert', *axes))
      return self.param(name, boxed, (self.count, *shape), jnp.float32).astype(site.dtype)

    down = param('down_kernel', normal, (site.in_axis, 'adapter'), (x.shape[-1], config.size))
    down_bias = param('down_bias', zeros, ('adapter',), (config.size,))
    up = param('up_kernel', normal, ('adapter', site.out_axis), (config.size, site.features))
    up_bias = param('up_bias', zeros, (site.out_axis,), (site.features,))
    hidden = jnp.einsum('blf,xfr->blxr', x.astype(site.dtype), down) + down_bias
    return BankOutput(ACTIVATIONS[config.activation](hidden), up, up_bias, residual)
