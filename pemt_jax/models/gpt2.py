"""GPT-2: one causal stack with norms in front of its sub-layers; it knows no method.

Its parts are those of the other backbones. It has the interface of an encoder-decoder: a source is
the beginning of a text, a target what follows it behind the start token, and one stack, `decoder`,
reads both. So the losses, decoding and evaluation of text to text work as they are. Plain text has
`read`, where every position predicts the next one.

Padding may stand anywhere; a masked position is not read and not counted. Positions are counted
from 0 and include those of a prompt in front.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from pemt_jax.errors import UserError
from pemt_jax.models import layers
from pemt_jax.models.block_layers import PreNormLayer, layer_sites
from pemt_jax.models.blocks import MEMORY, BlockStyle, LayerInputs, StackInputs
from pemt_jax.models.encoder_decoder import EncoderDecoder, TransformerStack
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.models.layers import MASKED
from pemt_jax.models.products import matmul
from pemt_jax.models.sites import Aux, Site, SiteContext
from pemt_jax.models.stack import ModelDeltas

SITES = ('decoder/embed', *layer_sites('decoder', cross_attention=False), 'decoder/final_norm')


@flax.struct.dataclass
class Text:
  """The beginning of texts.

  Attributes:
    tokens: [batch, length] ids.
    mask: [batch, length] 1 for real positions.
    rows: [batch] 1 for real examples, 0 for filler rows.
  """

  tokens: jax.Array
  mask: jax.Array
  rows: jax.Array


@flax.struct.dataclass
class TextMemory:
  """Everything constant during a generation; the cache holds the keys and values of the text.

  Attributes:
    mask: [batch, prompt + length] 1 for real positions in front of what is generated.
    rows: [batch] 1 for real examples.
    shared: arrays that deltas prepared, by rule name.
    per_layer: the same with a leading [layer] axis.
    task_ids: [batch] or None.
  """

  mask: jax.Array
  rows: jax.Array
  shared: dict[str, Any]
  per_layer: dict[str, Any]
  task_ids: jax.Array | None


def block_style(config: GPT2Config) -> BlockStyle:
  """How the blocks of this family differ from T5's."""
  return BlockStyle(biases=True, centred_norms=True, scaled_attention=True, hidden_dropout=0.0,
                    stddev=config.stddev, cross_attention=False,
                    end_stddev=config.stddev / math.sqrt(2 * config.decoder_layers))


class Decoder(TransformerStack):
  """Positions, the layers and the final norm."""

  def setup(self):
    spec, config = self.spec, self.spec.config
    self.make_layers(PreNormLayer)
    outside = dataclasses.replace(spec, plan=spec.plan.outside_layers())
    self.embed = layers.OpenSite(spec.site('embed', ('vocab', 'embed')), outside.plan)
    self.final_norm = outside.norm('final_norm')
    self.positions = layers.Embedding(config.positions, config.embed, config.stddev, 'position')

  def sites(self) -> list[str]:
    """Site paths of the stack, without layer indices."""
    return list(SITES)

  @property
  def embed_dropout(self) -> float:
    """Dropout rate of the embeddings."""
    return self.spec.config.embed_dropout

  def check_length(self, size: int) -> None:
    """Refuses more positions than the stack has.

    Raises:
      UserError: too many.
    """
    longest = self.spec.config.positions
    if size > longest:
      raise UserError(f'a text has {size} positions, prompt and answer included, but the backbone'
                      f' only {longest}; lower data.max_source_length, data.max_target_length or'
                      ' generation.max_length.')

  def begin(self, x: jax.Array, positions: jax.Array,
            context: SiteContext) -> tuple[jax.Array, Aux]:
    """Adds the rows of the positions: real ones are counted."""
    del positions
    counted = jnp.maximum(jnp.cumsum(context.mask, axis=1) - 1, 0).astype(jnp.int32)
    return x + self.positions(counted), {}

  def end(self, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    """The final norm."""
    return self.final_norm(x, context)

  def _mask(self, context, length):
    places = jnp.arange(length)
    seen = (places[None, :] <= places[:, None]) * context.mask[:, None, None, :]
    return ((1.0 - seen) * MASKED).astype(jnp.float32)

  def step(self, x: jax.Array, cache: dict[str, jax.Array], memory: TextMemory,
           context: SiteContext) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One cached step; x is [batch, beams, embed] and `context.position` counts from the start."""
    front, length = memory.mask.shape[1], cache['key'].shape[3]
    place = front + context.position
    counted = jnp.sum(memory.mask, axis=1).astype(jnp.int32) + context.position
    x = (x + self.positions(counted)[:, None]).astype(self.spec.dtype)
    behind = jnp.ones((x.shape[0], length - front))
    seen = jnp.concatenate([memory.mask, behind], axis=1) * (jnp.arange(length) <= place)
    mask = ((1.0 - seen) * MASKED).astype(jnp.float32)
    mask = jnp.repeat(mask, x.shape[1], axis=0)[:, None, None, :]
    inputs = StackInputs(context.replace(shared=memory.shared), jnp.zeros(()), mask,
                         position=place)
    own = LayerInputs(jnp.arange(self.depth), memory.per_layer)
    (x, cache), _ = self.run((x, cache), inputs, own)
    x, _ = self.final_norm(x, context)
    return x, cache


class GPT2(EncoderDecoder):
  """GPT-2 (Radford et al. 2019)."""

  def setup(self):
    config = self.config
    spec, self.shared = self.first_parts('decoder', block_style(config), config.stddev)
    self.decoder = Decoder(spec)
    self.deltas = ModelDeltas(self.plan, (spec.shape,))
    head = Site('lm_head', config.embed, config.vocab_size, 'embed', 'vocab', spec.dtype)
    self.lm_head = layers.OpenSite(head, self.plan.outside_layers())

  def depths(self) -> dict[str, int]:
    """Number of layers of each stack."""
    return {'decoder': self.config.decoder_layers}

  def stack_sites(self, stack: str) -> list[str]:
    """Site paths of the stack, without layer indices."""
    return list(SITES)

  def head(self, x: jax.Array, context: SiteContext) -> tuple[jax.Array, Aux]:
    """[..., embed] -> float32 logits [..., vocab] from the embedding, and auxiliaries."""
    table = self.shared.embedding.astype(x.dtype)
    base = lambda x: matmul(x, table.T, jnp.float32)
    return self.lm_head(base, x, context)

  def _run(self, tokens, mask, task_ids, key, remember=False):
    """States [batch, prompt + length, embed], their context and auxiliaries."""
    x, context, aux = self.embed(self.decoder, tokens, mask, task_ids, key)
    x, more = self.decoder(x, context, remember)
    return x, context, aux | more

  def read(self, inputs: jax.Array, inputs_mask: jax.Array, task_ids: jax.Array | None = None,
           key: jax.Array | None = None, last: int | None = None) -> tuple[jax.Array, Aux]:
    """Logits of the token behind each position.

    Args:
      inputs: [batch, length] token ids.
      inputs_mask: [batch, length] 1 for real positions.
      task_ids: [batch] or None.
      key: dropout key; None means deterministic.
      last: number of positions at the end that are asked for; None asks for all.

    Returns:
      [batch, length or last, vocab] float32, and auxiliaries.

    Raises:
      UserError: more positions than the backbone has.
    """
    x, context, aux = self._run(inputs, inputs_mask, task_ids, key)
    start = x.shape[1] - (inputs.shape[1] if last is None else last)
    context = context.replace(mask=context.mask[:, start:])
    logits, more = self.head(x[:, start:], context)
    return logits, aux | more

  def encode(self, inputs: jax.Array, inputs_mask: jax.Array,
             task_ids: jax.Array | None = None, key: jax.Array | None = None) -> Text:
    """The beginning of texts; it is run together with what follows it, see `EncoderDecoder`."""
    del task_ids, key
    rows = jnp.max(inputs_mask, axis=1).astype(jnp.float32)
    return Text(inputs, inputs_mask.astype(jnp.float32), rows)

  def decode(self, decoder_inputs: jax.Array, decoder_mask: jax.Array, encoded: Text,
             task_ids: jax.Array | None = None,
             key: jax.Array | None = None) -> tuple[jax.Array, Aux]:
    """Logits [batch, target_length, vocab] float32 of shifted targets, and auxiliaries."""
    tokens = jnp.concatenate([encoded.tokens, decoder_inputs], axis=1)
    mask = jnp.concatenate([encoded.mask, decoder_mask.astype(jnp.float32)], axis=1)
    return self.read(tokens, mask, task_ids, key, last=decoder_inputs.shape[1])

  def start_decoding(self, encoded: Text, rows: int, max_length: int,
                     task_ids: jax.Array | None = None) -> tuple[TextMemory, dict[str, jax.Array]]:
    """Prepares a generation: reads the beginning of the texts into the cache.

    Args:
      encoded: [batch] texts.
      rows: batch * beams hypotheses; the beams of an example stand side by side.
      max_length: most tokens of an output, the start token included.
      task_ids: [batch] or None.

    Raises:
      UserError: more positions than the backbone has.
    """
    _, context, aux = self._run(encoded.tokens, encoded.mask, task_ids, None, remember=True)
    front = context.mask.shape[1]
    self.decoder.check_length(front + max_length - 1)
    shared, per_layer = self.decoder.prepare(context)
    beams = rows // encoded.mask.shape[0]
    filled = {name: jnp.repeat(aux[source], beams, axis=1)
              for name, source in zip(('key', 'value'), MEMORY, strict=True)}
    cache = {name: jax.lax.dynamic_update_slice_in_dim(
        empty, filled[name].astype(empty.dtype), 0, axis=3)
        for name, empty in self.decoder.empty_cache(rows, front + max_length).items()}
    return TextMemory(context.mask, encoded.rows, shared, per_layer, task_ids), cache

  def decode_step(self, tokens: jax.Array, position: jax.Array, cache: dict[str, jax.Array],
                  memory: TextMemory) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One cached step for [rows] hypotheses; returns logits [rows, vocab] float32 and the cache."""
    tokens = tokens.reshape(memory.mask.shape[0], -1)
    context = SiteContext(jnp.ones(tokens.shape, jnp.float32), memory.rows,
                          task_ids=memory.task_ids, position=position, model=self.deltas())
    x, _ = self.decoder.embed(self.shared, tokens, context)
    x, cache = self.decoder.step(x, cache, memory, context)
    logits, _ = self.head(x, context)
    return logits.reshape(tokens.size, -1), cache
