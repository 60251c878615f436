"""Banks whose experts are one prototype under masks: each further expert costs a bit per entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.deltas.adapter import ACTIVATIONS, Adapter, Bottleneck, read
from pemt_jax.deltas.lora import LoRA
from pemt_jax.errors import UserError
from pemt_jax.experts.bank import BankOutput
from pemt_jax.experts.masked import Masked
from pemt_jax.models.sites import Site, SiteContext
from pemt_jax.trees import Tree, unflatten

BITS = 'uint8'


@dataclasses.dataclass(frozen=True)
class MaskedExperts:
  """Experts e_i = the change that a prototype times mask i makes.

  Attributes:
    masked: the prototype and its masks; task id i stands for expert i. Its delta is a LoRA or an
      adapter.
  """

  masked: Masked

  def output(self, x: jax.Array, y: jax.Array, context: SiteContext, site: Site,
             count: int) -> tuple[jax.Array, BankOutput]:
    """What the experts read, and their outputs.

    Args:
      x: [batch, length, in] input of the site.
      y: [batch, length, embed] output of its operation.
      context: of the rule; `shared['bank']` is what the prototype has prepared.
      site: the place.
      count: number of experts.
    """
    own = context.replace(shared=context.shared['bank'], task_ids=jnp.arange(count))
    values = self.masked.values_of({}, own, site)
    delta = self.masked.delta
    if isinstance(delta, LoRA):
      x = x.astype(site.dtype)
      hidden = delta.scaling * jnp.einsum('blf,xfr->blxr', x, values['down'])
      return x, BankOutput(hidden, values['up'])
    form, source = delta.bottleneck, read(delta.reads, y, context)
    hidden = jnp.einsum('blf,xfr->blxr', source, values['down/kernel']) + values['down/bias']
    hidden = ACTIVATIONS[form.activation](hidden)
    bias = jnp.broadcast_to(values['up/bias'], (count, site.features))
    return source, BankOutput(hidden, values['up/kernel'], bias)


@dataclasses.dataclass(frozen=True)
class MaskedSource:
  """One stored prototype with masks, and the experts that it holds.

  Attributes:
    place: where it came from, for messages.
    masked: of its plan.
    rule: name of its rules.
    arrays: path -> float array of the prototype or packed masks, see `experts.packed.pack`.
    tasks: names of the tasks that have masks of their own; one name where none has.
  """

  place: str
  masked: Masked
  rule: str
  arrays: Mapping[str, np.ndarray]
  tasks: tuple[str, ...]


def masked_of(plan: Sequence[Mapping[str, Any]], place: str) -> tuple[Masked, str]:
  """The prototype of an expert's card and the name of its rules.

  Args:
    plan: rules of the card.
    place: of the expert, for messages.

  Raises:
    UserError: no prototype with masks, several of them, or a form that no bank holds.
  """
  rules = {rule['name']: rule for rule in plan if rule['delta'] == Masked.__name__}
  config = next(iter(rules.values()))['config'] if rules else {}
  delta = _delta(config.get('delta', {}))
  sites = config.get('sites', ())
  stacks = [site.partition('/')[0] for site in sites]
  if len(rules) != 1 or delta is None or len(set(stacks)) < len(stacks):
    raise UserError(f"source {place} is no bank of experts: masks must stand on one adapter or LoRA"
                    ' prototype with one site in each stack; train it with method.form adapter, or'
                    " with lora and method.projections=('wo',).")
  if config['place'] == 'layer' or not config['owners']:
    raise UserError(f"source {place} has no shared prototype with masks; train it with method.place"
                    " 'model' or 'stack' and with method.owners.")
  fields = {field.name: config[field.name] for field in dataclasses.fields(Masked)
            if field.name in config}
  fields |= {'delta': delta, 'members': tuple(map(tuple, config['members'])), 'packed': True,
             'sites': tuple(sites), 'owners': tuple(config['owners']), 'one_task': False}
  return Masked(**fields), next(iter(rules))


def _delta(fields: Mapping[str, Any]) -> LoRA | Adapter | None:
  """The delta of a prototype by the names of its fields; None for other forms."""
  if set(fields) == {field.name for field in dataclasses.fields(LoRA)} and not fields['row_biases']:
    return LoRA(**fields)
  if set(fields) == {field.name for field in dataclasses.fields(Adapter)}:
    form = Bottleneck(**fields['bottleneck'])
    plain = form.biases and form.scaling == 1.0 and not (form.pre_norm or form.post_norm)
    return Adapter(form, fields['reads']) if plain else None
  return None


def join_masks(sources: Sequence[MaskedSource], rule: str) -> tuple[Masked, tuple[str, ...], Tree]:
  """One bank out of stored prototypes with masks; all must have the same prototype.

  A single one stays as it is. Of several, each expert gets masks of its own: those of layers become
  masks of layer and expert.

  Args:
    sources: in the order of the bank.
    rule: name under which the bank stands.

  Returns:
    The prototype with masks, names of the experts, and the tree of both.

  Raises:
    UserError: prototypes that differ, in form or in values.
  """
  first = sources[0]
  for source in sources[1:]:
    _check_same(source, first)
  if len(sources) > 1 and first.masked.first_layer is not None:
    raise UserError(f'source {first.place} has the mask of a task in its first layer'
                    ' (method.first_layer), which a bank of several files has no place for; give it'
                    ' alone.')
  names = tuple(task for source in sources for task in source.tasks)
  moved = lambda path: path.replace(f'/{first.rule}/', f'/{rule}/')
  if len(sources) == 1:
    return first.masked, names, unflatten({moved(p): leaf for p, leaf in first.arrays.items()})
  parts = [_each_expert(source) for source in sources]
  arrays = {}
  for path, leaf in parts[0].items():
    axis = 1 if '/layer_task_' in path else 0
    masks = leaf.dtype == np.dtype(BITS)
    arrays[moved(path)] = np.concatenate([p[path] for p in parts], axis) if masks else leaf
  owners = tuple(dict.fromkeys('layer_task' if owner == 'layer' else owner
                               for owner in first.masked.owners))
  masked = dataclasses.replace(first.masked, owners=owners, first_layer=None,
                               members=tuple((i, i) for i in range(len(names))))
  return masked, names, unflatten(arrays)


def _check_same(source: MaskedSource, first: MaskedSource) -> None:
  alike = lambda one: dataclasses.replace(one.masked, members=((0, 0),), density=1.0, fan='in')
  if alike(source) != alike(first):
    raise UserError(f'source {source.place} has a prototype of another form or with other masks'
                    f' than {first.place}; train all sources with one config.')
  for path, leaf in first.arrays.items():
    if leaf.dtype != np.dtype(BITS) and not np.array_equal(leaf, source.arrays[path]):
      raise UserError(f'source {source.place} has a prototype of its own; the masks of a bank stand'
                      f' on that of {first.place}: train them from it, with a learning rate of 0'
                      ' for the prototype.')


def _each_expert(source: MaskedSource) -> dict[str, np.ndarray]:
  """Arrays with masks [expert, ...] of tasks and languages and [layer, expert, ...] of layers."""
  found, members = {}, source.masked.members[:len(source.tasks)]
  ids = {'task': [task for task, _ in members], 'language': [language for _, language in members]}
  for path, leaf in source.arrays.items():
    *start, level, name = path.split('/')
    if level in ids:
      found[path] = leaf[ids[level]]
    elif level.startswith('layer_task_'):
      found[path] = leaf[:, ids['task']]
    elif level.startswith('layer_'):
      path = '/'.join((*start, f'layer_task_{level.removeprefix("layer_")}', name))
      found[path] = np.repeat(leaf[:, None], len(members), axis=1)
    else:
      found[path] = leaf
  return found
