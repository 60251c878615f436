"""Single-task baselines: what PEMT is compared with."""

from __future__ import annotations

import dataclasses

from pemt_jax.deltas.adapter import ACTIVATIONS, Adapter, Bottleneck
from pemt_jax.deltas.lora import LoRA
from pemt_jax.deltas.prompt import Prompt
from pemt_jax.errors import at_least, one_of
from pemt_jax.methods.base import FROZEN, Method, embed_site
from pemt_jax.methods.pemt import NORMS, PROMPT
from pemt_jax.models.bart import LOGITS_BIAS
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.blocks import Config
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5_config import T5Config


@dataclasses.dataclass(frozen=True)
class AdapterOptions:
  """One adapter after each feed-forward, without sources.

  Attributes:
    reduction: the adapter has embed // reduction hidden units.
    activation: of the adapter.
    prompt: also train a prompt.
    tune_norms: also train the backbone's norms.
  """

  reduction: int = 16
  activation: str = 'gelu_new'
  prompt: bool = False
  tune_norms: bool = True

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    at_least(self, 1, 'reduction')
    one_of('method.activation', self.activation, ACTIVATIONS)


PROJECTIONS = ('q', 'k', 'v', 'o')


@dataclasses.dataclass(frozen=True)
class LoRAOptions:
  """LoRA on the projections of self- and cross-attention.

  Attributes:
    rank: LoRA rank.
    alpha: LoRA scaling is alpha / rank.
    up_init: 'uniform' (as in PEMT's comparison) or 'zero', see `LoRA`.
    projections: names out of `PROJECTIONS`.
    sites: patterns of sites in place of the projections, such as 'decoder/mlp/wo'.
  """

  rank: int = 8
  alpha: float = 8.0
  up_init: str = 'uniform'
  projections: tuple[str, ...] = PROJECTIONS
  sites: tuple[str, ...] = ()

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    at_least(self, 1, 'rank')
    one_of('method.up_init', self.up_init, ('uniform', 'zero'))
    for name in self.projections:
      one_of('method.projections', name, PROJECTIONS)


@dataclasses.dataclass(frozen=True)
class PromptOptions:
  """A prompt and nothing else."""


@dataclasses.dataclass(frozen=True)
class FullOptions:
  """Every parameter of the backbone."""


def adapter(options: AdapterOptions, config: T5Config, prompt_length: int) -> Method:
  """A single adapter per layer, trained on the target alone."""
  rules, tuned = [], []
  if options.prompt:
    rules.append(Rule('prompt', embed_site(config), Prompt(prompt_length)))
    tuned.append(PROMPT)
  bottleneck = Bottleneck(max(config.embed // options.reduction, 1), options.activation)
  rules.append(Rule('adapter', '*/mlp/wo', Adapter(bottleneck)))
  tuned.append(('.*/wo/adapter/.*', 'adapter'))
  if options.tune_norms:
    tuned.append(NORMS)
  return Method('adapter', Plan(tuple(rules)), (*tuned, FROZEN))


def lora(options: LoRAOptions, config: T5Config, prompt_length: int) -> Method:
  """LoRA on attention (Hu et al. 2021)."""
  del config, prompt_length
  delta = LoRA(options.rank, options.alpha / options.rank, options.up_init)
  places = options.sites or [f'*_attention/{name}' for name in options.projections]
  rules = tuple(Rule('lora', place, delta) for place in places)
  return Method('lora', Plan(rules), (('.*/lora/.*', 'lora'), FROZEN))


def prompt(options: PromptOptions, config: T5Config, prompt_length: int) -> Method:
  """Prompt tuning (Lester et al. 2021)."""
  del options
  return Method('prompt', Plan((Rule('prompt', embed_site(config), Prompt(prompt_length)),)),
                (PROMPT, FROZEN))


def full(options: FullOptions, config: Config, prompt_length: int) -> Method:
  """Full tuning; also the method of pretraining. The bias of BART's logits is no parameter."""
  del options, prompt_length
  kept = ((LOGITS_BIAS, 'frozen'),) if isinstance(config, BartConfig) else ()
  return Method('full', Plan(), (*kept, ('.*', 'backbone')))
