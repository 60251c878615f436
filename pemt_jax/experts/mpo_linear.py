"""A kernel, or the token table, as a matrix product operator that takes its place.

The base is never called, so the backbone has no kernel there. Cores are [rank, in, out, rank], for
the table [rank, vocab, embed, rank]; layers are stacked in front as in any leaf.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.deltas.base import Delta, Values, Weight, Weights, create, normal_init
from pemt_jax.errors import one_of
from pemt_jax.experts import mpo
from pemt_jax.experts.mpo_shapes import Factors
from pemt_jax.models.sites import Aux, Base, Site, SiteContext
from pemt_jax.trees import Tree, flatten, unflatten

NAME = 'mpo'  # of the rules
FORMS = ('auto', 'step', 'layer', 'contract')
KERNEL = 'kernel'  # the rebuilt matrix in the place of its cores
_CORE = re.compile(rf'(.*/{NAME})/core_(\d+)')  # routed feed-forwards have cores too


@dataclasses.dataclass(frozen=True)
class MPO(Delta):
  """y = x rebuild(cores) + bias at a projection, rebuild(cores) at the token table.

  Attributes:
    shape: (in, out) of the matrix.
    factors: of both dimensions, see `Factors`.
    ranks: (r_0, ..., r_n).
    bias: whether a vector is added.
    form: 'step' and 'layer' rebuild the matrix, the one in `expanded` once per step or generation,
      the other at each call, which holds one matrix at a time; 'contract' multiplies activations
      with the cores; 'auto' contracts where that costs less for the rows of a call, and otherwise
      is 'step'.
  """

  shape: tuple[int, int]
  factors: Factors
  ranks: tuple[int, ...]
  bias: bool = False
  form: str = 'auto'
  replaces = True
  packs = True

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown form, or factors that are too small.
    """
    one_of('form', self.form, FORMS)
    self.factors.require(self.shape)

  def weights(self, site: Site) -> Weights:
    """`core_0` ... [rank, in, out, rank], and `bias` [out]."""
    shapes = self.factors.core_shapes(self.ranks)
    # The entries of the product are then as large as those of a kernel at random.
    variance = 1.0 / (self.shape[0] * math.prod(self.ranks))
    init = normal_init(variance**(0.5 / len(shapes)))
    found = {}
    for number, shape in enumerate(shapes):
      central = number == self.factors.centre
      ends = ('mpo_left', 'mpo_right') if central else ('rank', 'rank')
      found[f'core_{number}'] = Weight(shape, (ends[0], 'mpo_in', 'mpo_out', ends[1]), init,
                                       exact=True)
    if self.bias:
      found['bias'] = Weight((self.shape[1],), (site.out_axis,))
    return found

  def cores(self, values: Values) -> list[jax.Array]:
    """The cores among the values of `weights`."""
    return [values[f'core_{number}'] for number in range(len(self.factors.rows))]

  def matrix(self, values: Values) -> jax.Array:
    """[..., in, out] float32."""
    if KERNEL in values:
      return values[KERNEL][..., :self.shape[0], :self.shape[1]]
    return mpo.rebuild(self.cores(values), self.shape)

  def dense(self, values: Values, site: str) -> Values:
    """The leaves of the plain backbone at the site of this path."""
    name = 'embedding' if site == 'shared' else 'kernel'
    return {name: self.matrix(values), **({'bias': values['bias']} if self.bias else {})}

  def contracts(self, rows: int) -> bool:
    """Whether a call with so many rows contracts."""
    if self.form == 'auto':
      return mpo.contracts(self.factors.core_shapes(self.ranks), rows)
    return self.form == 'contract'

  def act(self, values: Values, base: Base, x: Any, context: SiteContext,
          site: Site) -> tuple[Any, Aux]:
    """The product with the matrix; without an input the matrix itself."""
    del base, context
    if x is None:
      return self.matrix(values), {}
    x = x.astype(site.dtype)
    kind = jnp.float32 if site.path == 'lm_head' else site.dtype
    if KERNEL not in values and self.contracts(math.prod(x.shape[:-1])):
      cores = [core.astype(site.dtype) for core in self.cores(values)]
      contract = lambda x, cores: mpo.contract(x, cores, self.shape[1])
      y = (jax.vmap(contract) if cores[0].ndim > 4 else contract)(x, cores).astype(kind)
    else:
      y = jnp.matmul(x, self.matrix(values).astype(site.dtype), preferred_element_type=kind)
    return y + values['bias'] if self.bias else y, {}

  def module(self, site: Site, name: str) -> nn.Module:
    """The module that stands at a site."""
    return _AtSite(self, site, name=name)


class _AtSite(nn.Module):
  delta: MPO
  site: Site

  @nn.compact
  def __call__(self, base: Base, x: Any, context: SiteContext) -> tuple[Any, Aux]:
    weights = self.delta.weights(self.site)
    rebuilt = self.has_variable('params', KERNEL)
    if rebuilt:
      weights = {name: weight for name, weight in weights.items() if not name.startswith('core_')}
    values = create(self, weights, self.site.dtype)
    if rebuilt:
      values[KERNEL] = self.get_variable('params', KERNEL)
    return self.delta.act(values, base, x, context.of_rule(self.name), self.site)


def expanded(params: Tree, form: str = 'auto') -> Tree:
  """The parameters with matrices in the place of their cores, each rebuilt once.

  Args:
    params: of a model with `MPO` deltas, whole or in segments.
    form: see `MPO`; 'auto' leaves cores whose contraction costs less than the dense product for any
      number of rows, 'layer' and 'contract' leave all.
  """
  if form in ('layer', 'contract'):
    return params
  flat = dict(flatten(params))
  for place, cores in chains(flat).items():
    shapes = [core.shape[-4:] for core in cores]
    dense = math.prod(s[1] for s in shapes) * math.prod(s[2] for s in shapes)
    if form == 'auto' and mpo.contract_cost(shapes) < dense:
      continue
    flat[f'{place}/{KERNEL}'] = mpo.rebuild([core.astype(jnp.float32) for core in cores])
    for number in range(len(cores)):
      del flat[f'{place}/core_{number}']
  return unflatten(flat)


def chains(flat: dict[str, Any]) -> dict[str, list[Any]]:
  """{place: cores in their order} of flat parameters; the place is the rule's below the site."""
  found: dict[str, dict[int, Any]] = {}
  for path, leaf in flat.items():
    match = _CORE.fullmatch(path)
    if match:
      found.setdefault(match[1], {})[int(match[2])] = leaf
  return {place: [cores[k] for k in sorted(cores)] for place, cores in found.items()}
