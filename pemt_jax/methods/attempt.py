"""ATTEMPT: prompts mixed by an attention that reads the input (Asai et al. 2022)."""

from __future__ import annotations

import dataclasses

from pemt_jax.deltas.attempt import ATTENTIONS, Attempt
from pemt_jax.errors import UserError, at_least, number, one_of
from pemt_jax.methods.base import FROZEN, Method
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5_config import T5Config

_UNUSABLE = ('token', 'concat')


@dataclasses.dataclass(frozen=True)
class AttemptOptions:
  """A target prompt among source prompts.

  Attributes:
    attention: 'sub', 'linear', 'dot' or 'constant', see `deltas.attempt.Attempt`.
    sources: number of source prompts; a stage takes it from `config.sources`.
    targets: number of target prompts; a stage with a mixture of tasks has one for each.
    ignore_target: neither attend to the target prompt nor add it.
    hidden: units of 'sub'.
    temperature: divides the scores.
    learned_temperature: train the temperature.
    tune_attention: train the attention's matrices.
    tune_attention_norm: train the attention's layer norm (the published code leaves it at its
      start).
    mask_padding: leave padding out of what the attention reads; the published code takes it in.
  """

  attention: str = 'sub'
  sources: int = 6
  targets: int = 1
  ignore_target: bool = False
  hidden: int = 100
  temperature: float = 2000.0
  learned_temperature: bool = False
  tune_attention: bool = True
  tune_attention_norm: bool = False
  mask_padding: bool = True

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word, a number out of its range, or nothing to train.
    """
    if self.attention in _UNUSABLE:
      raise UserError(f"method.attention is '{self.attention}', which the published code names but"
                      f' cannot run; choose one of {", ".join(ATTENTIONS)}.')
    one_of('method.attention', self.attention, ATTENTIONS)
    at_least(self, 1, 'sources', 'targets', 'hidden')
    number('method.temperature', self.temperature, self.temperature > 0, 'above 0')
    if self.ignore_target and not (self.tune_attention and self.attention in ('sub', 'linear')):
      raise UserError('method.ignore_target leaves nothing to train; set method.tune_attention and'
                      " method.attention='sub', or use the target prompt.")


def attempt(options: AttemptOptions, config: T5Config, prompt_length: int) -> Method:
  """Returns the method; all prompts have `prompt_length` rows."""
  del config
  delta = Attempt(prompt_length, options.sources, options.attention, options.targets,
                  options.ignore_target, options.hidden, options.temperature,
                  options.learned_temperature, options.mask_padding)
  place, tuned = 'encoder/embed/attempt', []
  if not options.ignore_target:
    tuned.append((f'{place}/table', 'prompt'))
  if options.attention == 'sub' and options.tune_attention_norm:
    tuned.append((f'{place}/attention_norm/.*', 'attention'))
  if options.tune_attention and options.attention in ('sub', 'linear'):
    tuned.append((f'{place}/attention.*/kernel', 'attention'))
  if options.learned_temperature and options.attention != 'constant':
    tuned.append((f'{place}/temperature', 'attention'))
  return Method('attempt', Plan((Rule('attempt', 'encoder/embed', delta),)), (*tuned, FROZEN))
