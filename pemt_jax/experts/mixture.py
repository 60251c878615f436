"""PEMT's second stage: source experts under a gate, then a target adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.deltas.adapter import Bottleneck, bottleneck, bottleneck_weights
from pemt_jax.deltas.base import Delta, create
from pemt_jax.experts.bank import AdapterExperts, LoRAExperts
from pemt_jax.experts.masked_bank import MaskedExperts
from pemt_jax.experts.routers import RouterSpec, route_logits, router_weights
from pemt_jax.experts.routes import select, selection_noise
from pemt_jax.models.layers import fold_name
from pemt_jax.models.packing import Packing
from pemt_jax.models.sites import Aux, Base, Site, SiteContext, StackShape


@dataclasses.dataclass(frozen=True)
class SourceMixture(Delta):
  """y = base(x) + sum_i g_i e_i(x); u = y + bottleneck(y) with a target adapter.

  Experts of PEMT stand at `mlp/wo`, those over one prototype at its sites; there e_i may read
  base(x), as the gates of the encoder then do.

  Auxiliaries: `gate` [batch, expert], or [batch * example, expert] of rows with several examples;
  with a target adapter `misalignment` [], the task sparsity loss of the layer: sum_i mean_b(g_i) *
  (1 - mean_{b,t} cos(u, e_i)).

  Attributes:
    experts: form of the bank's experts.
    count: number of source experts N.
    adapter: shape of the target adapter; None leaves it (and the sparsity loss) out.
    temperature: divides the gate's logits, dimensionless.
    pool_without_prompt: what the encoder's gate reads without a prompt: 'first' position or
      'all' positions, padding included.
    mask_padding: leave padding out of the sparsity loss; the published loss averages over it, so
      that it depends on the length to which a batch happens to be padded. Padding of the prompt
      never counts.
    gate_hidden: hidden units of a gate that is a router (Ye et al. 2022) with weights of its own in
      each layer; 0 takes one linear map, which starts even.
    gate_mode: how logits become weights, a word of `routes.MODES`; noise is drawn per row and layer
      in training only.
  """

  experts: LoRAExperts | AdapterExperts | MaskedExperts
  count: int
  adapter: Bottleneck | None = None
  temperature: float = 1.0
  pool_without_prompt: str = 'first'
  mask_padding: bool = True
  gate_hidden: int = 0
  gate_mode: str = 'softmax'

  @property
  def packs(self) -> bool:
    """Unless something depends on the length to which a batch happens to be padded."""
    return self.mask_padding and self.pool_without_prompt == 'first'

  def module(self, site: Site, name: str) -> nn.Module:
    """Returns the module for a site."""
    return _SourceMixture(self, site, name=name)

  def stack_module(self, shape: StackShape, name: str) -> nn.Module | None:
    """The decoder's gates read the pooled final encoder states, once for all layers and steps; the
    masks of experts over one prototype are unpacked once."""
    if shape.stack == 'decoder' or isinstance(self.experts, MaskedExperts):
      return _Prepared(self, shape, name=name)
    return None

  def model_module(self, shapes: Mapping[str, StackShape], name: str) -> nn.Module | None:
    """The prototype of experts over one prototype, and their masks."""
    if isinstance(self.experts, MaskedExperts):
      return self.experts.masked.model_module(shapes, name)
    return None


def pool_prompt(x: jax.Array, prompt_mask: jax.Array | None, without_prompt: str,
                packing: Packing | None = None) -> jax.Array:
  """Mean over the real prompt positions at the front, float32.

  Args:
    x: [batch, length, features].
    prompt_mask: [prompt] 1 for real prompt positions, or None.
    without_prompt: 'first' or 'all' positions when there is no prompt.
    packing: the examples of each row, or None; then 'first' only.

  Returns:
    [batch, features], or [batch, example, features] of rows with several examples.
  """
  if packing is not None:
    front = jnp.ones((1,)) if prompt_mask is None else prompt_mask
    return packing.pool(x, packing.front(front, jnp.zeros(x.shape[:2])))
  if prompt_mask is None:
    part = x[:, :1] if without_prompt == 'first' else x
    return jnp.mean(part.astype(jnp.float32), axis=1)
  front = x[:, :prompt_mask.shape[0]].astype(jnp.float32)
  return jnp.einsum('bpf,p->bf', front, prompt_mask) / jnp.sum(prompt_mask)


class _Prepared(nn.Module):
  config: SourceMixture
  shape: StackShape

  @nn.compact
  def __call__(self, context: SiteContext):
    shared, per_layer = {}, None
    if self.shape.stack == 'decoder':
      shared['pooled'] = pool_prompt(context.encoder_states, context.prompt_mask,
                                     self.config.pool_without_prompt, context.encoder_packing)
    if isinstance(self.config.experts, MaskedExperts):
      masked = self.config.experts.masked
      values = create(self, masked.stack_weights(self.shape), jnp.float32)
      shared['bank'], per_layer = masked.prepare(values, self.shape, context.of_rule(self.name))
    return shared, per_layer


class _Gate(nn.Module):
  count: int
  axis: str
  hidden: int = 0

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    if self.hidden:
      spec = RouterSpec('linear', z.shape[-1], self.hidden, 1, self.count)
      return route_logits(spec, create(self, router_weights(spec), jnp.float32), z)[0]
    init = nn.with_logical_partitioning(nn.initializers.zeros, (self.axis, 'expert'))
    kernel = self.param('kernel', init, (z.shape[-1], self.count), jnp.float32)
    return jnp.matmul(z, kernel, precision=jax.lax.Precision.HIGHEST)


class _TargetAdapter(nn.Module):
  config: Bottleneck
  site: Site

  @nn.compact
  def __call__(self, y: jax.Array) -> jax.Array:
    site = self.site
    weights = bottleneck_weights(self.config, (site.features,) * 2, (site.out_axis,) * 2)
    return y + bottleneck(self.config, create(self, weights, site.dtype), y)


class _SourceMixture(nn.Module):
  config: SourceMixture
  site: Site

  @nn.compact
  def __call__(self, base: Base, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    config, site, own = self.config, self.site, context.of_rule(self.name)
    y = base(x)
    if isinstance(config.experts, MaskedExperts):
      x, bank = config.experts.output(x, y, own, site, config.count)
    else:
      bank = config.experts.module(site, config.count, 'bank')(x, context.sublayer_input)
    if site.stack == 'decoder':
      z, axis = own.shared['pooled'], 'embed'
    else:
      z = pool_prompt(x, context.prompt_mask, config.pool_without_prompt, context.packing)
      axis = site.in_axis
    logits = _Gate(config.count, axis, config.gate_hidden, name='gate')(z)
    key = None if context.key is None else fold_name(context.key, f'{site.path}/gate')
    noise = selection_noise(config.gate_mode, key, logits.shape)
    gate = select(logits, config.gate_mode, config.temperature, noise)
    y += bank.mix(gate if gate.ndim == 2 else context.packing.spread(gate))
    gate = gate.reshape(-1, config.count)
    aux = {'gate': gate}
    if config.adapter is not None:
      y = _TargetAdapter(config.adapter, site, name='adapter')(y)
      aux['misalignment'] = self._misalignment(gate, bank.similarity(y), context)
    return y, aux

  def _misalignment(self, gate, cosine, context):
    positions = jnp.broadcast_to(context.rows[:, None], cosine.shape[:2])
    if self.config.mask_padding:
      positions = positions * context.mask
    elif self.site.stack == 'encoder' and context.prompt_mask is not None:
      # Padding of the prompt is not part of the published average: it is there for replicas only.
      positions = positions.at[:, :context.prompt_mask.shape[0]].multiply(context.prompt_mask)
    mean_cosine = jnp.einsum('blx,bl->x', cosine, positions) / jnp.maximum(positions.sum(), 1.0)
    rows = context.rows if context.packing is None else context.packing.rows.reshape(-1)
    mean_gate = rows @ gate / jnp.maximum(rows.sum(), 1.0)
    return jnp.sum(mean_gate * (1.0 - mean_cosine))
