"""(IA)^3: factors of keys, values and feed-forward activations (Liu et al. 2022)."""

from __future__ import annotations

import dataclasses

from pemt_jax.deltas.ia3 import IA3
from pemt_jax.errors import number, one_of
from pemt_jax.methods.base import FROZEN, Method
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5_config import T5Config

# What may be scaled: site pattern and side.
SCALED = {'keys': ('*_attention/k', 'output'), 'values': ('*_attention/v', 'output'),
          'mlp': ('*/mlp/wo', 'input')}


@dataclasses.dataclass(frozen=True)
class IA3Options:
  """Factors in every layer of both stacks.

  Attributes:
    scaled: names out of `SCALED`.
    outputs: patterns of sites whose output is scaled.
    inputs: patterns of sites whose input is scaled; if any are named, `scaled` is not read.
  """

  scaled: tuple[str, ...] = tuple(SCALED)
  outputs: tuple[str, ...] = ()
  inputs: tuple[str, ...] = ()

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word, or none.
    """
    number('the number of method.scaled', len(self.scaled), bool(self.scaled), 'of at least 1')
    for name in self.scaled:
      one_of('method.scaled', name, SCALED)


def ia3(options: IA3Options, config: T5Config, prompt_length: int) -> Method:
  """(IA)^3 (Liu et al. 2022)."""
  del config, prompt_length
  places = [(site, 'output') for site in options.outputs]
  places += [(site, 'input') for site in options.inputs]
  places = places or [SCALED[name] for name in dict.fromkeys(options.scaled)]
  rules = tuple(Rule('ia3', site, IA3(side)) for site, side in places)
  return Method('ia3', Plan(rules), (('.*/ia3/.*', 'ia3'), FROZEN))
