"""AdaMix: adapters of randomly chosen matrices (Wang et al. 2022)."""

from __future__ import annotations

import dataclasses

from pemt_jax.deltas.adamix import INFERENCE, AdaMix
from pemt_jax.errors import at_least, one_of
from pemt_jax.methods.base import FROZEN, Method
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5_config import T5Config


@dataclasses.dataclass(frozen=True)
class AdaMixOptions:
  """AdaMix after each feed-forward.

  Attributes:
    experts: number of experts.
    size: units of the bottleneck.
    share_down: one down projection for all experts.
    share_up: one up projection for all experts.
    inference: 'average', 'sentence' or 'token', see `deltas.adamix.AdaMix`.
    tune_scores: train the scores by which the experts are averaged; they get no gradient from
      random routing.
    consistency: weight of the symmetric divergence between two passes with draws of their own
      (1 in AdaMix; the published comparison leaves it out).
  """

  experts: int = 6
  size: int = 64
  share_down: bool = False
  share_up: bool = True
  inference: str = 'average'
  tune_scores: bool = False
  consistency: float = 0.0

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    at_least(self, 1, 'experts', 'size')
    at_least(self, 0, 'consistency')
    one_of('method.inference', self.inference, INFERENCE)


def adamix(options: AdaMixOptions, config: T5Config, prompt_length: int,
           recorded: bool = False) -> Method:
  """Returns the method; `recorded` reads the draws from `constants`."""
  del config, prompt_length
  delta = AdaMix(options.experts, options.size, options.share_down, options.share_up,
                 options.inference, recorded)
  scores = [] if options.tune_scores else [('.*/adamix/(down|up)/score', 'frozen')]
  tuned = (*scores, ('.*/adamix/.*', 'adapter'), FROZEN)
  return Method('adamix', Plan((Rule('adamix', '*/mlp/wo', delta),)), tuned,
                consistency=options.consistency)
