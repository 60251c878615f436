"""Methods that put trained keys and values in front of attention."""

from __future__ import annotations

import dataclasses

from pemt_jax.deltas.prefix import LAYOUTS, IntrinsicPrefix, KeyValuePrefix, Prefix
from pemt_jax.errors import at_least, number, one_of
from pemt_jax.methods.base import FROZEN, Method
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5_config import T5Config

# Where a prefix may stand.
PLACES = {'encoder': 'encoder/self_attention', 'decoder': 'decoder/self_attention',
          'cross': 'decoder/cross_attention'}


@dataclasses.dataclass(frozen=True)
class PrefixOptions:
  """A prefix in self-attention of both stacks, from a table and two projections.

  Attributes:
    length: prefix rows.
    rank: hidden units of the network behind the prefix.
    layout: 'interleaved' (as published by Lv et al. 2023) or 'layered', see `per_layer_rows`.
    stddev: of the first table.
  """

  length: int = 120
  rank: int = 24
  layout: str = 'interleaved'
  stddev: float = 0.02

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    at_least(self, 1, 'length', 'rank')
    one_of('method.layout', self.layout, LAYOUTS)
    at_least(self, 0, 'stddev')


@dataclasses.dataclass(frozen=True)
class KeyValuePrefixOptions:
  """A prefix of own keys and values in the chosen attentions.

  Attributes:
    length: prefix rows.
    places: names out of `PLACES`.
    hidden: hidden units of a network that makes keys and values in training (Li & Liang 2021, one
      network for each place); 0 trains keys and values themselves.
    stddev: of the first keys and values, or of the network's table.
  """

  length: int = 20
  places: tuple[str, ...] = tuple(PLACES)
  hidden: int = 0
  stddev: float = 0.02

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    at_least(self, 1, 'length')
    at_least(self, 0, 'hidden', 'stddev')
    number('the number of method.places', len(self.places), bool(self.places), 'of at least 1')
    for name in self.places:
      one_of('method.places', name, PLACES)


@dataclasses.dataclass(frozen=True)
class IntrinsicPrefixOptions:
  """A prefix made from one small vector for the whole model (experimental).

  Attributes:
    length: prefix rows.
    dimension: of the vector.
    stddev: of the first vector and matrices.
  """

  length: int = 120
  dimension: int = 8
  stddev: float = 0.02

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: a number out of its range.
    """
    at_least(self, 1, 'length', 'dimension')
    at_least(self, 0, 'stddev')


def prefix(options: PrefixOptions, config: T5Config, prompt_length: int) -> Method:
  """Prefix tuning as Lv et al. (2023) run it."""
  del config, prompt_length
  delta = Prefix(options.length, options.rank, options.layout, stddev=options.stddev)
  return Method('prefix', Plan((Rule('prefix', '*/self_attention', delta),)),
                (('.*/prefix/.*', 'prefix'), FROZEN))


def prefix_kv(options: KeyValuePrefixOptions, config: T5Config, prompt_length: int) -> Method:
  """Prefix tuning (Li & Liang 2021)."""
  del prompt_length
  rules = []
  for place in dict.fromkeys(options.places):
    name, delta = 'prefix_kv', KeyValuePrefix(options.length, config.heads, options.stddev)
    if options.hidden:
      # What is made once for a stack has one name in it: the decoder may hold two prefixes.
      name += '_cross' if place == 'cross' else ''
      delta = Prefix(options.length, options.hidden, 'layered', biases=True, stddev=options.stddev)
    rules.append(Rule(name, PLACES[place], delta))
  return Method('prefix_kv', Plan(tuple(rules)),
                (('.*/prefix_kv(_cross)?/.*', 'prefix'), FROZEN))


def intrinsic_prefix(options: IntrinsicPrefixOptions, config: T5Config,
                     prompt_length: int) -> Method:
  """A prefix generated from a shared vector, in self-attention of both stacks."""
  del config, prompt_length
  delta = IntrinsicPrefix(options.length, options.dimension, options.stddev)
  return Method('intrinsic_prefix', Plan((Rule('intrinsic_prefix', '*/self_attention', delta),)),
                (('(.*/)?intrinsic_prefix/.*', 'prefix'), FROZEN))
