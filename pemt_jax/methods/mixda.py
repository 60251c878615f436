"""MixDA: knowledge adapters under a gate, with a task adapter behind (Diao et al. 2023)."""

from __future__ import annotations

import dataclasses

from pemt_jax.deltas.adapter import ACTIVATIONS, Bottleneck
from pemt_jax.deltas.mixda import GATE_READS, MixDA
from pemt_jax.errors import at_least, number, one_of
from pemt_jax.methods.adapters import Layers, layers_of
from pemt_jax.methods.base import FROZEN, Method
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5_config import T5Config


@dataclasses.dataclass(frozen=True)
class MixDAOptions:
  """MixDA at some feed-forwards.

  Attributes:
    count: number of knowledge adapters.
    down_scale: the knowledge adapters have mlp // down_scale units, the task adapter
      embed // down_scale.
    hidden: width of the gate's layers.
    activation: of the task adapter.
    encoder_layers: layers of the encoder that have it; None means all. Layers that the backbone
      does not have are an error.
    decoder_layers: the same in the decoder.
    gate_reads: 'real' or 'last' (published), see `deltas.mixda.MixDA`.
    gate_dropout: rate inside of the gate.
    tune_knowledge: train the knowledge adapters too; the published code leaves them at their random
      start.
  """

  count: int = 1
  down_scale: int = 16
  hidden: int = 768
  activation: str = 'gelu_new'
  encoder_layers: Layers = (7, 11)
  decoder_layers: Layers = (7, 11)
  gate_reads: str = 'real'
  gate_dropout: float = 0.2
  tune_knowledge: bool = False

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    at_least(self, 1, 'count', 'down_scale', 'hidden')
    number('method.gate_dropout', self.gate_dropout, 0 <= self.gate_dropout < 1,
           'of at least 0 and below 1')
    one_of('method.activation', self.activation, ACTIVATIONS)
    one_of('method.gate_reads', self.gate_reads, GATE_READS)


def mixda(options: MixDAOptions, config: T5Config, prompt_length: int) -> Method:
  """Returns the method."""
  del prompt_length
  task = Bottleneck(max(config.embed // options.down_scale, 1), options.activation)
  delta = MixDA(options.count, max(config.mlp // options.down_scale, 1), task, options.hidden,
                options.gate_reads, options.gate_dropout)
  layers = layers_of({'encoder': options.encoder_layers, 'decoder': options.decoder_layers}, config)
  frozen = [] if options.tune_knowledge else [('.*/mixda/knowledge_.*', 'frozen')]
  tuned = (*frozen, ('.*/mixda/gate_.*', 'gate'), ('.*/mixda/.*', 'adapter'), FROZEN)
  return Method('mixda', Plan((Rule('mixda', '*/mlp/wo', delta, layers),)), tuned)
