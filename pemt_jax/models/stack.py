"""What the stacks of all backbones share: segments of layers, prepared deltas, prompts in front."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.models import layer_experts
from pemt_jax.models.blocks import LayerInputs, StackInputs, StackSpec
from pemt_jax.models.layers import Compute
from pemt_jax.models.packing import Packing
from pemt_jax.models.sites import Aux, Plan, SiteContext, StackShape

# What the backward pass finds of a layer; it recomputes the rest. 'none' keeps everything, 'dots'
# all matrix products, 'projections' those with weights (no logits of attention), 'full' the input.
REMAT = {
    'none': jax.checkpoint_policies.everything_saveable,
    'dots': jax.checkpoint_policies.dots_saveable,
    'projections': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'full': jax.checkpoint_policies.nothing_saveable,
}


# A loop copies each layer's weights out of their stack and what is kept of it into one. On a CPU
# that costs more than the longer compilation of few layers, see docs/performance.md.
UNROLLED_LAYERS = 8


def is_loop(compute: Compute, layers: int) -> bool:
  """Whether a stack of `layers` layers is a loop in the compiled program."""
  if compute.scan_layers is not None:
    return compute.scan_layers
  return compute.backend != 'cpu' or layers > UNROLLED_LAYERS


@flax.struct.dataclass
class Encoded:
  """The result of an encoder.

  Attributes:
    states: [batch, source_length, embed] final states, prompt positions first.
    mask: [batch, source_length] 1 for real positions.
    rows: [batch] 1 for real examples, 0 for filler rows.
    prompt_mask: [prompt] 1 for real prompt positions, or None.
    aux: auxiliaries of the encoder's sites.
    packing: the examples of each row, or None.
  """

  states: jax.Array
  mask: jax.Array
  rows: jax.Array
  prompt_mask: jax.Array | None
  aux: Aux
  packing: Packing | None = None


def with_prompt(context: SiteContext, length: int, aux: Aux) -> SiteContext:
  """The context after the embedding: masks with the positions that a delta has put in front.

  Args:
    context: `mask` [batch, tokens] belongs to the tokens. Rows of several examples hold the
      positions of the prompt already, with a mask of 0.
    length: positions after the embedding.
    aux: of the embedding's site; a prompt gives its `prompt_mask` [prompt].
  """
  mask, packing = context.mask.astype(jnp.float32), context.packing
  found = [value for name, value in aux.items() if name.endswith('/prompt_mask')]
  if not found:
    return context.replace(mask=mask)
  prompt_mask, prompt = found[0], length - mask.shape[1]
  if packing is not None:
    padding = prompt_mask.shape[0] - jnp.sum(prompt_mask).astype(jnp.int32)
    return context.replace(
        mask=packing.front(prompt_mask.astype(jnp.float32), mask), prompt_mask=prompt_mask,
        packing=packing.replace(positions=packing.places - padding))
  front = jnp.broadcast_to(prompt_mask, (mask.shape[0], prompt)).astype(jnp.float32)
  return context.replace(
      mask=jnp.concatenate([front, mask], axis=1), prompt_mask=prompt_mask,
      offset=prompt - jnp.sum(prompt_mask).astype(jnp.int32))


def segment_name(start: int, stop: int, depth: int) -> str:
  """Name of the parameters of layers [start, stop)."""
  return 'layers' if (start, stop) == (0, depth) else f'layers_{start}_{stop}'


def concatenate_aux(parts: Sequence[Aux]) -> Aux:
  """Joins the auxiliaries of segments on their [layer] axis."""
  names = sorted({name for part in parts for name in part})
  join = lambda *leaves: jnp.concatenate(leaves)
  return {name: jax.tree.map(join, *(part[name] for part in parts if name in part))
          for name in names}


class ModelDeltas(nn.Module):
  """What deltas share between the stacks."""

  plan: Plan
  shapes: tuple[StackShape, ...]

  @nn.compact
  def __call__(self) -> dict[str, Any]:
    """Arrays by rule name; a rule that shares nothing is absent."""
    found = {}
    shapes = {shape.stack: shape for shape in self.shapes}
    for rule in self.plan.rules:
      module = None if rule.name in found else rule.delta.model_module(shapes, rule.name)
      if module is not None:
        found[rule.name] = module()
    return found


class LayerStack(nn.Module):
  """Base of stacks: layers in segments, each scanned.

  A subclass makes its parts in `setup`, with `make_layers` for the layers, and names its sites.
  """

  spec: StackSpec

  def sites(self) -> list[str]:
    """Site paths of this stack, without layer indices."""
    raise NotImplementedError

  @property
  def depth(self) -> int:
    """Number of layers."""
    return self.spec.shape.layers

  @property
  def segments(self) -> list[tuple[int, int]]:
    """Ranges of layers that run as one scan."""
    if self.spec.compute.separate_layers:
      return [(layer, layer + 1) for layer in range(self.depth)]
    return self.spec.plan.segments(self.spec.stack, self.depth)

  def make_layers(self, layer: type[nn.Module], methods: Sequence[str] = ('__call__',)) -> None:
    """Makes the segments in `setup`; `methods` of the layer are scanned."""
    for start, stop in self.segments:
      setattr(self, segment_name(start, stop, self.depth),
              self._segment(layer, list(methods), start, stop))

  def _segment(self, layer, methods, start, stop):
    spec = self.spec.with_plan(self.spec.plan.for_layer(self.spec.stack, start))
    loop = stop - start > 1 and is_loop(self.spec.compute, self.depth)
    if self.spec.compute.remat != 'none':
      layer = nn.remat(layer, prevent_cse=not loop, methods=methods,
                       policy=REMAT[self.spec.compute.remat])
    layer, arguments = layer_experts.planned(layer, spec)
    scanned = nn.scan(
        layer, variable_axes={'params': 0, 'constants': 0}, split_rngs={'params': True},
        in_axes=(nn.broadcast, 0), length=stop - start, methods=methods,
        unroll=1 if loop else stop - start,
        metadata_params={nn.PARTITION_NAME: 'layer'})
    return scanned(*arguments)

  def empty_cache(self, rows: int, max_length: int) -> dict[str, Any]:
    """Keys and values of self-attention, [layer, rows, heads, max_length, kv] of zeros.

    Below `experts` stand those of layers whose copies all run, [layer, rows, expert, ...].
    """
    shape, cache = self.spec.shape, {}
    for copies in {self._copies(start) for start, _ in self.segments}:
      front = (shape.layers, rows, copies) if copies else (shape.layers, rows)
      size = (*front, shape.heads, max_length, shape.kv)
      made = {name: jnp.zeros(size, shape.dtype) for name in ('key', 'value')}
      cache |= {'experts': made} if copies else made
    return cache

  def _copies(self, layer: int) -> int:
    """Copies of a layer that all run, or 0."""
    rule = layer_experts.lifting(self.spec.plan.for_layer(self.spec.stack, layer), self.spec.stack)
    return rule.delta.copies if rule is not None and rule.delta.form == 'mixed' else 0

  @nn.compact
  def prepare(self, context: SiteContext) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs the preparation of every delta of this stack once; returns (shared, per_layer)."""
    shared, per_layer = {}, {}
    for rule in self.spec.plan.rules:
      # Rules of one name are one delta whose form differs between layers; they share this.
      here = any(rule.at(self.spec.stack, layer) for layer in range(self.depth))
      if rule.name in shared or not here or not fnmatch.filter(self.sites(), rule.site):
        continue
      module = rule.delta.stack_module(self.spec.shape, rule.name)
      if module is not None:
        shared[rule.name], layered = module(context)
        if layered is not None:
          per_layer[rule.name] = layered
    return shared, per_layer

  def run(self, carry: Any, inputs: StackInputs, layer_inputs: LayerInputs,
          cross: Sequence[tuple[jax.Array, jax.Array]] = (),
          method: str = '__call__') -> tuple[Any, list[Any]]:
    """Runs all segments.

    Args:
      carry: of the first layer.
      inputs: what the layers share.
      layer_inputs: what is scanned, of all layers.
      cross: for each segment, the keys and values of cross-attention of a generation.
      method: of the layers.

    Returns:
      The carry of the last layer and each segment's outputs.
    """
    outputs = []
    for number, (start, stop) in enumerate(self.segments):
      segment = getattr(self, segment_name(start, stop, self.depth))
      part = layer_inputs
      if (start, stop) != (0, self.depth):
        part = jax.tree.map(lambda a, start=start, stop=stop: a[start:stop], layer_inputs)
      if cross:
        part = part.replace(cross_keys=cross[number][0], cross_values=cross[number][1])
      carry, out = getattr(segment, method)(carry, inputs, part)
      outputs.append(out)
    return carry, outputs
