"""LoRA as Lv et al. (2023) start it, and their experimental low-rank forms on projections.

All stand at the query and value projections of every attention, unless options say otherwise.
"""

from __future__ import annotations

import dataclasses

from pemt_jax.deltas.adapter import ACTIVATIONS
from pemt_jax.deltas.base import Delta
from pemt_jax.deltas.intrinsic import IntrinsicAdapter, IntrinsicLoRA
from pemt_jax.deltas.lora import LoRA
from pemt_jax.deltas.low_rank_forms import LowRankBias, TanhLoRA
from pemt_jax.errors import at_least, number, one_of
from pemt_jax.methods.base import FROZEN, Method
from pemt_jax.methods.baselines import PROJECTIONS
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5_config import T5Config

TUNED_PARTS = ('all', 'vector')


@dataclasses.dataclass(frozen=True)
class LowRankOptions:
  """What the forms share.

  Attributes:
    rank: hidden units.
    alpha: the scaling is alpha / rank.
    projections: names out of `PROJECTIONS`.
  """

  rank: int = 10
  alpha: float = 16.0
  projections: tuple[str, ...] = ('q', 'v')

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    at_least(self, 1, 'rank')
    for name in self.projections:
      one_of('method.projections', name, PROJECTIONS)

  @property
  def scaling(self) -> float:
    """alpha / rank."""
    return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class EnsemblingLoRAOptions(LowRankOptions):
  """LoRA whose B starts from 0.

  Attributes:
    down_init: 'rank' draws A from U(+-sqrt(6 / ((1 + lora_uniform) rank))) (as published), 'in'
      from U(+-1/sqrt(in)).
    lora_uniform: above -1; 5 gives U(+-1/sqrt(rank)).
    row_biases: add a vector to every row of A and of B (experimental).
  """

  down_init: str = 'rank'
  lora_uniform: float = 5.0
  row_biases: bool = False

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    super().__post_init__()
    one_of('method.down_init', self.down_init, ('rank', 'in'))
    number('method.lora_uniform', self.lora_uniform, self.lora_uniform > -1, 'above -1')


@dataclasses.dataclass(frozen=True)
class LowRankBiasOptions(LowRankOptions):
  """A bias of low rank.

  Attributes:
    tuned: 'all', or 'vector' for a second stage that leaves the matrices as they are.
  """

  tuned: str = 'all'

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    super().__post_init__()
    one_of('method.tuned', self.tuned, TUNED_PARTS)


@dataclasses.dataclass(frozen=True)
class IntrinsicLoRAOptions(LowRankOptions):
  """LoRA generated from one vector of the model.

  Attributes:
    dimension: of the vector.
    biases: add vectors to the generated matrices before they are reshaped.
  """

  dimension: int = 8
  biases: bool = False

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    super().__post_init__()
    at_least(self, 1, 'dimension')


@dataclasses.dataclass(frozen=True)
class IntrinsicAdapterOptions:
  """Adapters at the end of every sub-layer, generated from one vector of the model.

  Attributes:
    size: hidden units of an adapter.
    dimension: of the vector.
    biases: add vectors to the generated matrices before they are reshaped.
    activation: of the adapters.
  """

  size: int = 12
  dimension: int = 8
  biases: bool = False
  activation: str = 'swish'

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    at_least(self, 1, 'size', 'dimension')
    one_of('method.activation', self.activation, ACTIVATIONS)


def _on_projections(name: str, delta: Delta, options: LowRankOptions,
                    weights: str = '.*') -> Method:
  rules = tuple(Rule(name, f'*_attention/{projection}', delta)
                for projection in dict.fromkeys(options.projections))
  return Method(name, Plan(rules), ((f'.*/{name}/{weights}', 'lora'), FROZEN))


def lora_ensembling(options: EnsemblingLoRAOptions, config: T5Config,
                    prompt_length: int) -> Method:
  """LoRA of Lv et al. (2023); it bears the name of LoRA."""
  del config, prompt_length
  bound = None
  if options.down_init == 'rank':
    bound = (6.0 / ((1.0 + options.lora_uniform) * options.rank))**0.5
  delta = LoRA(options.rank, options.scaling, 'zero', bound, options.row_biases)
  return _on_projections('lora', delta, options)


def lora_mlp(options: LowRankOptions, config: T5Config, prompt_length: int) -> Method:
  """LoRA with a tanh and a square matrix behind it."""
  del config, prompt_length
  return _on_projections('lora_mlp', TanhLoRA(options.rank, options.scaling), options)


def lora_br(options: LowRankBiasOptions, config: T5Config, prompt_length: int) -> Method:
  """A bias of low rank."""
  del config, prompt_length
  return _on_projections('lora_br', LowRankBias(options.rank, options.scaling), options,
                         '.*' if options.tuned == 'all' else options.tuned)


def bias_mlp(options: LowRankBiasOptions, config: T5Config, prompt_length: int) -> Method:
  """A bias of low rank with a tanh and a square matrix behind it."""
  del config, prompt_length
  return _on_projections('bias_mlp', LowRankBias(options.rank, options.scaling, tanh=True), options,
                         '.*' if options.tuned == 'all' else options.tuned)


def intrinsic_lora(options: IntrinsicLoRAOptions, config: T5Config, prompt_length: int) -> Method:
  """LoRA generated from a shared vector."""
  del config, prompt_length
  delta = IntrinsicLoRA(options.dimension, options.rank, options.biases, scaling=options.scaling)
  return _on_projections('intrinsic_lora', delta, options)


def intrinsic_adapter(options: IntrinsicAdapterOptions, config: T5Config,
                      prompt_length: int) -> Method:
  """Adapters generated from a shared vector, behind attention and feed-forward."""
  del config, prompt_length
  delta = IntrinsicAdapter(options.dimension, options.size, options.biases,
                           activation=options.activation)
  rules = tuple(Rule('intrinsic_adapter', site, delta) for site in ('*_attention/o', '*/mlp/wo'))
  return Method('intrinsic_adapter', Plan(rules), (('.*/intrinsic_adapter/.*', 'adapter'), FROZEN))
