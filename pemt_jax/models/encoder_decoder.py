"""What backbones share: stacks over whole texts and step by step, both together.

A backbone (`models/t5.py`, `models/bart.py`) makes its parts in `setup` and says how its stacks
begin and end, what its positions are and how its head is made.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.errors import UserError
from pemt_jax.models.blocks import BlockStyle, LayerInputs, StackInputs, StackSpec
from pemt_jax.models.layers import MASKED, Compute, Embedding, fold_name
from pemt_jax.models.packing import Packing
from pemt_jax.models.sites import Aux, Plan, SiteContext
from pemt_jax.models.stack import Encoded, LayerStack, concatenate_aux, with_prompt

_REMEDIES = {'encoder': 'data.max_source_length',
             'decoder': 'data.max_target_length or generation.max_length'}


@flax.struct.dataclass
class Memory:
  """Everything constant during a generation.

  Attributes:
    encoded: the encoder's result.
    cross: for each segment of layers, keys and values of cross-attention, [layer, batch, heads,
      source_length, kv]; [layer, expert, batch, ...] where all copies of a layer run.
    shared: arrays that deltas prepared for the decoder, by rule name.
    per_layer: the same with a leading [layer] axis.
    task_ids: [batch] or None.
  """

  encoded: Encoded
  cross: list[tuple[jax.Array, jax.Array]]
  shared: dict[str, Any]
  per_layer: dict[str, Any]
  task_ids: jax.Array | None


def _closed(open_: jax.Array) -> jax.Array:
  """What attention adds to its logits: 0 where `open_` is 1, `MASKED` where it is 0."""
  return ((1.0 - open_) * MASKED).astype(jnp.float32)


class TransformerStack(LayerStack):
  """The layers of a stack and what stands in front of and behind them."""

  @property
  def longest(self) -> int | None:
    """Most positions that the stack has; None without a limit."""
    return None

  @property
  def embed_dropout(self) -> float:
    """Dropout rate of what `begin` returns."""
    return self.spec.config.dropout

  def begin(self, x: jax.Array, positions: jax.Array,
            context: SiteContext) -> tuple[jax.Array, Aux]:
    """Embeddings [batch, length, embed] at positions [length] -> what is dropped out and run."""
    del positions, context
    return x, {}

  def end(self, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    """Output of the last layer -> output of the stack."""
    del context
    return x, {}

  def position_bias(self, queries: jax.Array, keys: jax.Array,
                    context: SiteContext) -> tuple[jax.Array | None, jax.Array]:
    """Bias of self-attention: of the rows that deltas put in front, and of the keys.

    Args:
      queries: [queries] positions.
      keys: [keys] positions.
      context: of the stack.
    """
    del queries, keys, context
    return None, jnp.zeros(())

  def check_length(self, size: int) -> None:
    """Refuses more positions than the stack has.

    Raises:
      UserError: too many.
    """
    if self.longest is not None and size > self.longest:
      stack = self.spec.stack
      kind, prompt = ('input', ', prompt included') if stack == 'encoder' else ('output', '')
      raise UserError(f'an {kind} has {size} positions{prompt}, but the backbone only'
                      f' {self.longest}; lower {_REMEDIES[stack]}.')

  def _mask(self, context, length):
    """What self-attention over whole sequences adds to its logits."""
    padding = _closed(context.mask[:, None, None, :])
    packing = context.packing
    apart = None if packing is None else _closed(packing.joins(packing))
    if self.spec.stack == 'encoder':
      return padding if apart is None else padding + apart
    positions = jnp.arange(length)
    mask = jnp.where(positions[None, :] <= positions[:, None], 0.0, MASKED)[None, None]
    mask = mask if apart is None else mask + apart
    return mask + padding if self.spec.compute.mask_targets else mask

  def _inputs(self, context, shared, places, mask):
    """What all layers share; `places` are the positions of queries and of keys."""
    front, bias = self.position_bias(*places, context)
    cross_mask = None
    if context.encoder_mask is not None:
      cross_mask = _closed(context.encoder_mask[:, None, None, :])
    if context.encoder_packing is not None:
      cross_mask += _closed(context.packing.joins(context.encoder_packing))
    return StackInputs(context.replace(shared=shared), bias, mask, front, cross_mask)

  def __call__(self, x: jax.Array, context: SiteContext,
               remember: bool = False) -> tuple[jax.Array, Aux]:
    """Runs the stack over whole sequences.

    Args:
      x: [batch, length, embed] embeddings.
      context: masks, encoder states, task ids and dropout key.
      remember: see `StackInputs.remember`.

    Returns:
      [batch, length, embed], and auxiliaries; those of layers have a leading [layer] axis.

    Raises:
      UserError: more positions than the stack has.
    """
    spec, length = self.spec, x.shape[1]
    self.check_length(length)
    context = context.replace(
        key=None if context.key is None else fold_name(context.key, spec.stack))
    positions = jnp.arange(length)
    x, first = self.begin(x, positions, context)
    shared, per_layer = self.prepare(context)
    inputs = self._inputs(context, shared, (positions, positions), self._mask(context, length))
    inputs = inputs.replace(remember=remember)
    x = spec.drop(x, context, 'embed', self.embed_dropout).astype(spec.dtype)
    (x, _), parts = self.run((x, None), inputs, LayerInputs(jnp.arange(self.depth), per_layer))
    x, last = self.end(x, context)
    return x, first | concatenate_aux(parts) | last

  def cross_memory(self, context: SiteContext) -> tuple[Any, Any, list[Any]]:
    """Returns prepared arrays (shared, per_layer), and cross keys and values by segment."""
    shared, per_layer = self.prepare(context)
    none = jnp.zeros((1,), jnp.int32)
    inputs = self._inputs(context, shared, (none, none), jnp.zeros(()))
    _, parts = self.run(jnp.zeros(()), inputs, LayerInputs(jnp.arange(self.depth), per_layer),
                        method='cross_memory')
    return shared, per_layer, parts

  def decode_step(self, x: jax.Array, position: jax.Array, cache: dict[str, jax.Array],
                  memory: Memory,
                  model: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One cached step; x is [batch, beams, embed], `model` what deltas share between stacks."""
    length = jax.tree.leaves(cache)[0].shape[-2]
    encoded = memory.encoded
    context = SiteContext(
        jnp.ones(x.shape[:2], jnp.float32), encoded.rows, prompt_mask=encoded.prompt_mask,
        encoder_mask=encoded.mask, encoder_states=encoded.states, task_ids=memory.task_ids,
        position=position, model=model)
    keys = jnp.arange(length)
    mask = jnp.where(keys <= position, 0.0, MASKED)[None, None, None]
    inputs = self._inputs(context, memory.shared, (position[None], keys), mask)
    x, _ = self.begin(x, position[None], context)
    layer_inputs = LayerInputs(jnp.arange(self.depth), memory.per_layer)
    (x, cache), _ = self.run((x.astype(self.spec.dtype), cache),
                             inputs.replace(position=position), layer_inputs, memory.cross)
    x, _ = self.end(x, context)
    return x, cache


class Backbone(nn.Module):
  """Base of all backbones: the parts that `setup` makes, and the way from tokens into a stack.

  A subclass makes `shared` and `deltas` in `setup` and names its sites.

  Attributes:
    config: shapes and constants.
    plan: which deltas act where.
    compute: how to compute.
  """

  config: Any
  plan: Plan = Plan()
  compute: Compute = Compute()

  def depths(self) -> dict[str, int]:
    """Number of layers of each stack."""
    raise NotImplementedError

  def sites(self) -> list[str]:
    """All site paths, without layer indices."""
    raise NotImplementedError

  @nn.nowrap
  def first_parts(self, stack: str, style: BlockStyle,
                  stddev: float = 1.0) -> tuple[StackSpec, Embedding]:
    """The static part of a stack, and the table of tokens with its first deviation.

    Raises:
      UserError: a plan with sites or layers that the backbone has not.
    """
    config = self.config
    self.plan.check(self.sites(), self.depths())
    return (StackSpec(config, self.plan, stack, self.compute, style),
            Embedding(config.vocab_size, config.embed, stddev, plan=self.plan.outside_layers()))

  def embed(self, stack: TransformerStack, tokens: jax.Array, mask: jax.Array,
            task_ids: jax.Array | None, key: jax.Array | None,
            packing: Packing | None = None) -> tuple[jax.Array, SiteContext, Aux]:
    """What a stack reads: embeddings, context, auxiliaries; deltas may put a prompt in front.

    Args:
      stack: with the site of the embeddings.
      tokens: [batch, length] ids.
      mask: [batch, length] 1 for real positions.
      task_ids: [batch] or None.
      key: dropout key; None means deterministic.
      packing: the examples of each row, or None.

    Returns:
      [batch, prompt + length, embed], the context of the stack, auxiliaries.
    """
    rows = jnp.max(mask, axis=1).astype(jnp.float32)
    context = SiteContext(mask, rows, task_ids=task_ids, key=key, model=self.deltas(),
                          packing=packing)
    x, aux = stack.embed(self.shared, tokens, context)
    return x, with_prompt(context, x.shape[1], aux), aux


class EncoderDecoder(Backbone):
  """Base of text-to-text backbones.

  A subclass makes `shared`, `encoder`, `decoder` and `deltas` in `setup`, names the sites of its
  stacks and computes its head.
  """

  def stack_sites(self, stack: str) -> list[str]:
    """Site paths of one stack, without layer indices."""
    raise NotImplementedError

  def head(self, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    """[..., embed] -> float32 logits [..., vocab], and auxiliaries."""
    raise NotImplementedError

  def depths(self) -> dict[str, int]:
    """Number of layers of each stack."""
    return {'encoder': self.config.encoder_layers, 'decoder': self.config.decoder_layers}

  def sites(self) -> list[str]:
    """All site paths, without layer indices."""
    stacks = (path for stack in self.depths() for path in self.stack_sites(stack))
    return ['shared', *stacks, 'lm_head']

  @nn.nowrap
  def example_batch(self, batch: int = 1, length: int = 2) -> tuple[jax.Array, ...]:
    """Smallest arguments of a call: inputs, mask, decoder inputs, mask, task ids."""
    tokens, mask = jnp.ones((batch, length), jnp.int32), jnp.ones((batch, length), jnp.float32)
    return tokens, mask, tokens, mask, jnp.zeros((batch,), jnp.int32)

  def encode(self, inputs: jax.Array, inputs_mask: jax.Array,
             task_ids: jax.Array | None = None, key: jax.Array | None = None,
             packing: Packing | None = None) -> Encoded:
    """Encodes [batch, length] tokens.

    Args:
      inputs: [batch, length] token ids.
      inputs_mask: [batch, length] 1 for real positions.
      task_ids: [batch] or None.
      key: dropout key; None means deterministic.
      packing: the examples of each row; None where a row is one example.

    Raises:
      UserError: more positions than the backbone has.
    """
    x, context, aux = self.embed(self.encoder, inputs, inputs_mask, task_ids, key, packing)
    x, more = self.encoder(x, context)
    return Encoded(x, context.mask, context.rows, context.prompt_mask, aux | more, context.packing)

  def decode(self, decoder_inputs: jax.Array, decoder_mask: jax.Array, encoded: Encoded,
             task_ids: jax.Array | None = None, key: jax.Array | None = None,
             packing: Packing | None = None) -> tuple[jax.Array, Aux]:
    """Logits [batch, target_length, vocab] float32 of shifted targets, and auxiliaries.

    The mask names real positions for averages; attention is causal only, unless
    `Compute.mask_targets` says otherwise, and stays within an example of `packing`.
    """
    context = SiteContext(
        decoder_mask, encoded.rows, prompt_mask=encoded.prompt_mask, encoder_states=encoded.states,
        encoder_mask=encoded.mask, task_ids=task_ids, key=key, model=self.deltas(),
        packing=packing, encoder_packing=encoded.packing)
    if encoded.prompt_mask is not None and packing is None:
      size = encoded.prompt_mask.shape[0]
      context = context.replace(offset=size - jnp.sum(encoded.prompt_mask).astype(jnp.int32))
    x, aux = self.decoder(self.shared(decoder_inputs), context)
    logits, more = self.head(x, context)
    return logits, encoded.aux | aux | more

  def __call__(self, inputs: jax.Array, inputs_mask: jax.Array, decoder_inputs: jax.Array,
               decoder_mask: jax.Array, task_ids: jax.Array | None = None,
               key: jax.Array | None = None,
               packing: tuple[Packing, Packing] | None = None) -> tuple[jax.Array, Aux]:
    """Teacher-forced logits [batch, target_length, vocab] and all auxiliaries.

    `packing` names the examples of the rows of inputs and of targets, if they hold several.
    """
    sources, targets = ((one,) for one in packing) if packing else ((), ())  # GPT-2 takes none
    encoded = self.encode(inputs, inputs_mask, task_ids, key, *sources)
    return self.decode(decoder_inputs, decoder_mask, encoded, task_ids, key, *targets)

  def start_decoding(self, encoded: Encoded, rows: int, max_length: int,
                     task_ids: jax.Array | None = None) -> tuple[Memory, dict[str, jax.Array]]:
    """Prepares a generation: everything that is constant, and an empty cache.

    Args:
      encoded: the encoder's result for [batch] examples.
      rows: batch * beams hypotheses; the beams of an example stand side by side.
      max_length: number of positions of the cache.
      task_ids: [batch] or None.

    Raises:
      UserError: more positions than the decoder has.
    """
    self.decoder.check_length(max_length)
    context = SiteContext(
        jnp.ones((encoded.mask.shape[0], 1)), encoded.rows, prompt_mask=encoded.prompt_mask,
        encoder_states=encoded.states, encoder_mask=encoded.mask, task_ids=task_ids,
        model=self.deltas())
    shared, per_layer, cross = self.decoder.cross_memory(context)
    cache = self.decoder.empty_cache(rows, max_length)
    return Memory(encoded, cross, shared, per_layer, task_ids), cache

  def decode_step(self, tokens: jax.Array, position: jax.Array, cache: dict[str, jax.Array],
                  memory: Memory) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One cached step for [rows] hypotheses; returns logits [rows, vocab] float32 and the cache."""
    batch = memory.encoded.mask.shape[0]
    x = self.shared(tokens.reshape(batch, -1))
    model = self.deltas()
    x, cache = self.decoder.decode_step(x, position, cache, memory, model)
    context = SiteContext(jnp.ones(x.shape[:2]), memory.encoded.rows, task_ids=memory.task_ids,
                          model=model)
    logits, _ = self.head(x, context)
    return logits.reshape(tokens.shape[0], -1), cache
