"""The layer of RoBERTa and BERT: norms stand behind the residual sums (Devlin et al. 2019)."""

from __future__ import annotations

import jax
from flax import linen as nn

from pemt_jax.models.blocks import (
    MLP, Attention, BlockStyle, LayerInputs, StackInputs, StackSpec)
from pemt_jax.models.layers import Norm
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.sites import Aux, SiteContext


def block_style(config: RobertaConfig) -> BlockStyle:
  """How the blocks of this family differ from T5's."""
  return BlockStyle(biases=True, centred_norms=True, scaled_attention=True, hidden_dropout=False,
                    stddev=config.stddev)


class PostNormLayer(nn.Module):
  """x1 = norm(attention(x) + x); x2 = norm(mlp(x1) + x1)."""

  spec: StackSpec

  def setup(self):
    self.self_attention = Attention(self.spec, 'self_attention')
    self.self_attention_norm = self.spec.norm('self_attention_norm')
    self.mlp = MLP(self.spec)
    self.mlp_norm = self.spec.norm('mlp_norm')

  def __call__(self, x: jax.Array, inputs: StackInputs,
               layer: LayerInputs) -> tuple[jax.Array, Aux]:
    """[batch, length, embed] -> the same shape, and auxiliaries."""
    inputs = inputs.at_layer(layer)
    context = inputs.context
    x = nn.with_logical_constraint(x, ('act_batch', 'act_length', 'act_embed'))
    reading = context.replace(sublayer_input=x, residual=x)
    y, auxiliaries = self.self_attention(x, inputs.replace(context=reading))
    y = self.spec.drop(y, context, 'self_attention')
    x, aux = joined(self.self_attention_norm, x, y, context)
    auxiliaries |= aux
    y, aux = self.mlp(x, context.replace(sublayer_input=x, residual=x))
    y = self.spec.drop(y, context, 'mlp')
    x, more = joined(self.mlp_norm, x, y, context)
    return x, auxiliaries | aux | more


def joined(norm: Norm, x: jax.Array, y: jax.Array,
           context: SiteContext) -> tuple[jax.Array, Aux]:
  """norm(y + x), where deltas also see the parts: y the sub-layer's output, x the residual."""
  return norm(y + x, context.replace(residual=x, sublayer_output=y))
