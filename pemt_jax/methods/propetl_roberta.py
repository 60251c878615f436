"""ProPETL on RoBERTa and BERT: where its prototypes stand (Zeng et al. 2023), and the head."""

from __future__ import annotations

from pemt_jax.deltas.adapter import Adapter, Bottleneck
from pemt_jax.deltas.generated_prefix import RowPrefix
from pemt_jax.deltas.lora import LoRA
from pemt_jax.deltas.post_norm import PostNormAdapter
from pemt_jax.deltas.prefix import Prefix
from pemt_jax.methods import propetl
from pemt_jax.methods.base import FROZEN, Method
from pemt_jax.methods.classification import HEAD
from pemt_jax.methods.propetl import (
    NAME, PROJECTIONS, PROTOTYPE, SCORES, ProPETLOptions, masked_rules)
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5_config import T5Config

# Norms of the backbone have biases here.
NORMS = (r'encoder/(.*/)?\w+_norm/(scale|bias)', 'norm')
# Paths that the original does not decay.
NO_DECAY = ('.*/bias', r'.*/bias_(in|out)', r'.*_norm/scale')


def _adapter(options: ProPETLOptions, config: RobertaConfig) -> tuple[Rule, ...]:
  bottleneck = Bottleneck(max(config.embed // options.reduction, 1), options.activation,
                          stddev=options.stddev)
  if options.placement == 'mlp':
    return masked_rules(options, PostNormAdapter(bottleneck), NAME, ['encoder/mlp_norm'])
  return masked_rules(options, Adapter(bottleneck, 'sublayer'), NAME,
                      ['encoder/self_attention_residual', 'encoder/mlp_residual'])


def _lora(options: ProPETLOptions, config: RobertaConfig) -> tuple[Rule, ...]:
  del config
  delta, rules = LoRA(options.rank, options.alpha / options.rank, 'zero'), ()
  for projection in dict.fromkeys(options.projections):
    rules += masked_rules(options, delta, f'{NAME}_{projection}',
                          [f'encoder/{PROJECTIONS[projection]}'])
  return rules


def _prefix(options: ProPETLOptions, config: RobertaConfig) -> tuple[Rule, ...]:
  place = 'encoder/self_attention'
  if options.place == 'layer' and options.hidden and not options.masked_by:
    # One network makes the rows of all layers.
    delta = Prefix(options.length, options.hidden, 'layered', biases=True, stddev=1.0)
    return (Rule(NAME, place, delta),)
  delta = RowPrefix(options.length, config.heads, options.hidden)
  return masked_rules(options, delta, NAME, [place])


_RULES = {'adapter': _adapter, 'lora': _lora, 'prefix': _prefix}


def propetl_roberta(options: ProPETLOptions, config: RobertaConfig) -> Method:
  """Masked prototypes on an encoder with a head.

  An adapter with placement 'mlp' reads the normed sum behind the feed-forward and uses that norm
  again (`PostNormAdapter`); with 'houlsby' it reads the outputs of self-attention and feed-forward,
  both by one prototype. A prefix that layers do not share and without masks is made for all layers
  by one network. Groups are 'scores', 'prototype', 'head' and 'norm'.

  Args:
    options: of the method; `cross_attention` has no place here.
    config: of the backbone.
  """
  tuned = [SCORES, PROTOTYPE] if options.masked_by else [PROTOTYPE]
  tuned.append(HEAD)
  if options.tune_norms:
    tuned.append(NORMS)
  return Method(NAME, Plan(_RULES[options.form](options, config)), (*tuned, FROZEN))


def propetl_of(options: ProPETLOptions, config: T5Config | RobertaConfig,
               prompt_length: int) -> Method:
  """Masked prototypes on the backbone of a config."""
  if isinstance(config, RobertaConfig):
    return propetl_roberta(options, config)
  return propetl.propetl(options, config, prompt_length)
