"""Experts of the feed-forward: what a token does at the expert that it was sent to.

A form names the weights of all experts and maps rows through them; `experts/grouped.py` says where
the rows stand. Kernels are [expert, in, out].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Delta, Values, Weight, Weights, normal_init
from pemt_jax.experts.group_pieces import Maps
from pemt_jax.experts.grouped import Groups
from pemt_jax.experts.mpo import rebuild
from pemt_jax.experts.mpo_shapes import Factors
from pemt_jax.experts.task_bank import rows_of
from pemt_jax.models.blocks import ACTIVATIONS
from pemt_jax.models.layers import dropout, fold_name
from pemt_jax.models.sites import Base, Site, SiteContext

BIASES = ('none', 'expert', 'shared')
_FEATURES = {'wi': ('embed', 'mlp'), 'wi_0': ('embed', 'mlp'), 'wi_1': ('embed', 'mlp'),
             'wo': ('mlp', 'embed')}


@dataclasses.dataclass(frozen=True)
class Work:
  """What experts may read of the place where they stand.

  Attributes:
    base: the feed-forward of the backbone.
    context: of the site; None outside of a model, where nothing is dropped.
    site: the place.
  """

  base: Base | None
  context: SiteContext | None
  site: Site

  def drop(self, rate: float, name: str) -> Callable[[jax.Array], jax.Array]:
    """Dropout of [batch, length, features] by coordinates, under a name of its own."""
    context = self.context
    if context is None or context.key is None or rate == 0.0:
      return lambda x: x
    offsets = {1: context.offset} if self.site.stack == 'encoder' else None
    return lambda x: dropout(x, rate, fold_name(context.key, name), offsets)


@dataclasses.dataclass(frozen=True)
class DenseExperts:
  """Every expert is a feed-forward: wo(act(wi x)), or wo(act(wi_0 x) * wi_1 x) when gated.

  Attributes:
    mlp: width of the hidden activation.
    activation: a name in `models.blocks.ACTIVATIONS`.
    gated: two input projections.
    biases: 'none', those of each 'expert', or one of each kind 'shared' by all experts.
    hidden_dropout: between the projections.
    output_dropout: behind the second projection, before experts are mixed.
  """

  mlp: int
  activation: str = 'relu'
  gated: bool = False
  biases: str = 'none'
  hidden_dropout: float = 0.0
  output_dropout: float = 0.0

  @property
  def inputs(self) -> tuple[str, ...]:
    """Names of the input projections."""
    return ('wi_0', 'wi_1') if self.gated else ('wi',)

  def shapes(self, embed: int) -> dict[str, tuple[int, int]]:
    """Shape [in, out] of each kernel."""
    sizes = {'embed': embed, 'mlp': self.mlp}
    return {name: tuple(sizes[axis] for axis in _FEATURES[name]) for name in (*self.inputs, 'wo')}

  def _biases(self, site, count):
    found: Weights = {}
    if self.biases == 'none':
      return found
    for name, shape in self.shapes(site.features).items():
      bias = Weight(shape[1:], _FEATURES[name][1:])
      found[f'{name}/bias'] = bias.stacked(count) if self.biases == 'expert' else bias
    return found

  def kernel_weights(self, site: Site, count: int) -> Weights:
    """What `__call__` reads: kernels [expert, in, out], and biases."""
    kernels = {f'{name}/kernel': Weight(shape, _FEATURES[name], normal_init(shape[0]**-0.5))
               for name, shape in self.shapes(site.features).items()}
    return ({name: weight.stacked(count) for name, weight in kernels.items()}
            | self._biases(site, count))

  def weights(self, site: Site, count: int) -> Weights:
    """What is trained; for dense experts what is read."""
    return self.kernel_weights(site, count)

  def kernels(self, values: Values) -> Values:
    """Values of `kernel_weights` from those of `weights`."""
    return values

  def __call__(self, values: Values, x: jax.Array, groups: Groups, work: Work) -> jax.Array:
    """Every choice of every token.

    Args:
      values: of `kernel_weights`.
      x: [batch, length, embed].
      groups: of batch * length tokens.
      work: see `Work`.

    Returns:
      [batch, length, choice, embed], zeros for choices of no expert.
    """
    choices = groups.chosen.shape[-1]
    kept = None
    if self.hidden_dropout and work.context is not None and work.context.key is not None:
      ones = jnp.ones((*x.shape[:2], choices * self.mlp), x.dtype)
      kept = work.drop(self.hidden_dropout, 'mlp/hidden')(ones).reshape(-1, self.mlp)
    if self.biases == 'shared':
      values = {name: jnp.broadcast_to(value.astype(jnp.float32), (groups.experts, *value.shape))
                if name.endswith('/bias') else value for name, value in values.items()}
    y = groups.sent(Maps(self._inputs_of, self._output_of), values, x, kept)
    y = y.reshape(*x.shape[:2], -1)
    return work.drop(self.output_dropout, 'mlp/experts')(y).reshape(
        *x.shape[:2], choices, x.shape[-1])

  def _inputs_of(self, place, values, rows):
    return {name: place.project(rows, values[f'{name}/kernel'], values.get(f'{name}/bias'))
            for name in self.inputs}

  def _output_of(self, place, values, hidden, kept):
    y = ACTIVATIONS[self.activation](hidden[self.inputs[0]])
    if self.gated:
      y *= hidden['wi_1']
    if kept is not None:
      y *= kept
    return place.project(y, values['wo/kernel'], values.get('wo/bias'))

  def unrouted(self, x: jax.Array, work: Work) -> jax.Array:
    """What a token without expert gives: zeros, the residual stream goes past."""
    del work
    return jnp.zeros_like(x)


@dataclasses.dataclass(frozen=True)
class MPOExperts(DenseExperts):
  """Feed-forwards whose kernels are chains of cores; all experts share the central one.

  `<kernel>/core_<k>` is [expert, r, i, j, r'], the central one [r, i, j, r'] (Gao et al. 2022,
  section 3.2); kernels are rebuilt, see `kernels`.

  Attributes:
    embed: width of tokens.
    factors: (name, factors of its two dimensions) of each kernel.
    limit: of all ranks; None keeps them full.
  """

  embed: int = 0
  factors: tuple[tuple[str, Factors], ...] = ()
  limit: int | None = None

  def weights(self, site: Site, count: int) -> Weights:
    """The cores, and biases."""
    found: Weights = {}
    for name, factors in self.factors:
      shapes = factors.core_shapes(factors.ranks(self.limit))
      for k, shape in enumerate(shapes):
        core = Weight(shape, ('mpo_left', 'mpo_in', 'mpo_out', 'mpo_right'), normal_init(0.1))
        found[f'{name}/core_{k}'] = core if k == factors.centre else core.stacked(count)
    return found | self._biases(site, count)

  def kernels(self, values: Values) -> Values:
    """Rebuilds [..., expert, in, out]; cores may have axes in front, such as that of layers."""
    found = {name: value for name, value in values.items() if '/core_' not in name}
    for name, factors in self.factors:
      cores = [values[f'{name}/core_{k}'] for k in range(len(factors.rows))]
      cores[factors.centre] = jnp.expand_dims(cores[factors.centre], -5)
      found[f'{name}/kernel'] = rebuild(cores, self.shapes(self.embed)[name])
    return found


@dataclasses.dataclass(frozen=True)
class DeltaExperts:
  """Every expert is the feed-forward of the backbone with a small delta of its own around it.

  Attributes:
    delta: any that stands around a whole feed-forward and prepares nothing.
  """

  delta: Delta

  def kernel_weights(self, site: Site, count: int) -> Weights:
    """[expert, ...] of the delta's."""
    return {name: weight.stacked(count) for name, weight in self.delta.weights(site).items()}

  def weights(self, site: Site, count: int) -> Weights:
    """What is trained is what is read."""
    return self.kernel_weights(site, count)

  def kernels(self, values: Values) -> Values:
    """The values."""
    return values

  def __call__(self, values: Values, x: jax.Array, groups: Groups, work: Work) -> jax.Array:
    """As `DenseExperts`; each token is a row of a batch that uses the values of its expert."""
    batch, length, embed = x.shape
    alone = lambda a: None if a is None else a.reshape(batch * length, 1, *a.shape[2:])
    base = lambda v: work.base(v.reshape(batch, length, -1)).reshape(batch * length, 1, -1)
    context = work.context.replace(
        mask=alone(work.context.mask), rows=jnp.repeat(work.context.rows, length),
        residual=alone(work.context.residual), sublayer_input=alone(work.context.sublayer_input))
    found = []
    for choice in range(groups.chosen.shape[-1]):
      ids = jnp.minimum(groups.chosen[..., choice].reshape(-1), groups.experts - 1)
      own = {name: rows_of(value, ids) for name, value in values.items()}
      y, _ = self.delta.act(own, base, alone(x), context, work.site)
      found.append(y.reshape(batch, length, embed))
    y = jnp.stack(found, axis=2)
    return jnp.where((groups.chosen < groups.experts).reshape(*y.shape[:3], 1), y, 0)

  def unrouted(self, x: jax.Array, work: Work) -> jax.Array:
    """A token without expert goes through the feed-forward of the backbone."""
    return work.base(x)


Experts = DenseExperts | MPOExperts | DeltaExperts
