"""Deltas around a whole layer, and layers that exist in several copies.

A rule at the site `<stack>/layer` acts around the layer. A delta with `copies` makes the layer
itself an expert (Ye et al. 2022): its parameters get an `expert` axis behind that of layers and lie
below `experts`, and the routes that the delta has prepared mix or choose the copies' outputs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.errors import UserError
from pemt_jax.models.attention import without_kernel
from pemt_jax.models.blocks import LayerInputs, StackInputs, StackSpec
from pemt_jax.models.layers import OpenSite
from pemt_jax.models.sites import Aux, Plan, Rule

SITE = 'layer'
# How the copies of a layer run, see `ExpertLayer`.
FORMS = ('mixed', 'one_task', 'by_row')
_LIFTED = {'params': 0, 'constants': 0}


def lifting(plan: Plan, stack: str) -> Rule | None:
  """The rule that makes copies of a layer, or None."""
  return next((rule for rule in plan.at(f'{stack}/{SITE}') if rule.delta.copies), None)


def planned(layer: type[nn.Module], spec: StackSpec) -> tuple[type[nn.Module], tuple[Any, ...]]:
  """The class of the layers of a stack under a plan, and the arguments that make one."""
  rule = lifting(spec.plan, spec.stack)
  around = Plan(tuple(r for r in spec.plan.at(f'{spec.stack}/{SITE}') if not r.delta.copies))
  spec = spec.with_plan(Plan(tuple(r for r in spec.plan.rules if not r.delta.copies)))
  made, arguments = layer, (spec,)
  if rule is not None and rule.delta.form == 'by_row' and spec.plan.rules:
    raise UserError(f"plan rule '{spec.plan.rules[0].name}' cannot stand inside of layers that run"
                    " by row; choose another form of the layers' experts.")
  if rule is not None:
    made, arguments = ExpertLayer, (layer, spec, rule)
  if around.rules:
    made, arguments = SurroundedLayer, (made, arguments, spec, around)
  return made, arguments


class SurroundedLayer(nn.Module):
  """A layer with deltas around it; its parameters stand where those of the layer stand."""

  layer: type[nn.Module]
  arguments: tuple[Any, ...]
  spec: StackSpec
  plan: Plan

  def setup(self):
    self.inner = self.layer(*self.arguments)
    nn.share_scope(self, self.inner)
    self.around = OpenSite(self.spec.site(SITE, ('embed', 'embed')), self.plan)

  def cross_memory(self, carry: Any, inputs: StackInputs, layer: LayerInputs) -> Any:
    """As the layer."""
    return self.inner.cross_memory(carry, inputs, layer)

  def __call__(self, carry: tuple[jax.Array, Any], inputs: StackInputs,
               layer: LayerInputs) -> tuple[tuple[jax.Array, Any], Aux]:
    """As the layer; carry = ([batch, length, embed], cache or None)."""
    left: list[Any] = []

    def base(x):
      (y, cache), aux = self.inner((x, carry[1]), inputs, layer)
      left[:] = cache, aux
      return y

    y, aux = self.around(base, carry[0], inputs.at_layer(layer).context)
    return (y, left[0]), left[1] | aux


class ExpertLayer(nn.Module):
  """Copies of a layer under routes [batch, expert], which the rule prepared for each layer.

  'mixed': all copies run, y = sum_e routes_e * layer_e(x). 'one_task': all rows of a batch have the
  route of the first row, and only its strongest copy runs, with its parameters gathered. 'by_row':
  each row runs through its own strongest copy only; rows are sorted into blocks of one copy each.
  The last two are for prediction and fixed routes, since no gradient reaches the routes.

  Attributes:
    layer: class of the layer.
    spec: of its stack, with the rules inside of the layer.
    rule: whose delta has `copies`, `form` (one of `FORMS`), `penalty` and `gate_module`.
  """

  layer: type[nn.Module]
  spec: StackSpec
  rule: Rule

  def setup(self):
    compute = without_kernel(self.spec.compute, 'no kernel runs in several copies of a layer')
    self.experts = self.layer(dataclasses.replace(self.spec, compute=compute))
    site = self.spec.site(SITE, ('embed', 'embed'))
    self.gate = self.rule.delta.gate_module(site, self.rule.name)

  @property
  def mixed(self) -> bool:
    """Whether all copies run; parameters are always made so."""
    return self.rule.delta.form == 'mixed' or self.is_initializing()

  def cross_memory(self, carry: Any, inputs: StackInputs,
                   layer: LayerInputs) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """Keys and values of cross-attention; of all copies [expert, batch, ...] in form 'mixed'."""
    call = lambda module, _, own: module.cross_memory(carry, own, layer.replace(per_layer={}))[1]
    return carry, self._run(call, (None, None, None), inputs, layer)

  def __call__(self, carry: tuple[jax.Array, Any], inputs: StackInputs,
               layer: LayerInputs) -> tuple[tuple[jax.Array, Any], Aux]:
    """carry = ([batch, length, embed], cache or None); auxiliaries of copies lead with [expert]."""
    x, cache = carry
    name, mixed = self.rule.name, self.mixed
    routes = (layer.per_layer[name] if self.gate is None
              else self.gate(x, inputs.at_layer(layer).context))
    own, place = cache, layer
    if cache is not None and self.rule.delta.form != 'one_task':
      own, place = _open(cache, layer, mixed)

    def call(module, mine, inputs):
      x_of, cache, cross = mine
      at = place if cross is None else place.replace(cross_keys=cross[0], cross_values=cross[1])
      return module((x if x_of is None else x_of, cache), inputs, at)

    cross = None if layer.cross_keys is None else (layer.cross_keys, layer.cross_values)
    rows = x if self.rule.delta.form == 'by_row' and not mixed else None
    (y, own), aux = self._run(call, (rows, own, cross), inputs, layer)
    if mixed:
      y = jnp.einsum('ebld,be->bld', y, routes.astype(y.dtype))
    if cache is not None:
      cache = own if place is layer else _close(cache, own, layer, mixed)
    found = {'routes': routes, 'penalty': self.rule.delta.penalty(self._parameters())}
    return (y, cache), aux | {f'{self.spec.stack}/{SITE}/{name}/{kind}': value
                              for kind, value in found.items() if value is not None}

  def _parameters(self):
    return nn.meta.unbox(self.experts.variables.get('params', {}))

  def _run(self, call, mine, inputs, layer):
    """call(module, mine, inputs) of all copies, leading [expert], or of the chosen one."""
    if self.mixed:
      return self._all(call, mine, inputs)
    chosen = jnp.argmax(layer.per_layer[self.rule.name], axis=-1)
    if self.rule.delta.form == 'one_task':
      return _picked(call, chosen[0])(self.experts, mine, inputs)
    return self._by_row(call, mine, inputs, make_blocks(chosen, self.rule.delta.copies))

  def _by_row(self, call, mine, inputs, blocks):
    """As `_run`, each block of rows through its copy; without auxiliaries of the copies."""
    x, cache, cross = mine
    batch = blocks.slots.shape[0]
    rows_of = lambda tree, count: jax.tree.map(  # beams stand behind their row
        lambda leaf: leaf.reshape(count, -1, *leaf.shape[2:]), tree)
    flat = lambda tree: jax.tree.map(lambda leaf: leaf.reshape(1, -1, *leaf.shape[2:]), tree)
    stored = rows_of(cache, batch)

    def body(module, _, block):
      rows, copy = block
      take = lambda tree: jax.tree.map(
          lambda leaf: jnp.take(leaf, rows, axis=0, mode='clip'), tree)
      own = take(x), flat(take(stored)), take(cross)
      out = _picked(call, copy)(module, own, _of_rows(inputs, take, batch))
      if x is None:
        return (), out
      return (), (out[0][0], rows_of(out[0][1], rows.shape[0]))

    scanned = nn.scan(body, variable_broadcast=list(_LIFTED), split_rngs={'params': False},
                      in_axes=0, out_axes=0)
    _, out = scanned(self.experts, (), (blocks.rows, blocks.copies))
    out = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[blocks.slots], out)
    return out if x is None else ((out[0], flat(out[1])), {})

  def _all(self, call, mine, inputs):
    # The module is an argument: a closure over it would share one copy's parameters.
    lifted = nn.vmap(
        lambda module, mine, copy: call(module, mine, _of_copy(inputs, copy)),
        variable_axes=_LIFTED, split_rngs={'params': True}, in_axes=(0, 0), out_axes=0,
        axis_size=self.rule.delta.copies, metadata_params={nn.PARTITION_NAME: 'expert'})
    return lifted(self.experts, mine, jnp.arange(self.rule.delta.copies))


def _of_copy(inputs: StackInputs, copy: jax.Array) -> StackInputs:
  """The inputs with dropout noise of one copy."""
  context = inputs.context
  if context.key is None:
    return inputs
  return inputs.replace(context=context.replace(key=jax.random.fold_in(context.key, copy)))


def _picked(call: Any, copy: jax.Array) -> Any:
  """call(module, mine, inputs) with the parameters of one copy; `module` holds those of all."""
  pick = lambda tree: jax.tree.map(
      lambda leaf: jax.lax.dynamic_index_in_dim(leaf, copy, 0, keepdims=False), tree)
  return lambda module, mine, inputs: nn.map_variables(
      lambda module: call(module, mine, _of_copy(inputs, copy)), list(_LIFTED),
      trans_in_fn=pick)(module)


def _open(cache: dict[str, Any], layer: LayerInputs, mixed: bool) -> tuple[Any, LayerInputs]:
  """The cache of one layer, [1, rows, ...] or of all copies [expert, 1, rows, ...]; where to write.
  """
  take = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, layer.index, 1, axis=0)
  layer_ = layer.replace(slot=jnp.int32(0))
  if not mixed:
    return {name: take(leaf) for name, leaf in cache.items() if name != 'experts'}, layer_
  return jax.tree.map(lambda leaf: jnp.moveaxis(take(leaf), 2, 0), cache['experts']), layer_


def _close(cache: dict[str, Any], own: Any, layer: LayerInputs, mixed: bool) -> dict[str, Any]:
  """The cache with one layer's new entries."""
  put = lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(leaf, new, layer.index, axis=0)
  if not mixed:
    return cache | {name: put(cache[name], new) for name, new in own.items()}
  return cache | {'experts': jax.tree.map(
      lambda leaf, new: put(leaf, jnp.moveaxis(new, 0, 2)), cache['experts'], own)}


def _of_rows(inputs: StackInputs, take: Any, batch: int) -> StackInputs:
  """The inputs of some rows; what all rows share stays."""
  shared = lambda leaf: leaf is None or leaf.ndim == 0 or leaf.shape[0] != batch
  own = lambda leaf: leaf if shared(leaf) else take(leaf)
  context = inputs.context
  context = context.replace(**{name: own(getattr(context, name)) for name in (
      'mask', 'rows', 'encoder_states', 'encoder_mask', 'task_ids')})
  return inputs.replace(context=context, mask=own(inputs.mask), cross_mask=own(inputs.cross_mask))


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Rows of a batch sorted into blocks of one copy each.

  Attributes:
    rows: [block, row] row of the batch; the size of the batch where a place stays free.
    copies: [block] copy that a block runs through.
    slots: [batch] place of each row among all places.
  """

  rows: jax.Array
  copies: jax.Array
  slots: jax.Array


def make_blocks(chosen: jax.Array, copies: int) -> Blocks:
  """Sorts rows by copy into blocks of equal static size, half of a copy's mean share.

  Args:
    chosen: [batch] copy of each row.
    copies: number of copies.
  """
  batch = chosen.shape[0]
  size = max(-(-batch // (2 * copies)), 1)
  count = (batch + copies * (size - 1)) // size  # enough, however the rows fall
  hot = jax.nn.one_hot(chosen, copies, dtype=jnp.int32)
  rank = jnp.take_along_axis(jnp.cumsum(hot, axis=0), chosen[:, None], axis=1)[:, 0] - 1
  stops = jnp.cumsum(-(-jnp.sum(hot, axis=0) // size))
  starts = jnp.concatenate([jnp.zeros(1, stops.dtype), stops[:-1]])
  slots = starts[chosen] * size + rank
  rows = jnp.full(count * size, batch).at[slots].set(jnp.arange(batch)).reshape(count, size)
  owner = jnp.minimum(jnp.searchsorted(stops, jnp.arange(count), side='right'), copies - 1)
  return Blocks(rows, owner, slots)
