"""ATTEMPT: an attention over source prompts that reads the input (Asai et al. 2022)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Delta, Values, Weight, Weights, normal_init, ones, uniform_init
from pemt_jax.models.layers import MASKED, layer_norm
from pemt_jax.models.sites import Aux, Base, Site, SiteContext

HIGHEST = jax.lax.Precision.HIGHEST
ATTENTIONS = ('sub', 'linear', 'dot', 'constant')


@dataclasses.dataclass(frozen=True)
class Attempt(Delta):
  """A prompt for each row: sum_j a_j P_j + T, with the target prompt T among the P_j.

  a = softmax_j(max_rows(P_j) . v / temperature), v a function of the largest embedding of the
  input along its positions. Place it at `encoder/embed`.

  Attributes:
    length: rows of every prompt.
    sources: number of frozen source prompts.
    attention: v = norm(up(silu(down(x)))) ('sub'), W x ('linear'), x ('dot'); 'constant' takes
      equal weights.
    targets: number of target prompts; above 1 `task_ids` choose one for each row.
    ignore_target: neither attend to T nor add it; its table stays as it is.
    hidden: units of 'sub'.
    temperature: divides the scores.
    learned_temperature: the temperature is a parameter.
    mask_padding: leave padding out of the largest embedding (the published code takes it in).
  """

  length: int
  sources: int
  attention: str = 'sub'
  targets: int = 1
  ignore_target: bool = False
  hidden: int = 100
  temperature: float = 2000.0
  learned_temperature: bool = False
  mask_padding: bool = True

  def weights(self, site: Site) -> Weights:
    """`table` ([target,] prompt, embed), `sources`, and those of the attention."""
    embed, rows = site.features, ('prompt', 'embed')
    table = Weight((self.length, embed), rows, uniform_init(0.5), exact=True)
    weights: Weights = {'table': table.stacked(self.targets) if self.targets > 1 else table}
    weights['sources'] = Weight((self.sources, self.length, embed), ('member', *rows), exact=True)
    kernel = normal_init(0.01)
    if self.attention == 'sub':
      weights |= {
          'attention_down/kernel': Weight((embed, self.hidden), ('embed', 'adapter'), kernel, True),
          'attention_up/kernel': Weight((self.hidden, embed), ('adapter', 'embed'), kernel, True),
          'attention_norm/scale': Weight((embed,), ('norm',), ones, exact=True),
          'attention_norm/bias': Weight((embed,), ('norm',), exact=True)}
    if self.attention == 'linear':
      weights['attention/kernel'] = Weight((embed, embed), ('embed', 'gate'), kernel, True)
    if self.learned_temperature and self.attention != 'constant':
      start = lambda key, shape, dtype: jnp.full(shape, self.temperature, dtype)
      weights['temperature'] = Weight((1,), ('norm',), start, exact=True)
    return weights

  def _target(self, values, context):
    """[prompt, embed], or [batch, prompt, embed] where rows have their own."""
    table = values['table']
    if self.targets == 1:
      return table
    if context.task_ids is None:
      return table[..., 0, :, :]
    if table.ndim == 4:
      return jnp.take_along_axis(table, context.task_ids[:, None, None, None], axis=1)[:, 0]
    return table[context.task_ids]

  def _query(self, values, embedded, context):
    """[batch, 1, embed] float32."""
    embedded = embedded.astype(jnp.float32)
    if self.mask_padding:
      embedded += (1.0 - context.mask.astype(jnp.float32))[..., None] * MASKED
    query = jnp.max(embedded, axis=1, keepdims=True)
    if self.attention == 'linear':
      return jnp.matmul(query, values['attention/kernel'], precision=HIGHEST)
    if self.attention == 'sub':
      hidden = jnp.matmul(query, values['attention_down/kernel'], precision=HIGHEST)
      query = jnp.matmul(jax.nn.silu(hidden), values['attention_up/kernel'], precision=HIGHEST)
      return layer_norm(query, values['attention_norm/scale'], values['attention_norm/bias'])
    return query

  def _weights_of(self, values, prompts, embedded, context):
    """[batch, 1, prompts]."""
    if self.attention == 'constant':
      return jnp.full((embedded.shape[0], 1, prompts.shape[-3]), 1.0 / prompts.shape[-3])
    keys = jnp.max(prompts, axis=-2)
    query = self._query(values, embedded, context)
    scores = jnp.einsum('...qe,...je->...qj', query, keys, precision=HIGHEST)
    temperature = values['temperature'] if self.learned_temperature else self.temperature
    return jax.nn.softmax(scores / temperature, axis=-1)

  def act(self, values: Values, base: Base, x: jax.Array, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length] tokens -> [batch, prompt + length, embed]; `attention` [batch, prompts]."""
    embedded, prompts = base(x), values['sources']
    if not self.ignore_target:
      target = self._target(values, context)
      if target.ndim > 2 and prompts.ndim < 4:
        prompts = jnp.broadcast_to(prompts, (target.shape[0], *prompts.shape))
      prompts = jnp.concatenate([prompts, target[..., None, :, :]], axis=-3)
    weights = self._weights_of(values, prompts, embedded, context)[:, 0]
    prompt = jnp.einsum('...j,...jpe->...pe', weights, prompts, precision=HIGHEST)
    if not self.ignore_target:
      prompt = prompt + target
    y = jnp.concatenate([prompt.astype(embedded.dtype), embedded], axis=1)
    return y, {'prompt_mask': jnp.ones(self.length), 'attention': weights}
