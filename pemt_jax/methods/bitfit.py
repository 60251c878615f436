"""BitFit: only biases are trained (Ben Zaken et al. 2022)."""

from __future__ import annotations

import dataclasses

from pemt_jax.deltas.bias import Bias
from pemt_jax.errors import one_of
from pemt_jax.methods.adapters import head_weight
from pemt_jax.methods.base import FROZEN, Method
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5_config import T5Config

HEADS = ('bias', 'weight_and_bias', 'none')
# Every projection and every norm inside of the layers.
SITES = ('*_attention/?', '*/mlp/*', '*_attention_norm', '*/mlp_norm')


@dataclasses.dataclass(frozen=True)
class BitFitOptions:
  """Biases at projections, norms and head.

  Attributes:
    head: what of the head is trained: 'bias'; 'weight_and_bias', which trains a tied embedding too
      (what the published code does unless told otherwise); 'none'.
  """

  head: str = 'bias'

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word.
    """
    one_of('method.head', self.head, HEADS)


def bitfit(options: BitFitOptions, config: T5Config, prompt_length: int) -> Method:
  """Biases at every projection and norm of the layers and at the head.

  RoBERTa, BERT, BART and GPT-2 have biases there, which are trained in place of new ones; a head of
  classes or values is trained whole.
  """
  del prompt_length
  if isinstance(config, (RobertaConfig, BartConfig, GPT2Config)):
    return Method('bitfit', Plan(), (('(encoder|decoder)/layers/.*/bias', 'bias'), FROZEN))
  rules = [Rule('bias', site, Bias()) for site in (*SITES, 'lm_head')]
  tuned = [] if options.head != 'none' else [('lm_head/bias/bias', 'frozen')]
  tuned.append(('.*/bias/bias', 'bias'))
  if options.head == 'weight_and_bias':
    tuned.append(head_weight(config))
  return Method('bitfit', Plan(tuple(rules)), (*tuned, FROZEN))
