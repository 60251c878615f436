"""Sites: the named places of a backbone where a delta may act, and the plan that fills them.

A backbone calls every site explicitly and "around" the operation it may change: the delta gets
the operation itself (`base`), its input and a `SiteContext`, and returns the output and
auxiliaries. Deltas nest; a later rule of the plan is the outer one. A backbone with an empty plan
is the plain model.

A delta may call `base` several times, which uses the same parameters again. Where a backbone norms
behind the residual sum (post-norm), the norm's site stands around the end of the sub-layer: its
input is the sum, and the context has both parts, `residual` and `sublayer_output`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.errors import UserError
from pemt_jax.models.packing import Packing

Aux = dict[str, jax.Array]
Base = Callable[[jax.Array], jax.Array]


@flax.struct.dataclass
class SiteContext:
  """Everything a delta may read besides its input; arrays only.

  Attributes:
    mask: [batch, length] 1 for real positions of the current stack (prompt positions included).
    rows: [batch] 1 for real examples, 0 for rows that only fill up the batch.
    prompt_mask: [prompt] 1 for real prompt positions at the front of the encoder; None without
      a prompt. Padding of prompts stands on the left, so that distances to the text are kept.
    sublayer_input: [batch, length, embed] normalised input of the current sub-layer.
    residual: [batch, length, embed] the same before the norm: the residual stream. At the end of a
      sub-layer: the stream without the sub-layer's output.
    sublayer_output: [batch, length, embed] what the sub-layer adds to the residual stream, dropout
      included; at the ends of sub-layers (`*_residual`, norms behind the sum), otherwise None.
    encoder_states: [batch, source_length, embed] final encoder output (decoder only).
    encoder_mask: [batch, source_length] 1 for real encoder positions (decoder only).
    task_ids: [batch] task of each row, or None.
    layer: [] index of the current layer.
    position: [] position of a cached decoding step, where beams stand on the length axis, or None.
    key: random key of the current layer; None means deterministic.
    offset: [] number of prompt padding positions in front of the encoder input.
    shared: arrays that a delta prepared once for the current stack, by rule name.
    per_layer: the current layer's slice of prepared per-layer arrays, by rule name.
    model: arrays that belong to the model as a whole, by rule name.
    packing: the examples of each row in the current stack; None where a row is one example.
    encoder_packing: the same in the encoder (decoder only).
  """

  mask: jax.Array
  rows: jax.Array
  prompt_mask: jax.Array | None = None
  sublayer_input: jax.Array | None = None
  residual: jax.Array | None = None
  sublayer_output: jax.Array | None = None
  encoder_states: jax.Array | None = None
  encoder_mask: jax.Array | None = None
  task_ids: jax.Array | None = None
  layer: jax.Array | int = 0
  position: jax.Array | None = None
  key: jax.Array | None = None
  offset: jax.Array | int = 0
  shared: dict[str, Any] = dataclasses.field(default_factory=dict)
  per_layer: dict[str, Any] = dataclasses.field(default_factory=dict)
  model: dict[str, Any] = dataclasses.field(default_factory=dict)
  packing: Packing | None = None
  encoder_packing: Packing | None = None

  def of_rule(self, name: str) -> SiteContext:
    """The same context with only the prepared arrays of one rule, or None where it has none."""
    return self.replace(shared=self.shared.get(name), per_layer=self.per_layer.get(name),
                        model=self.model.get(name))


@flax.struct.dataclass
class AttentionInputs:
  """What the operation of an attention site reads.

  Attributes:
    query: [batch, heads, queries, kv].
    key: [batch, heads, keys, kv].
    value: like `key`.
    prefix_key: [heads, prefix, kv] or [batch, heads, prefix, kv] keys of a delta in front, or None.
    prefix_value: like `prefix_key`.
  """

  query: jax.Array
  key: jax.Array
  value: jax.Array
  prefix_key: jax.Array | None = None
  prefix_value: jax.Array | None = None

  def with_prefix(self, key: jax.Array, value: jax.Array) -> AttentionInputs:
    """Puts more rows in front."""
    if self.prefix_key is not None:
      key, value = _in_front(key, self.prefix_key), _in_front(value, self.prefix_value)
    return self.replace(prefix_key=key, prefix_value=value)


def _in_front(first: jax.Array, second: jax.Array) -> jax.Array:
  if first.ndim != second.ndim:
    batch = max((a for a in (first, second)), key=lambda a: a.ndim).shape[:1]
    spread = lambda a: a if a.ndim == 4 else jnp.broadcast_to(a, batch + a.shape)
    first, second = spread(first), spread(second)
  return jnp.concatenate([first, second], axis=-2)


@dataclasses.dataclass(frozen=True)
class StackShape:
  """Sizes of one stack of a backbone.

  Attributes:
    stack: `encoder` or `decoder`.
    layers: number of layers.
    embed: width of the residual stream.
    heads: attention heads.
    kv: width of a head.
    mlp: width of the feed-forward activation.
    dtype: dtype of the computation.
  """

  stack: str
  layers: int
  embed: int
  heads: int
  kv: int
  mlp: int
  dtype: Any


@dataclasses.dataclass(frozen=True)
class Site:
  """One place in a backbone.

  Attributes:
    path: name without the layer index, such as `encoder/mlp/wo`.
    in_features: size of the last axis of the input.
    features: size of the last axis of the output.
    in_axis: logical name of the last axis of the input.
    out_axis: logical name of the last axis of the output.
    dtype: dtype of the computation.
  """

  path: str
  in_features: int
  features: int
  in_axis: str
  out_axis: str
  dtype: Any

  @property
  def stack(self) -> str:
    """`encoder` or `decoder`."""
    return self.path.split('/', 1)[0]


class SiteDelta(Protocol):
  """What a plan may place: a hashable description that makes the modules which do the work.

  `deltas.base.Delta` implements all but the maths.
  """

  @property
  def key_positions(self) -> int:
    """Rows that it puts in front of the keys of an attention site."""

  @property
  def copies(self) -> int:
    """Copies of the layer that it makes, at the site of a whole layer; see `layer_experts`."""

  @property
  def packs(self) -> bool:
    """Whether rows may hold several examples."""

  @property
  def front_positions(self) -> int:
    """Positions that it puts in front of an embedded text."""

  def module(self, site: Site, name: str) -> nn.Module:
    """Returns a module with `__call__(base, x, context) -> (y, aux)`."""

  def stack_module(self, shape: StackShape, name: str) -> nn.Module | None:
    """Returns None or a module `__call__(context) -> (shared, per_layer)`, run once per stack.

    `per_layer` is a pytree whose leaves have a leading [layer] axis, or None.
    """

  def model_module(self, shapes: Mapping[str, StackShape], name: str) -> nn.Module | None:
    """Returns None or a module `__call__() -> arrays` for what the stacks share."""


@dataclasses.dataclass(frozen=True)
class Rule:
  """Places `delta` at every site that matches.

  Attributes:
    name: name of the delta's parameters below the site.
    site: pattern (`fnmatch`) over site paths, such as `*/mlp/wo`.
    delta: what to place there.
    layers: (stack, layer) pairs to which the rule is restricted; None means all layers.
  """

  name: str
  site: str
  delta: SiteDelta
  layers: tuple[tuple[str, int], ...] | None = None

  def at(self, stack: str, layer: int) -> bool:
    """Whether the rule holds in this layer."""
    return self.layers is None or (stack, layer) in self.layers


@dataclasses.dataclass(frozen=True)
class Plan:
  """Ordered rules; says which deltas act at which site of which layer."""

  rules: tuple[Rule, ...] = ()

  def at(self, path: str) -> tuple[Rule, ...]:
    """Returns the rules for the site, innermost first."""
    return tuple(rule for rule in self.rules if fnmatch.fnmatchcase(path, rule.site))

  def for_layer(self, stack: str, layer: int) -> Plan:
    """Returns the plan without the rules that do not hold in this layer."""
    return Plan(tuple(rule for rule in self.rules if rule.at(stack, layer)))

  def key_positions(self, path: str) -> int:
    """Rows in front of the keys of an attention site."""
    return sum(rule.delta.key_positions for rule in self.at(path))

  def outside_layers(self) -> Plan:
    """Returns the rules that also hold outside of layers: at embeddings, final norms, the head."""
    return Plan(tuple(rule for rule in self.rules if rule.layers is None))

  def segments(self, stack: str, depth: int) -> list[tuple[int, int]]:
    """Cuts the layers of a stack into the longest ranges [start, stop) with equal rules."""
    starts = [0]
    for layer in range(1, depth):
      if self.for_layer(stack, layer) != self.for_layer(stack, layer - 1):
        starts.append(layer)
    return list(zip(starts, [*starts[1:], depth], strict=True))

  def check(self, sites: Sequence[str], depths: Mapping[str, int]) -> None:
    """Checks that every rule finds a place.

    Args:
      sites: all site paths of the backbone.
      depths: number of layers of each stack.

    Raises:
      UserError: a rule matches no site, names no layer, a missing layer or a layer without its
        site, or shares its name with another rule at the same site.
    """
    for rule in self.rules:
      self._check_place(rule, fnmatch.filter(sites, rule.site), sites, depths)
    for stack, depth in depths.items():
      here = fnmatch.filter(sites, f'{stack}/*')
      for plan, path in itertools.product(
          (self.for_layer(stack, layer) for layer in range(depth)), here):
        names = [rule.name for rule in plan.at(path)]
        if len(names) != len(set(names)):
          raise UserError(f"two plan rules at site '{path}' share a name: {', '.join(names)};"
                          ' rename one of them.')
        if sum(rule.delta.copies > 0 for rule in plan.at(path)) > 1:
          raise UserError(f"several plan rules make copies of '{path}': {', '.join(names)}; keep"
                          ' one.')

  @staticmethod
  def _check_place(rule, found, sites, depths):
    if not found:
      raise UserError(
          f"plan rule '{rule.name}' matches no site: '{rule.site}' is not among"
          f' {", ".join(sites)}; change the site pattern of the rule.')
    if rule.delta.copies and not all(path.endswith('/layer') for path in found):
      raise UserError(f"plan rule '{rule.name}' makes copies of layers at '{found[0]}'; place it at"
                      " '*/layer'.")
    if rule.layers == ():
      raise UserError(f"plan rule '{rule.name}' names no layer; remove the rule or give layers.")
    for stack, layer in rule.layers or ():
      if layer not in range(depths.get(stack, 0)):
        raise UserError(
            f"plan rule '{rule.name}' names layer {layer} of '{stack}', which has"
            f' {depths.get(stack, 0)} layers; change the layers of the rule.')
      if not any(path.startswith(f'{stack}/') for path in found):
        raise UserError(
            f"plan rule '{rule.name}' names layer {layer} of '{stack}', where no site matches"
            f" '{rule.site}'; change the layers or the site pattern of the rule.")


def plan_as_json(plan: Plan) -> list[dict[str, Any]]:
  """The rules of a plan as plain values."""
  return [{'name': rule.name, 'site': rule.site, 'layers': rule.layers,
           'delta': type(rule.delta).__name__, 'config': dataclasses.asdict(rule.delta)}
          for rule in plan.rules]


def call_site(plan: Plan, site: Site, base: Base, x: Any,
              context: SiteContext) -> tuple[jax.Array, Aux]:
  """Calls `base` with the planned deltas around it; use inside a compact method.

  Args:
    plan: the rules that hold in the current layer.
    site: the place.
    base: the operation; a delta that never calls it leaves its parameters uncreated.
    x: input of the operation.
    context: what deltas may read.

  Returns:
    The output and the auxiliaries, named `<site path>/<rule name>/<kind>`.
  """
  collected: Aux = {}

  def wrap(inner: Base, rule: Rule) -> Base:
    delta = rule.delta.module(site, rule.name)

    def outer(value):
      y, aux = delta(inner, value, context)
      collected.update({f'{site.path}/{rule.name}/{kind}': a for kind, a in aux.items()})
      return y

    return outer

  call = base
  for rule in plan.at(site.path):
    call = wrap(call, rule)
  return call(x), collected
