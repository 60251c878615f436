"""Masked prototypes: one set of weights for all layers and tasks, each with masks of its own.

Zeng et al. (2023): W' = W * m for every matrix W of the prototype; vectors are never masked. The
masks of a layer, a task and a language are made once per forward pass and once per generation.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Delta, Values, Weight, Weights, uniform_init
from pemt_jax.errors import UserError, one_of
from pemt_jax.experts.masks import COMBINATIONS, combine, top_mask, zeros_of
from pemt_jax.experts.task_bank import rows_of
from pemt_jax.models.sites import (
    Aux, Base, Plan, Site, SiteContext, StackShape, plan_as_json)

# Whose masks there may be; 'layer_task': a layer has masks of its own for each task.
OWNERS = ('layer', 'task', 'language', 'layer_task')
PLACES = ('model', 'stack', 'layer')
FANS = ('in', 'out', 'all')
_SIZES = {'q': ('embed', 'joined_kv'), 'o': ('joined_kv', 'embed'), 'wi': ('embed', 'mlp'),
          'wo': ('mlp', 'embed'), 'self_attention': ('joined_kv', 'joined_kv')}
_AXES = _SIZES | {'k': _SIZES['q'], 'v': _SIZES['q'], 'wi_0': _SIZES['wi'], 'wi_1': _SIZES['wi'],
                  'cross_attention': _SIZES['self_attention']}


def site_of(path: str, shape: StackShape) -> Site:
  """A site of a stack by its path; norms and whole sub-layers map embed to embed."""
  axes = _AXES.get(path.rpartition('/')[2], ('embed', 'embed'))
  sizes = {'embed': shape.embed, 'mlp': shape.mlp, 'joined_kv': shape.heads * shape.kv}
  return Site(path, sizes[axes[0]], sizes[axes[1]], *axes, shape.dtype)


def _key(name: str) -> str:
  return name.replace('/', '_')


@dataclasses.dataclass(frozen=True)
class Masked(Delta):
  """A delta whose matrices are those of a prototype times masks.

  One rule places it at each of its sites, all rules with the same name. Where they have a leading
  [task] axis, row b of a batch uses masks of `task_ids[b]`, so that a batch may mix tasks.

  Attributes:
    delta: what the prototype is a set of weights of; it computes nothing ahead.
    sites: paths of its sites; its weights have one shape at all of them.
    density: share of the entries that a mask keeps.
    owners: names out of `OWNERS`.
    how: one of `COMBINATIONS`, where several owners have masks.
    place: the prototype exists once per 'model', 'stack' or 'layer' (which is not shared).
    members: for each task id, its task mask and its language mask.
    first_layer: the mask of this language (task, where there are no languages) stands in the first
      layer of the encoder in place of the layer's own; None for own masks everywhere. The
      published program has that of the last one there.
    fan: scores start from U(+-1/sqrt(n)), n the rows ('in'), columns ('out') or entries ('all') of
      the matrix.
    one_task: all rows of every batch have the task of the first row; cheaper than rows of their
      own.
    packed: in place of scores there are masks, eight entries to a byte, which are never trained.
  """

  delta: Delta
  sites: tuple[str, ...]
  density: float = 0.3
  owners: tuple[str, ...] = ('layer',)
  how: str = 'or'
  place: str = 'model'
  members: tuple[tuple[int, int], ...] = ((0, 0),)
  first_layer: int | None = None
  fan: str = 'in'
  one_task: bool = False
  packed: bool = False

  def __post_init__(self):
    """Checks what cannot be seen from the options of a method.

    Raises:
      UserError: unknown words, a density out of its range, or a delta that computes ahead.
    """
    for owner in self.owners:
      one_of('the owner of a mask', owner, OWNERS)
    one_of('the combination of masks', self.how, COMBINATIONS)
    one_of('the place of a prototype', self.place, PLACES)
    one_of('the fan of scores', self.fan, FANS)
    zeros_of(1, self.density)
    if self.delta.prepares:
      raise UserError(f'a {type(self.delta).__name__} cannot be a masked prototype, since it'
                      ' computes its weights ahead; choose another delta.')
    if self.first_layer is not None and not ({'task', 'language'} & set(self.owners)
                                             and 'layer' in self.owners):
      raise UserError('first_layer of masks needs masks of layers, and of tasks or languages;'
                      ' leave it None.')

  @property
  def key_positions(self) -> int:
    """Those of the delta."""
    return self.delta.key_positions

  @property
  def packs(self) -> bool:
    """As the delta: the examples of a row have one task."""
    return self.delta.packs

  def counts(self) -> dict[str, int]:
    """Number of masks of tasks and of languages."""
    tasks, languages = (1 + max(column) for column in zip(*self.members, strict=True))
    return {'task': tasks, 'language': languages}

  def masked(self, site: Site) -> Weights:
    """The weights that have masks."""
    return {name: weight for name, weight in self.delta.weights(site).items()
            if len(weight.shape) > 1}

  def _scores(self, site: Site, leading: tuple[tuple[int, str], ...]) -> Weights:
    found = {}
    for name, weight in self.masked(site).items():
      fan = {'in': weight.shape[0], 'out': weight.shape[-1], 'all': math.prod(weight.shape)}
      sizes, axes = zip(*leading, strict=True)
      if self.packed:
        found[_key(name)] = Weight((*sizes, -(-fan['all'] // 8)), (*axes, 'bits'), exact=True,
                                   dtype=jnp.uint8)
        continue
      found[_key(name)] = Weight((*sizes, *weight.shape), (*axes, *weight.axes),
                                 uniform_init(fan[self.fan]**-0.5), exact=True)
    return found

  def _made(self, value: jax.Array, name: str, site: Site, leading: int) -> jax.Array:
    """Masks [..., entries...] out of scores or packed masks; `leading` axes index them."""
    if not self.packed:
      return top_mask(value, self.density, leading)
    shape = {_key(own): weight.shape for own, weight in self.masked(site).items()}[name]
    bits = jnp.unpackbits(value, axis=-1, count=math.prod(shape))
    return bits.reshape(*value.shape[:-1], *shape)

  def sites_of(self, stack: str) -> list[str]:
    """Sites in one stack."""
    return [path for path in self.sites if path.startswith(f'{stack}/')]

  def weights(self, site: Site) -> Weights:
    """The prototype, where layers do not share it."""
    return self.delta.source_weights(site) if self.place == 'layer' else {}

  def stack_weights(self, shape: StackShape) -> Weights:
    """Scores of layers: `layer_<site>/<weight>` [layer, ...] and, with an axis of tasks behind that
    of layers, `layer_task_<site>/<weight>`; the prototype, where stacks have their own."""
    paths, found = self.sites_of(shape.stack), {}
    if self.place == 'stack':
      found |= self.delta.source_weights(site_of(paths[0], shape))
    # Their axes are no 'layer' axis of the layers' scan.
    leading = {'layer': ((shape.layers - self._takes_first(shape), 'member'),),
               'layer_task': ((shape.layers, 'member'), (self.counts()['task'], 'member'))}
    for path in paths:
      for owner in (owner for owner in leading if owner in self.owners):
        found |= {f'{owner}_{_key(path.partition("/")[2])}/{name}': weight for name, weight in
                  self._scores(site_of(path, shape), leading[owner]).items()}
    return {name: weight for name, weight in found.items() if 0 not in weight.shape}

  def model_weights(self, shapes: Mapping[str, StackShape]) -> Weights:
    """Scores of tasks and languages, `task/<weight>` and `language/<weight>` [member, ...]; the
    prototype, where all stacks share it."""
    stack = self.sites[0].partition('/')[0]
    site, found = site_of(self.sites[0], shapes[stack]), {}
    if self.place == 'model':
      found |= self.delta.source_weights(site)
    for owner, count in self.counts().items():
      if owner in self.owners:
        found |= {f'{owner}/{name}': weight
                  for name, weight in self._scores(site, ((count, 'member'),)).items()}
    return found

  def _takes_first(self, shape: StackShape) -> bool:
    return self.first_layer is not None and shape.stack == 'encoder'

  def prepare(self, values: Values, shape: StackShape, context: SiteContext) -> tuple[Any, Any]:
    """({'prototype', 'rows'}, {'<owner>_<site>/<weight>'}): the prototype unless layers have their
    own, masks [task id, ...] of tasks and languages joined, and masks of layers [layer, ...]."""
    paths = self.sites_of(shape.stack)
    site, model = site_of(paths[0], shape), context.model or {}
    names = [_key(name) for name in self.masked(site)]
    shared = {'prototype': None, 'rows': {}}
    if self.place != 'layer':
      values_of = model if self.place == 'model' else values
      own = {name: values_of[name] for name in self.delta.source_weights(site)}
      shared['prototype'] = self.delta.from_source(own, site)
    owners = [owner for owner in ('task', 'language') if owner in self.owners]
    made = {f'{owner}/{name}': self._made(model[f'{owner}/{name}'], name, site, 1)
            for owner in owners for name in names}
    for name in names if owners else ():
      shared['rows'][name] = combine(
          [jnp.take(made[f'{owner}/{name}'], jnp.array(self._ids(owner)), axis=0)
           for owner in owners], self.how)
    per_layer = {name: self._made(value, name.rpartition('/')[2], site,
                                  1 + name.startswith('layer_task_'))
                 for name, value in values.items() if name.startswith('layer_')}
    if self._takes_first(shape):
      for name in (f'layer_{_key(path.partition("/")[2])}/{n}' for path in paths for n in names):
        first = made[f'{owners[-1]}/{name.rpartition("/")[2]}'][self.first_layer][None]
        per_layer[name] = jnp.concatenate([first, *(per_layer[n] for n in (name,)
                                                    if n in per_layer)])
    return shared, per_layer or None

  def _ids(self, owner: str) -> tuple[int, ...]:
    return tuple(member[owner == 'language'] for member in self.members)

  def act(self, values: Values, base: Base, x: Any, context: SiteContext,
          site: Site) -> tuple[Any, Aux]:
    """The delta with the masked prototype."""
    values = self.values_of(values, context, site)
    return self.delta.act(values, base, x, context.replace(shared=None, per_layer=None, model=None),
                          site)

  def values_of(self, values: Values, context: SiteContext, site: Site) -> Values:
    """The delta's weights at a site, masked.

    Args:
      values: of `weights`.
      context: of the site; holds what `prepare` returned.
      site: the place.

    Returns:
      Values as `delta.act` takes them; matrices are [batch, in, out] where rows have tasks.
    """
    shared, per_layer = context.shared, context.per_layer or {}
    own = shared['prototype']
    if own is None:
      own = self.delta.from_source(values, site)
    found = dict(own)
    for name, weight in self.masked(site).items():
      masks = self._at(_key(name), len(weight.shape), shared['rows'], per_layer, site)
      if masks:
        found[name] = self._times(own[name], masks, len(weight.shape), context.task_ids)
    exact = {name for name, weight in self.delta.weights(site).items() if weight.exact}
    return {name: value if name in exact else value.astype(site.dtype)
            for name, value in found.items()}

  def _times(self, value: jax.Array, masks: list[tuple[jax.Array, bool]], rank: int,
             ids: jax.Array | None) -> jax.Array:
    """A weight times its masks, for each row where tasks differ between rows.

    Args:
      value: [in, out], or [batch, in, out] inside of a bank of experts.
      masks: (mask, whether it has an axis of task ids in front of the weight's axes).
      rank: axes of the weight.
      ids: task of each row.
    """
    wide = any(rows for _, rows in masks)
    if wide and (len(self.members) == 1 or self.one_task):
      index = 0 if len(self.members) == 1 else ids[0]
      masks = [(jnp.take(mask, index, axis=mask.ndim - rank - 1) if rows else mask, False)
               for mask, rows in masks]
      wide = False
    if wide and value.ndim > rank:  # Rows have experts of their own; each picks its mask there.
      each = jnp.arange(value.shape[0])
      masks = [(mask[each, ids] if rows else mask, False) for mask, rows in masks]
      wide = False
    value = value * combine([mask for mask, _ in masks], self.how)
    return rows_of(value, ids) if wide else value

  def _at(self, name, rank, rows, per_layer, site):
    """Masks of a weight as (mask, whether task ids lead it)."""
    place, found = _key(site.path.partition('/')[2]), []
    if name in rows:
      found.append((rows[name], True))
    if f'layer_task_{place}/{name}' in per_layer:
      mask = per_layer[f'layer_task_{place}/{name}']
      found.append((jnp.take(mask, jnp.array(self._ids('task')), axis=mask.ndim - rank - 1), True))
    if f'layer_{place}/{name}' in per_layer:
      found.append((per_layer[f'layer_{place}/{name}'], False))
    return found


def densities_of(plan: Plan | Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Density of every rule with masks, by its name.

  Args:
    plan: of a model, or that of an expert's card (`plan_as_json`).
  """
  if isinstance(plan, Plan):
    plan = plan_as_json(plan)
  return {rule['name']: rule['config']['density'] for rule in plan
          if rule['delta'] == Masked.__name__}


def score_axes(path: str, densities: Mapping[str, float]) -> tuple[float, int] | None:
  """Density and number of leading axes (layers, tasks) of a leaf of scores; None for others.

  Args:
    path: of a leaf in the parameter tree.
    densities: of `densities_of`.
  """
  *_, rule, level, _ = ('', '', '', *path.split('/'))
  if rule in densities and re.fullmatch(r'task|language|layer_\w+', level):
    return densities[rule], 1 + level.startswith('layer_task_')
  return None
