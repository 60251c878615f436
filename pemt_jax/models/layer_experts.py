"""Deltas around a whole layer, and layers that exist in several copies.

A rule at the site `<stack>/layer` acts around the layer. A delta with `copies` makes the layer
itself an expert (Ye et al. 2022): its parameters get an `expert` axis behind that of layers and lie
below `experts`, and the routes that the delta has prepared mix or choose the copies' outputs.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.models.blocks import LayerInputs, StackInputs, StackSpec
from pemt_jax.models.layers import OpenSite
from pemt_jax.models.sites import Aux, Plan, Rule

SITE = 'layer'
# How the copies of a layer run, see `ExpertLayer`.
FORMS = ('mixed', 'one_task')
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
  route of the first row, and only its strongest copy runs, with its parameters gathered; for
  prediction and fixed routes, since no gradient reaches the routes.

  Attributes:
    layer: class of the layer.
    spec: of its stack, with the rules inside of the layer.
    rule: whose delta has `copies`, `form` (one of `FORMS`), `penalty` and `gate_module`.
  """

  layer: type[nn.Module]
  spec: StackSpec
  rule: Rule

  def setup(self):
    self.experts = self.layer(self.spec)
    site = self.spec.site(SITE, ('embed', 'embed'))
    self.gate = self.rule.delta.gate_module(site, self.rule.name)

  @property
  def mixed(self) -> bool:
    """Whether all copies run; parameters are always made so."""
    return self.rule.delta.form == 'mixed' or self.is_initializing()

  def cross_memory(self, carry: Any, inputs: StackInputs,
                   layer: LayerInputs) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """Keys and values of cross-attention; of all copies [expert, batch, ...] in form 'mixed'."""
    call = lambda module, _, own: module.cross_memory(carry, own, layer)[1]
    return carry, self._run(call, None, inputs, layer)

  def __call__(self, carry: tuple[jax.Array, Any], inputs: StackInputs,
               layer: LayerInputs) -> tuple[tuple[jax.Array, Any], Aux]:
    """carry = ([batch, length, embed], cache or None); auxiliaries of copies lead with [expert]."""
    x, cache = carry
    name, mixed = self.rule.name, self.mixed
    routes = (layer.per_layer[name] if self.gate is None
              else self.gate(x, inputs.at_layer(layer).context))
    store, own, place = cache, None, layer
    if mixed and cache is not None:
      store, own, place = _open(cache, layer)
    elif cache is not None:
      own = cache

    def call(module, mine, inputs):
      cache, cross = mine
      at = place if cross is None else place.replace(cross_keys=cross[0], cross_values=cross[1])
      return module((x, cache), inputs, at)

    cross = None if layer.cross_keys is None else (layer.cross_keys, layer.cross_values)
    (y, own), aux = self._run(call, (own, cross), inputs, layer)
    if mixed:
      y = jnp.einsum('ebld,be->bld', y, routes.astype(y.dtype))
      cache = None if cache is None else _close(store, own, layer)
    else:
      cache = own
    found = {'routes': routes, 'penalty': self.rule.delta.penalty(self._parameters())}
    return (y, cache), aux | {f'{self.spec.stack}/{SITE}/{name}/{kind}': value
                              for kind, value in found.items() if value is not None}

  def _parameters(self):
    return nn.meta.unbox(self.experts.variables.get('params', {}))

  def _run(self, call, mine, inputs, layer):
    """call(module, mine, inputs) of all copies, leading [expert], or of the chosen one."""
    if self.mixed:
      return self._all(call, mine, inputs)
    index = jnp.argmax(layer.per_layer[self.rule.name][0])
    pick = lambda tree: jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, 0, keepdims=False), tree)
    chosen = nn.map_variables(lambda module: call(module, mine, _of_copy(inputs, index)),
                              list(_LIFTED), trans_in_fn=pick)
    return chosen(self.experts)

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


def _open(cache: dict[str, Any], layer: LayerInputs) -> tuple[Any, Any, LayerInputs]:
  """The copies' cache of one layer as [expert, 1, rows, ...], and where the copy writes in it."""
  take = lambda leaf: jnp.moveaxis(
      jax.lax.dynamic_slice_in_dim(leaf, layer.index, 1, axis=0), 2, 0)
  return cache, jax.tree.map(take, cache['experts']), layer.replace(slot=jnp.int32(0))


def _close(cache: dict[str, Any], own: Any, layer: LayerInputs) -> dict[str, Any]:
  """The cache with one layer's new entries of the copies."""
  put = lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(
      leaf, jnp.moveaxis(new, 0, 2), layer.index, axis=0)
  return cache | {'experts': jax.tree.map(put, cache['experts'], own)}
