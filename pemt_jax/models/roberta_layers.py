"""The layer of RoBERTa and BERT: norms stand behind the residual sums (Devlin et al. 2019)."""

from __future__ import annotations

import jax
from flax import linen as nn

from pemt_jax.models.blocks import (
    MLP, Attention, BlockStyle, LayerInputs, StackInputs, StackSpec)
from pemt_jax.models.layers import OpenSite
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
    end = lambda name: OpenSite(self.spec.site(name, ('embed', 'embed')), self.spec.plan)
    self.self_attention_residual = end('self_attention_residual')
    self.mlp_residual = end('mlp_residual')

  def __call__(self, x: jax.Array, inputs: StackInputs,
               layer: LayerInputs) -> tuple[jax.Array, Aux]:
    """[batch, length, embed] -> the same shape, and auxiliaries."""
    inputs = inputs.at_layer(layer)
    context = inputs.context
    x = nn.with_logical_constraint(x, ('act_batch', 'act_length', 'act_embed'))
    reading = context.replace(sublayer_input=x, residual=x)
    y, auxiliaries = self.self_attention(x, inputs.replace(context=reading))
    x, aux = self._end('self_attention', x, y, context)
    auxiliaries |= aux
    y, aux = self.mlp(x, context.replace(sublayer_input=x, residual=x))
    x, more = self._end('mlp', x, y, context)
    return x, auxiliaries | aux | more

  def _end(self, name: str, x: jax.Array, y: jax.Array,
           context: SiteContext) -> tuple[jax.Array, Aux]:
    """The end of a sub-layer: dropout of its output y, sum with the residual x, norm; two sites."""
    y = self.spec.drop(y, context, name)
    context = context.replace(residual=x, sublayer_output=y)
    total, aux = getattr(self, f'{name}_residual')(lambda value: x + value, y, context)
    x, more = getattr(self, f'{name}_norm')(total, context)
    return x, aux | more
