"""What masks of tasks, languages and layers have in common: Jaccard overlap and density.

All functions are pure. Masks stand as {matrix: {member: [entries]}}: a member is a task, a language
or a layer, a matrix is one of those that are masked, such as `propetl/down_kernel`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pemt_jax.errors import one_of
from pemt_jax.experts.masked import Masked, score_axes
from pemt_jax.experts.masks import top_mask
from pemt_jax.models.sites import Plan, plan_as_json
from pemt_jax.trees import Tree, flatten

Masks = dict[str, dict[str, np.ndarray]]
OWNERS = ('task', 'language', 'layer')
ALL_LAYERS = 'all layers'


@dataclasses.dataclass(frozen=True)
class _Leaf:
  """Masks of one owner at one place: `masks` [member, entries] or [layer, task, entries]."""

  rule: str
  stack: str
  owner: str
  place: str
  weight: str
  first: int  # layer of the first member
  masks: np.ndarray

  @property
  def matrix(self) -> str:
    return f'{self.rule}/{self.weight}'


def _configs(plan: Plan | Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
  rules = plan_as_json(plan) if isinstance(plan, Plan) else plan
  return {rule['name']: rule['config'] for rule in rules if rule['delta'] == Masked.__name__}


def _leaves(tuned: Tree, configs: Mapping[str, Mapping[str, Any]]) -> list[_Leaf]:
  densities = {name: config['density'] for name, config in configs.items()}
  found = []
  for path, value in flatten(tuned).items():
    axes = score_axes(path, densities)
    if axes is None:
      continue
    density, leading = axes
    *front, rule, level, weight = path.split('/')
    owner = 'layer_task' if leading == 2 else level.partition('_')[0]
    mask = np.asarray(top_mask(jnp.asarray(value, jnp.float32), density, leading)) > 0
    first = int(owner == 'layer' and front[0] == 'encoder'
                and configs[rule].get('first_layer') is not None)
    found.append(_Leaf(rule, front[0], owner, level.removeprefix(f'{owner}_'), weight, first,
                       mask.reshape(*mask.shape[:leading], -1)))
  return sorted(found, key=lambda leaf: leaf.stack == 'decoder')


def member_names(config: Mapping[str, Any], owner: str, tasks: Sequence[str] = ()
                 ) -> tuple[str, ...]:
  """Names of task masks or of language masks.

  A mask of one task has its name, a mask of several what their names begin (languages: end) with.

  Args:
    config: of a rule with masks; its `members` are read.
    owner: 'task' or 'language'.
    tasks: name of each task id; () numbers them.
  """
  column = [member[owner == 'language'] for member in config['members']]
  users = [[name for name, own in zip(tasks, column) if own == index]
           for index in range(1 + max(column))]
  found = [_common(names, owner == 'language') or f'{owner} {index}'
           for index, names in enumerate(users)]
  return tuple(name if found.count(name) == 1 else f'{name} ({index})'
               for index, name in enumerate(found))


def _common(names: Sequence[str], at_end: bool) -> str:
  if len(names) < 2 and not at_end:
    return ''.join(names)
  if at_end:
    names = [name.rpartition('/')[2].rpartition('_')[2] for name in names]
    return names[0] if len(set(names)) == 1 else ''
  return os.path.commonprefix(list(names)).rstrip('_-/')


def masks_of(tuned: Tree, plan: Plan | Sequence[Mapping[str, Any]], owner: str,
             tasks: Sequence[str] = ()) -> Masks:
  """Masks of an owner in a trained tree or in a packed one, which `library.load_expert` gives.

  A layer that has masks of its own for each task counts with all of them as a layer, and so does a
  task with those of all layers.

  Args:
    tuned: trained leaves without a replica axis.
    plan: of the model, or that of an expert's card.
    owner: a name out of `OWNERS`.
    tasks: name of each task id.

  Returns:
    Matrix -> member -> [entries] bool; {} where the owner has no masks.

  Raises:
    UserError: an unknown owner.
  """
  one_of('the owner of a mask', owner, OWNERS)
  configs, found = _configs(plan), {}
  leaves = _leaves(tuned, configs)
  places = {(leaf.rule, leaf.stack): {own.place for own in leaves if 'layer' in own.owner and (
      own.rule, own.stack) == (leaf.rule, leaf.stack)} for leaf in leaves}
  for leaf in leaves:
    several = len(places[leaf.rule, leaf.stack]) > 1
    for name, mask in _members(leaf, owner, configs[leaf.rule], tasks, several).items():
      own = found.setdefault(leaf.matrix, {})
      own[name] = np.concatenate([own[name], mask]) if name in own else mask
  return found


def _members(leaf: _Leaf, owner: str, config: Mapping[str, Any], tasks: Sequence[str],
             several: bool) -> dict[str, np.ndarray]:
  """Member -> mask of one leaf, for an owner; {} where it has none."""
  if owner == 'layer' and leaf.owner in ('layer', 'layer_task'):
    return {f'{leaf.stack} {1 + leaf.first + i}' + (f' {leaf.place}' if several else ''):
            mask.reshape(-1) for i, mask in enumerate(leaf.masks)}
  if leaf.owner == owner:
    return dict(zip(member_names(config, owner, tasks), leaf.masks, strict=True))
  if owner == 'task' and leaf.owner == 'layer_task':
    names = member_names(config, owner, tasks)
    return {name: leaf.masks[:, i].reshape(-1) for i, name in enumerate(names)}
  return {}


def members_of(masks: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[str, ...]:
  """Members in the order of their first appearance."""
  return tuple(dict.fromkeys(name for own in masks.values() for name in own))


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
  """Entries that both masks keep over entries that one of them keeps; 1 of two empty masks.

  Args:
    first: mask of any shape.
    second: mask of the same shape.
  """
  either = np.count_nonzero((first != 0) | (second != 0))
  return np.count_nonzero((first != 0) & (second != 0)) / either if either else 1.0


def overlap(first: Masks, second: Masks | None = None, matrix: str = '') -> np.ndarray:
  """Jaccard overlap of every member of `first` with every member of `second`.

  Args:
    first: of `masks_of`.
    second: of `masks_of`; None compares `first` with itself.
    matrix: the only one to compare; '' counts the entries of all matrices together.

  Returns:
    [member, member] in the order of `members_of`; NaN where two members share no matrix.
  """
  second = first if second is None else second
  rows, columns = members_of(first), members_of(second)
  both, either = np.zeros((2, len(rows), len(columns)))
  for name in first.keys() & second.keys() if not matrix else (matrix,):
    own, other = first.get(name, {}), second.get(name, {})
    if not own or not other:
      continue
    a, b = (np.stack(list(masks.values())).astype(np.float32) for masks in (own, other))
    place = np.ix_([rows.index(n) for n in own], [columns.index(n) for n in other])
    common = (a @ b.T).astype(np.float64)
    counts = [masks.sum(axis=1, dtype=np.float64) for masks in (a, b)]
    both[place] += common
    either[place] += counts[0][:, None] + counts[1] - common
  return np.divide(both, either, out=np.full(both.shape, np.nan), where=either > 0)


def density(masks: Masks, matrix: str = '') -> np.ndarray:
  """Share of the entries that each member keeps, of one matrix or of all: [member]."""
  found = []
  for name in members_of(masks):
    own = [masks[m][name] for m in masks if name in masks[m] and matrix in ('', m)]
    total = sum(mask.size for mask in own)
    found.append(sum(map(np.count_nonzero, own)) / total if total else np.nan)
  return np.array(found)


def by_chance(share: float) -> float:
  """Overlap that two independent masks of a density have by chance, in large matrices."""
  return share / (2.0 - share) if share else 1.0


def joined_density(tuned: Tree, plan: Plan | Sequence[Mapping[str, Any]]
                   ) -> tuple[tuple[str, ...], np.ndarray]:
  """Share of the prototype's entries that a layer uses for a task, all its masks joined.

  Args:
    tuned: trained leaves without a replica axis.
    plan: of the model, or that of an expert's card.

  Returns:
    Names [layer] and shares [layer, task id]; one row `ALL_LAYERS` where layers have no masks.
  """
  configs = _configs(plan)
  leaves = _leaves(tuned, configs)
  kept: dict[str, Any] = {}
  for matrix in dict.fromkeys(leaf.matrix for leaf in leaves):
    own = [leaf for leaf in leaves if leaf.matrix == matrix]
    config = configs[own[0].rule]
    shared = {leaf.owner: leaf.masks for leaf in own if leaf.stack == 'deltas'}
    in_layers = [leaf for leaf in own if leaf.stack != 'deltas']
    for stack, place in dict.fromkeys((leaf.stack, leaf.place) for leaf in in_layers):
      here = [leaf for leaf in in_layers if (leaf.stack, leaf.place) == (stack, place)]
      for layer in range(max(len(leaf.masks) + leaf.first for leaf in here)):
        counts = [_kept(here, layer, shared, member, config) for member in config['members']]
        kept[f'{stack} {layer + 1}'] = kept.get(f'{stack} {layer + 1}', 0) + np.array(counts)
    if not in_layers:
      counts = [_kept([], 0, shared, member, config) for member in config['members']]
      kept[ALL_LAYERS] = kept.get(ALL_LAYERS, 0) + np.array(counts)
  shares = [found[:, 0] / found[:, 1] for found in kept.values()]
  return tuple(kept), np.array(shares).reshape(len(kept), -1)


def _kept(here: Sequence[_Leaf], layer: int, shared: Mapping[str, np.ndarray],
          member: Sequence[int], config: Mapping[str, Any]) -> tuple[int, int]:
  """Entries that a layer keeps for a task, and all entries."""
  masks = [shared[owner][member[owner == 'language']] for owner in ('task', 'language')
           if owner in shared]
  for leaf in here:
    if leaf.owner == 'layer_task':
      masks.append(leaf.masks[layer, member[0]])
    elif layer >= leaf.first:
      masks.append(leaf.masks[layer - leaf.first])
    else:
      masks.append(shared['language' if 'language' in shared else 'task'][config['first_layer']])
  join = np.all if config['how'] == 'and' else np.any
  return np.count_nonzero(join(masks, axis=0)), masks[0].size


@dataclasses.dataclass(frozen=True)
class Analysis:
  """Overlaps and densities of one trained tree; the first matrix is '', all of them together.

  Attributes:
    matrices: [matrix] names.
    members: owner -> [member] names; owners without masks are absent.
    overlaps: owner -> [matrix, member, member].
    densities: owner -> [matrix, member].
    across: [matrix, task, layer] overlap of tasks and layers; None without both.
    layers: [layer] names of `joined`.
    tasks: [task] names of `joined`.
    joined: [layer, task] share of entries that are used.
    expected: overlap by chance at the mean density.
  """

  matrices: tuple[str, ...]
  members: dict[str, tuple[str, ...]]
  overlaps: dict[str, np.ndarray]
  densities: dict[str, np.ndarray]
  across: np.ndarray | None
  layers: tuple[str, ...]
  tasks: tuple[str, ...]
  joined: np.ndarray
  expected: float


def analyse(tuned: Tree, plan: Plan | Sequence[Mapping[str, Any]],
            tasks: Sequence[str] = ()) -> Analysis | None:
  """All overlaps and densities; None where nothing is masked.

  Args:
    tuned: trained leaves without a replica axis.
    plan: of the model, or that of an expert's card.
    tasks: name of each task id.
  """
  masks = {owner: masks_of(tuned, plan, owner, tasks) for owner in OWNERS}
  masks = {owner: own for owner, own in masks.items() if own}
  if not masks:
    return None
  matrices = ('', *sorted({name for own in masks.values() for name in own}))
  stack = lambda function, own: np.stack([function(own, matrix=name) for name in matrices])
  across = None
  if {'task', 'layer'} <= masks.keys() and not _mixed_axes(masks['task'], masks['layer']):
    across = np.stack([overlap(masks['task'], masks['layer'], name) for name in matrices])
  densities = {owner: stack(density, own) for owner, own in masks.items()}
  layers, joined = joined_density(tuned, plan)
  ids = tuple(tasks) or tuple(f'task {i}' for i in range(joined.shape[1]))
  mean = float(np.mean([own[0].mean() for own in densities.values()]))
  return Analysis(matrices, {owner: members_of(own) for owner, own in masks.items()},
                  {owner: stack(overlap, own) for owner, own in masks.items()}, densities, across,
                  layers, ids, joined, by_chance(mean))


def _mixed_axes(first: Masks, second: Masks) -> bool:
  """Whether members hold several masks, so that those of two owners cannot be compared."""
  sizes = lambda masks, name: {mask.size for mask in masks[name].values()}
  return any(sizes(first, name) != sizes(second, name) for name in first.keys() & second.keys())
