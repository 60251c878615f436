"""Compacter: adapters whose matrices are sums of Kronecker products (Mahabadi et al. 2021).

W = sum_i A_i (x) B_i with B_i = s_i t_i of low rank: parameterised hypercomplex multiplication.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pemt_jax.deltas.adapter import ACTIVATIONS, read
from pemt_jax.deltas.base import Delta, Values, Weight, Weights, normal_init
from pemt_jax.errors import UserError
from pemt_jax.models.layers import add_vector
from pemt_jax.models.sites import Aux, Base, Site, SiteContext, StackShape


@dataclasses.dataclass(frozen=True)
class Compacter(Delta):
  """u = s + up(act(down(r))) with factorised matrices and biases, s = base(x).

  Attributes:
    size: width of the bottleneck; a multiple of `terms`.
    terms: number n of Kronecker products in a sum; A_i is [n, n].
    rank: of B_i; 0 keeps B_i whole.
    shared: one set of A_i serves all matrices of the model (as published); otherwise each matrix
      has its own.
    rule_stddev: of the initial A_i.
    activation: a key of `ACTIVATIONS`.
    reads: see `adapter.Adapter`.
  """

  size: int
  terms: int = 4
  rank: int = 1
  shared: bool = True
  rule_stddev: float = 0.01
  activation: str = 'gelu_new'
  reads: str = 'output'
  packs = True

  def _rule(self, exact: bool) -> Weight:
    return Weight((self.terms,) * 3, ('member', 'kronecker_in', 'kronecker_out'),
                  normal_init(self.rule_stddev), exact)

  def _matrix(self, name, sizes, axes):
    """Weights of B_i (and of A_i, if they are its own); bounds as Glorot's uniform."""
    rows, columns = (size // self.terms for size in sizes)
    init = jax.nn.initializers.glorot_uniform(in_axis=-2, out_axis=-1, batch_axis=(0,))
    weights = {} if self.shared else {f'{name}/rule': self._rule(False)}
    if self.rank:
      weights |= {
          f'{name}/left': Weight((self.terms, rows, self.rank), ('member', axes[0], 'rank'), init),
          f'{name}/right': Weight((self.terms, self.rank, columns), ('member', 'rank', axes[1]),
                                  init)}
    else:
      weights[f'{name}/kernel'] = Weight((self.terms, rows, columns), ('member', *axes), init)
    return weights | {f'{name}/bias': Weight((sizes[1],), (axes[1],))}

  def weights(self, site: Site) -> Weights:
    """Factors `left` [terms, in / terms, rank], `right` and `bias` of `down` and `up`.

    Raises:
      UserError: `terms` does not divide the sizes.
    """
    if site.features % self.terms or self.size % self.terms:
      raise UserError(f'method.terms is {self.terms}, which does not divide the width'
                      f' {site.features} of the backbone and the {self.size} units of the adapter;'
                      ' choose a common divisor.')
    sizes, axes = (site.features, self.size), (site.out_axis, 'adapter')
    return self._matrix('down', sizes, axes) | self._matrix('up', sizes[::-1], axes[::-1])

  def model_weights(self, shapes: Mapping[str, StackShape]) -> Weights:
    """The shared A_i: `rule` [terms, terms, terms]."""
    del shapes
    return {'rule': self._rule(True)} if self.shared else {}

  def _apply(self, name: str, values: Values, x: jax.Array, model: Any) -> jax.Array:
    rule = (model['rule'] if self.shared else values[f'{name}/rule']).astype(x.dtype)
    blocks = x.reshape(*x.shape[:-1], self.terms, x.shape[-1] // self.terms)
    # x W for W = sum_i A_i (x) B_i without making W: blocks of x meet B_i, then A_i joins them.
    if self.rank:
      met = jnp.einsum('...lpr,...nrk->...lpnk', blocks, values[f'{name}/left'])
      met = jnp.einsum('...lpnk,...nkc->...lpnc', met, values[f'{name}/right'])
    else:
      met = jnp.einsum('...lpr,...nrc->...lpnc', blocks, values[f'{name}/kernel'])
    y = jnp.einsum('...lpnc,...npq->...lqc', met, rule)
    return add_vector(y.reshape(*x.shape[:-1], -1), values[f'{name}/bias'])

  def act(self, values: Values, base: Base, x: jax.Array, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length, in] -> [batch, length, out]."""
    y = base(x)
    hidden = self._apply('down', values, read(self.reads, y, context), context.model)
    return y + self._apply('up', values, ACTIVATIONS[self.activation](hidden), context.model), {}
