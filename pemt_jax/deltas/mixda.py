"""MixDA: knowledge adapters beside the feed-forward, mixed by a gate (Diao et al. 2023)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pemt_jax.deltas.adapter import Bottleneck, bottleneck, bottleneck_weights
from pemt_jax.deltas.base import Delta, Values, Weight, Weights, normal_init
from pemt_jax.models.layers import add_vector, dropout, fold_name, scale_features
from pemt_jax.models.sites import Aux, Base, Site, SiteContext

GATE_READS = ('real', 'last')
_LINEARS = 4


@dataclasses.dataclass(frozen=True)
class MixDA(Delta):
  """u = m + bottleneck(m), m = sum_k g_k K_k(x) + g_last base(x), at `mlp/wo`.

  The knowledge adapters K_k are up(gelu(down(x))) and read the feed-forward activation.

  Attributes:
    count: number of knowledge adapters.
    size: their bottleneck.
    hidden: width of the gate's layers.
    task: the task adapter behind the mixture.
    gate_reads: 'real': the encoder's gate reads the last real position, the decoder's gate reads
      each position for itself, as it does in cached decoding; 'last': the last position of the
      padded sequence, which shows later tokens to a trained decoder (the published code).
    gate_dropout: rate in front of each layer of the gate.
  """

  count: int
  size: int
  task: Bottleneck
  hidden: int = 768
  gate_reads: str = 'real'
  gate_dropout: float = 0.2

  def weights(self, site: Site) -> Weights:
    """`knowledge_down`, `knowledge_up` [member, in, out], `gate_0` to `gate_3`, `down`, `up`."""
    kernel, weights = normal_init(0.01), {}
    sizes = (site.in_features, self.size, site.features)
    axes = (site.in_axis, 'adapter', site.out_axis)
    for i, name in enumerate(('down', 'up')):
      weights |= {
          f'knowledge_{name}/kernel': Weight((self.count, *sizes[i:i + 2]),
                                             ('member', *axes[i:i + 2]), kernel),
          f'knowledge_{name}/bias': Weight((self.count, sizes[i + 1]), ('member', axes[i + 1]))}
    widths = (site.in_features, *[self.hidden] * (_LINEARS - 1), self.count + 1)
    axes = (site.in_axis, 'gate', 'adapter', 'gate', 'member')
    for i in range(_LINEARS):
      weights |= {
          f'gate_{i}/kernel': Weight(widths[i:i + 2], axes[i:i + 2], kernel, exact=True),
          f'gate_{i}/bias': Weight((widths[i + 1],), (axes[i + 1],), exact=True)}
    axis = site.out_axis
    return weights | bottleneck_weights(self.task, (site.features,) * 2, (axis, axis))

  def _read(self, x, context, site):
    """Positions that the gate reads: [batch, 1, in], or [batch, length, in] where each has its own.
    """
    if site.stack == 'decoder' and (self.gate_reads == 'real' or context.position is not None):
      return x
    if self.gate_reads == 'last':
      return x[:, -1:]
    places = jnp.arange(x.shape[1], dtype=jnp.float32)
    last = jnp.argmax(context.mask * (places + 1.0), axis=1)
    return jnp.take_along_axis(x, last[:, None, None], axis=1)

  def _gate(self, values, x, context, site):
    """[batch, 1 or length, member + 1]; the last is the backbone's share."""
    hidden = self._read(x, context, site).astype(jnp.float32)
    for i in range(_LINEARS):
      if i:
        hidden = jax.nn.relu(hidden)
      if context.key is not None:
        key = fold_name(context.key, f'{site.path}/gate_{i}')
        hidden = dropout(hidden, self.gate_dropout, key)
      hidden = jnp.matmul(hidden, values[f'gate_{i}/kernel'], precision=jax.lax.Precision.HIGHEST)
      hidden += values[f'gate_{i}/bias']
    return jax.nn.softmax(hidden, axis=-1)

  def act(self, values: Values, base: Base, x: jax.Array, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length, in] -> [batch, length, out]; `gate` [batch, 1 or length, member + 1]."""
    x = x.astype(site.dtype)
    gate = self._gate(values, x, context, site)
    bias = lambda name: values[f'knowledge_{name}/bias'][..., None, :, :]
    hidden = jnp.einsum('...li,...eio->...leo', x, values['knowledge_down/kernel'])
    hidden = jax.nn.gelu(add_vector(hidden, bias('down')), approximate=False)
    known = jnp.einsum('...lei,...eio->...leo', hidden, values['knowledge_up/kernel'])
    known = add_vector(known, bias('up'))
    gates = jnp.broadcast_to(gate, (*x.shape[:-1], self.count + 1))
    mixed = jnp.einsum('...leo,...le->...lo', known, gates[..., :-1].astype(site.dtype))
    mixed += scale_features(base(x), gates[..., -1:])
    return mixed + bottleneck(self.task, values, mixed), {'gate': gate}
