"""T5 (v1.0, v1.1, LM-adapted, Flan): a pure Linen encoder-decoder that knows no method.

Parameters of all layers of a stack are stacked on a leading [layer] axis and run by `nn.scan`.
A plan (`models/sites.py`) places deltas at sites; with the empty plan this is the plain model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.models import layers
from pemt_jax.models.blocks import LayerInputs, StackInputs, StackSpec
from pemt_jax.models.layers import MASKED, Compute, fold_name
from pemt_jax.models.sites import Aux, Plan, Site, SiteContext
from pemt_jax.models.stack import (
    Encoded, LayerStack, ModelDeltas, concatenate_aux, with_prompt)
from pemt_jax.models.t5_config import T5Config
from pemt_jax.models.t5_layers import Layer


@flax.struct.dataclass
class Memory:
  """Everything constant during a generation.

  Attributes:
    encoded: the encoder's result.
    cross_keys: [layer, batch, heads, source_length, kv].
    cross_values: like `cross_keys`.
    shared: arrays that deltas prepared for the decoder, by rule name.
    per_layer: the same with a leading [layer] axis.
    task_ids: [batch] or None.
  """

  encoded: Encoded
  cross_keys: jax.Array
  cross_values: jax.Array
  shared: dict[str, Any]
  per_layer: dict[str, Any]
  task_ids: jax.Array | None


def stack_sites(config: T5Config, stack: str) -> list[str]:
  """Site paths of one stack, without layer indices; only the encoder's embeddings are a site."""
  decoder = stack == 'decoder'
  paths = [] if decoder else ['encoder/embed']
  for kind in ['self_attention', 'cross_attention'][:2 if decoder else 1]:
    paths += [f'{stack}/{kind}_norm', f'{stack}/{kind}', f'{stack}/{kind}_residual']
    paths += [f'{stack}/{kind}/{name}' for name in 'qkvo']
  mlp = ['wi_0', 'wi_1', 'wo'] if config.gated else ['wi', 'wo']
  paths += [f'{stack}/mlp_norm', f'{stack}/mlp', *(f'{stack}/mlp/{name}' for name in mlp)]
  return [*paths, f'{stack}/mlp_residual', f'{stack}/final_norm']


class Stack(LayerStack):
  """The layers of one stack, their position bias and final norm."""

  def setup(self):
    spec, config = self.spec, self.spec.config
    self.relative_bias = layers.RelativeBias(
        config.relative_buckets, config.heads, config.relative_max_distance,
        bidirectional=spec.stack == 'encoder', stddev=config.embed**-0.5)
    self.make_layers(Layer, ('__call__', 'cross_memory'))
    outside = dataclasses.replace(spec, plan=spec.plan.outside_layers())
    self.final_norm = outside.norm('final_norm')
    self.embed = layers.OpenSite(spec.site('embed', ('vocab', 'embed')), outside.plan)

  def sites(self) -> list[str]:
    """Site paths of this stack, without layer indices."""
    return stack_sites(self.spec.config, self.spec.stack)

  def _inputs(self, context, shared, queries, keys, mask):
    prefix, decoder = self.spec.prefix, self.spec.stack == 'decoder'
    if prefix:  # Rows that deltas put in front stand before the first real position.
      start = 0 if decoder else context.offset
      keys = jnp.concatenate([jnp.arange(-prefix, 0) + start, keys])
    bias = self.relative_bias(queries, keys)
    front, bias = (bias[..., :prefix], bias[..., prefix:]) if prefix else (None, bias)
    context = context.replace(shared=shared)
    cross_mask = None
    if decoder:
      cross_mask = ((1.0 - context.encoder_mask) * MASKED)[:, None, None, :].astype(jnp.float32)
    return StackInputs(context, bias, mask, front, cross_mask)

  def __call__(self, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    """Runs the stack over whole sequences.

    Args:
      x: [batch, length, embed] embeddings.
      context: masks, encoder states, task ids and dropout key.

    Returns:
      [batch, length, embed] after the final norm, and auxiliaries with a leading [layer] axis.
    """
    spec = self.spec
    context = context.replace(
        key=None if context.key is None else fold_name(context.key, spec.stack))
    positions = jnp.arange(x.shape[1])
    if spec.stack == 'encoder':
      mask = ((1.0 - context.mask) * MASKED)[:, None, None, :].astype(jnp.float32)
    else:
      mask = jnp.where(positions[None, :] <= positions[:, None], 0.0, MASKED)[None, None]
      if spec.compute.mask_targets:
        mask += (((1.0 - context.mask) * MASKED)[:, None, None, :]).astype(jnp.float32)
    shared, per_layer = self.prepare(context)
    inputs = self._inputs(context, shared, positions, positions, mask)
    x = spec.drop(x, context, 'embed').astype(spec.dtype)
    (x, _), parts = self.run((x, None), inputs, LayerInputs(jnp.arange(self.depth), per_layer))
    x, aux = self.final_norm(x, context)
    return spec.drop(x, context, 'final'), concatenate_aux(parts) | aux

  def cross_memory(self, context: SiteContext) -> tuple[Any, Any, jax.Array, jax.Array]:
    """Returns prepared arrays (shared, per_layer) and cross keys and values of all layers."""
    shared, per_layer = self.prepare(context)
    none = jnp.zeros((1,), jnp.int32)
    inputs = self._inputs(context, shared, none, none, jnp.zeros(()))
    _, parts = self.run(jnp.zeros(()), inputs, LayerInputs(jnp.arange(self.depth), per_layer),
                         'cross_memory')
    keys, values = (jnp.concatenate(list(part)) for part in zip(*parts, strict=True))
    return shared, per_layer, keys, values

  def decode_step(self, x: jax.Array, position: jax.Array, cache: dict[str, jax.Array],
                  memory: Memory,
                  model: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One cached step; x is [batch, beams, embed], `model` what deltas share between stacks."""
    length = cache['key'].shape[3]
    encoded = memory.encoded
    context = SiteContext(
        jnp.ones(x.shape[:2], jnp.float32), encoded.rows, prompt_mask=encoded.prompt_mask,
        encoder_mask=encoded.mask, encoder_states=encoded.states, task_ids=memory.task_ids,
        position=position, model=model)
    keys = jnp.arange(length)
    mask = jnp.where(keys <= position, 0.0, MASKED)[None, None, None]
    inputs = self._inputs(context, memory.shared, position[None], keys, mask)
    layer_inputs = LayerInputs(jnp.arange(self.depth), memory.per_layer, memory.cross_keys,
                               memory.cross_values)
    (x, cache), _ = self.run((x, cache), inputs.replace(position=position), layer_inputs)
    x, _ = self.final_norm(x, context)
    return x, cache


class T5(nn.Module):
  """T5 encoder-decoder.

  Attributes:
    config: shapes and constants.
    plan: which deltas act where.
    compute: how to compute.
  """

  config: T5Config
  plan: Plan = Plan()
  compute: Compute = Compute()

  def setup(self):
    config = self.config
    spec = StackSpec(config, self.plan, 'encoder', self.compute)
    self.plan.check(self.sites(), self.depths())
    self.shared = layers.Embedding(config.vocab_size, config.embed)
    self.encoder = Stack(spec)
    decoder = dataclasses.replace(spec, stack='decoder')
    self.decoder = Stack(decoder)
    self.deltas = ModelDeltas(self.plan, (spec.shape, decoder.shape))
    head = Site('lm_head', config.embed, config.vocab_size, 'embed', 'vocab', spec.dtype)
    outside = self.plan.outside_layers()
    self.lm_head = (layers.OpenSite(head, outside) if config.tied_head
                    else layers.Projection(head, outside, 1.0))

  def depths(self) -> dict[str, int]:
    """Number of layers of each stack."""
    return {'encoder': self.config.encoder_layers, 'decoder': self.config.decoder_layers}

  def sites(self) -> list[str]:
    """All site paths, without layer indices."""
    stacks = [path for stack in self.depths() for path in stack_sites(self.config, stack)]
    return [*stacks, 'lm_head']

  @nn.nowrap
  def example_batch(self, batch: int = 1, length: int = 2) -> tuple[jax.Array, ...]:
    """Smallest arguments of a call: inputs, mask, decoder inputs, mask, task ids."""
    tokens, mask = jnp.ones((batch, length), jnp.int32), jnp.ones((batch, length), jnp.float32)
    return tokens, mask, tokens, mask, jnp.zeros((batch,), jnp.int32)

  def encode(self, inputs: jax.Array, inputs_mask: jax.Array,
             task_ids: jax.Array | None = None, key: jax.Array | None = None) -> Encoded:
    """Encodes [batch, length] tokens.

    Args:
      inputs: [batch, length] token ids.
      inputs_mask: [batch, length] 1 for real positions.
      task_ids: [batch] or None.
      key: dropout key; None means deterministic.
    """
    rows = jnp.max(inputs_mask, axis=1).astype(jnp.float32)
    context = SiteContext(inputs_mask, rows, task_ids=task_ids, key=key, model=self.deltas())
    x, aux = self.encoder.embed(self.shared, inputs, context)
    context = with_prompt(context, x.shape[1], aux)
    x, more = self.encoder(x, context)
    return Encoded(x, context.mask, rows, context.prompt_mask, aux | more)

  def decode(self, decoder_inputs: jax.Array, decoder_mask: jax.Array, encoded: Encoded,
             task_ids: jax.Array | None = None,
             key: jax.Array | None = None) -> tuple[jax.Array, Aux]:
    """Logits [batch, target_length, vocab] float32 of shifted targets, and auxiliaries.

    The mask names real positions for averages; attention is causal only (as T5 is trained).
    """
    context = SiteContext(
        decoder_mask, encoded.rows, prompt_mask=encoded.prompt_mask, encoder_states=encoded.states,
        encoder_mask=encoded.mask, task_ids=task_ids, key=key, model=self.deltas())
    if encoded.prompt_mask is not None:
      size = encoded.prompt_mask.shape[0]
      context = context.replace(offset=size - jnp.sum(encoded.prompt_mask).astype(jnp.int32))
    x, aux = self.decoder(self.shared(decoder_inputs), context)
    logits, more = self.head(x, context)
    return logits, encoded.aux | aux | more

  def head(self, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    """[..., embed] -> float32 logits [..., vocab]."""
    if not self.config.tied_head:
      if self.config.scaled_head:
        x = x * self.config.embed**-0.5
      logits, aux = self.lm_head(x, context)
      return logits.astype(jnp.float32), aux
    table = self.shared.embedding.astype(x.dtype)
    base = lambda x: jnp.einsum('...d,vd->...v', x, table, preferred_element_type=jnp.float32)
    return self.lm_head(base, x * self.config.embed**-0.5, context)

  def __call__(self, inputs: jax.Array, inputs_mask: jax.Array, decoder_inputs: jax.Array,
               decoder_mask: jax.Array, task_ids: jax.Array | None = None,
               key: jax.Array | None = None) -> tuple[jax.Array, Aux]:
    """Teacher-forced logits [batch, target_length, vocab] and all auxiliaries."""
    encoded = self.encode(inputs, inputs_mask, task_ids, key)
    return self.decode(decoder_inputs, decoder_mask, encoded, task_ids, key)

  def start_decoding(self, encoded: Encoded, rows: int, max_length: int,
                     task_ids: jax.Array | None = None) -> tuple[Memory, dict[str, jax.Array]]:
    """Prepares a generation: everything that is constant, and an empty cache.

    Args:
      encoded: the encoder's result for [batch] examples.
      rows: batch * beams hypotheses; the beams of an example stand side by side.
      max_length: number of positions of the cache.
      task_ids: [batch] or None.
    """
    context = SiteContext(
        jnp.ones((encoded.mask.shape[0], 1)), encoded.rows, prompt_mask=encoded.prompt_mask,
        encoder_states=encoded.states, encoder_mask=encoded.mask, task_ids=task_ids,
        model=self.deltas())
    shared, per_layer, keys, values = self.decoder.cross_memory(context)
    config = self.config
    shape = (config.decoder_layers, rows, config.heads, max_length, config.kv)
    cache = {name: jnp.zeros(shape, self.compute.dtype) for name in ('key', 'value')}
    return Memory(encoded, keys, values, shared, per_layer, task_ids), cache

  def decode_step(self, tokens: jax.Array, position: jax.Array, cache: dict[str, jax.Array],
                  memory: Memory) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One cached step for [rows] hypotheses; returns logits [rows, vocab] float32 and the cache."""
    batch = memory.encoded.mask.shape[0]
    x = self.shared(tokens.reshape(batch, -1)).astype(self.compute.dtype)
    model = self.deltas()
    x, cache = self.decoder.decode_step(x, position, cache, memory, model)
    context = SiteContext(jnp.ones(x.shape[:2]), memory.encoded.rows, task_ids=memory.task_ids,
                          model=model)
    logits, _ = self.head(x, context)
    return logits.reshape(tokens.shape[0], -1), cache
