"""ProPETL: one prototype for all layers, and masks of layers, tasks and languages (Zeng et al.)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pemt_jax.deltas.adapter import ACTIVATIONS, Adapter, Bottleneck
from pemt_jax.deltas.base import Delta
from pemt_jax.deltas.generated_prefix import RowPrefix
from pemt_jax.deltas.lora import LoRA
from pemt_jax.errors import UserError, at_least, number, one_of
from pemt_jax.experts.masked import FANS, OWNERS, PLACES, Masked
from pemt_jax.experts.masks import COMBINATIONS
from pemt_jax.methods.base import FROZEN, Method
from pemt_jax.methods.pemt import NORMS
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5_config import T5Config

NAME = 'propetl'
FORMS = ('adapter', 'lora', 'prefix')
PLACEMENTS = ('mlp', 'houlsby')
# Projection -> its site in a stack.
PROJECTIONS = {name: f'self_attention/{name}' for name in ('q', 'k', 'v', 'o')} | {'wo': 'mlp/wo'}
SCORES = (f'(.*/)?{NAME}[a-z_]*/(task|language|layer_[a-z0-9_]+)/.*', 'scores')
PROTOTYPE = (f'(.*/)?{NAME}[a-z_]*/.*', 'prototype')


@dataclasses.dataclass(frozen=True)
class ProPETLOptions:
  """What is shared and what is masked; the defaults are the published adapter on T5-base, GLUE.

  Attributes:
    form: of the prototype, a name out of `FORMS`.
    density: share of the entries that a mask keeps (`sparsity` of the original program).
    owners: whose masks there are, see `experts.masked`; () for prototypes without masks.
    combine: 'or', 'and' or 'add' of the masks of several owners.
    place: the prototype exists once per 'model', 'stack' or 'layer' (not shared).
    tasks: number of tasks; 0 takes those of the config, one where replicas have tasks of their own.
    members: for each task id its (task mask, language mask); () gives each task its own.
    first_layer: the language or task mask that the first layer of the encoder has in place of its
      own layer mask, as in the published program (there the last one); None gives it its own.
    full_masks: at density 1 also train the scores, which change nothing but the norm of the
      gradients (as published); otherwise there are none then.
    fan: bound of the first scores, see `experts.masked`.
    one_task: every batch has rows of one task only.
    reduction: adapter: embed // reduction hidden units.
    activation: of the adapter.
    placement: adapter: 'mlp' reads the residual stream behind the feed-forward, 'houlsby' reads the
      outputs of self-attention and of feed-forward, each by a prototype of its own.
    stddev: adapter: of the first kernels.
    rank: LoRA.
    alpha: LoRA: the scaling is alpha / rank.
    projections: LoRA: q, k, v and o of self-attention, or wo, the output of the feed-forward; each
      with a prototype of its own.
    cross_attention: LoRA: also q, k, v and o of cross-attention, with prototypes of their own.
    length: prefix rows.
    hidden: prefix: hidden units of the network that makes the rows; 0 trains the rows.
    tune_norms: also train the backbone's norms.
  """

  form: str = 'adapter'
  density: float = 0.3
  owners: tuple[str, ...] = ('task', 'layer')
  combine: str = 'or'
  place: str = 'model'
  tasks: int = 0
  members: tuple[tuple[int, int], ...] = ()
  first_layer: int | None = None
  full_masks: bool = False
  fan: str = 'in'
  one_task: bool = False
  reduction: int = 12
  activation: str = 'gelu_new'
  placement: str = 'mlp'
  stddev: float = 0.01
  rank: int = 32
  alpha: float = 48.0
  projections: tuple[str, ...] = ('q', 'v')
  cross_attention: bool = False
  length: int = 64
  hidden: int = 512
  tune_norms: bool = False

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word, a number out of its range, options that exclude each other.
    """
    one_of('method.form', self.form, FORMS)
    number('method.density', self.density, 0 < self.density <= 1, 'above 0 and at most 1')
    for owner in self.owners:
      one_of('method.owners', owner, OWNERS)
    for name, allowed in (('combine', COMBINATIONS), ('place', PLACES), ('fan', FANS),
                          ('activation', ACTIVATIONS), ('placement', PLACEMENTS)):
      one_of(f'method.{name}', getattr(self, name), allowed)
    for name in self.projections:
      one_of('method.projections', name, PROJECTIONS)
    at_least(self, 1, 'reduction', 'rank', 'length')
    at_least(self, 0, 'tasks', 'hidden', 'stddev')
    if 'language' in self.owners and not self.members:
      raise UserError('method.owners has masks of languages, but method.members is empty; give the'
                      ' task and the language of each task.')
    if self.members and self.tasks not in (0, len(self.members)):
      raise UserError(f'method.tasks is {self.tasks}, but method.members has {len(self.members)}'
                      ' entries; give one for each task.')

  @property
  def masked_by(self) -> tuple[str, ...]:
    """Whose masks there are in fact."""
    return self.owners if self.density < 1 or self.full_masks else ()

  @property
  def members_of_tasks(self) -> tuple[tuple[int, int], ...]:
    """For each task id its task mask and its language mask."""
    return self.members or tuple((task, 0) for task in range(max(self.tasks, 1)))


def masked_rules(options: ProPETLOptions, delta: Delta, name: str,
                 sites: Sequence[str]) -> tuple[Rule, ...]:
  """Rules that place a delta with masks, all with one prototype, at its sites."""
  masked = Masked(delta, tuple(sites), options.density, options.masked_by, options.combine,
                  options.place, options.members_of_tasks, options.first_layer, options.fan,
                  options.one_task)
  return tuple(Rule(name, site, masked) for site in masked.sites)


def _adapter(options: ProPETLOptions, config: T5Config) -> tuple[Rule, ...]:
  bottleneck = Bottleneck(max(config.embed // options.reduction, 1), options.activation,
                          stddev=options.stddev)
  both = lambda part: [f'encoder/{part}_residual', f'decoder/{part}_residual']
  if options.placement == 'mlp':
    return masked_rules(options, Adapter(bottleneck), NAME, both('mlp'))
  delta = Adapter(bottleneck, 'sublayer')
  return (*masked_rules(options, delta, f'{NAME}_attention', both('self_attention')),
          *masked_rules(options, delta, NAME, both('mlp')))


def _lora(options: ProPETLOptions, config: T5Config) -> tuple[Rule, ...]:
  del config
  delta, rules = LoRA(options.rank, options.alpha / options.rank, 'zero'), ()
  for projection in dict.fromkeys(options.projections):
    sites = [f'{stack}/{PROJECTIONS[projection]}' for stack in ('encoder', 'decoder')]
    rules += masked_rules(options, delta, f'{NAME}_{projection}', sites)
    if options.cross_attention and projection != 'wo':
      rules += masked_rules(options, delta, f'{NAME}_cross_{projection}',
                            [f'decoder/cross_attention/{projection}'])
  return rules


def _prefix(options: ProPETLOptions, config: T5Config) -> tuple[Rule, ...]:
  delta = RowPrefix(options.length, config.heads, options.hidden)
  return masked_rules(options, delta, NAME, ['encoder/self_attention', 'decoder/self_attention'])


_RULES = {'adapter': _adapter, 'lora': _lora, 'prefix': _prefix}


def propetl(options: ProPETLOptions, config: T5Config, prompt_length: int) -> Method:
  """Masked prototypes on T5; scores are the group 'scores', the rest 'prototype' and 'norm'."""
  del prompt_length
  tuned = [SCORES, PROTOTYPE] if options.masked_by else [PROTOTYPE]
  if options.tune_norms:
    tuned.append(NORMS)
  return Method(NAME, Plan(_RULES[options.form](options, config)), (*tuned, FROZEN))
