"""Single-task baselines: what PEMT is compared with."""

from __future__ import annotations

import dataclasses

from pemt_jax.deltas.adapter import ACTIVATIONS, Adapter, Bottleneck
from pemt_jax.deltas.prompt import Prompt
from pemt_jax.errors import number, one_of
from pemt_jax.methods.base import Method
from pemt_jax.methods.pemt import FROZEN, NORMS, PROMPT
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
    number('method.reduction', self.reduction, self.reduction >= 1, 'of at least 1')
    one_of('method.activation', self.activation, ACTIVATIONS)


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
    rules.append(Rule('prompt', 'encoder/embed', Prompt(prompt_length)))
    tuned.append(PROMPT)
  bottleneck = Bottleneck(max(config.embed // options.reduction, 1), options.activation)
  rules.append(Rule('adapter', '*/mlp/wo', Adapter(bottleneck)))
  tuned.append(('.*/wo/adapter/.*', 'adapter'))
  if options.tune_norms:
    tuned.append(NORMS)
  return Method('adapter', Plan(tuple(rules)), (*tuned, FROZEN))


def prompt(options: PromptOptions, config: T5Config, prompt_length: int) -> Method:
  """Prompt tuning (Lester et al. 2021)."""
  del options, config
  return Method('prompt', Plan((Rule('prompt', 'encoder/embed', Prompt(prompt_length)),)),
                (PROMPT, FROZEN))


def full(options: FullOptions, config: T5Config, prompt_length: int) -> Method:
  """Full tuning; also the method of pretraining."""
  del options, config, prompt_length
  return Method('full', Plan(), (('.*', 'backbone'),))
