"""Adapters of several tasks: one for each, or all made by hyper-networks.

The adapters of Houlsby et al. (2019) and HyperFormer, HyperFormer++ (Mahabadi et al., 2021) as the
HyperFormer code has them: behind self-attention and feed-forward, before dropout and residual.
"""

from __future__ import annotations

import dataclasses
import functools

from pemt_jax.deltas.adapter import ACTIVATIONS, Adapter, Bottleneck
from pemt_jax.errors import UserError, at_least, one_of
from pemt_jax.experts.hypernet import Embeddings, Generated
from pemt_jax.experts.task_bank import TaskBank
from pemt_jax.methods.adapters import head_weight
from pemt_jax.methods.base import FROZEN, Method
from pemt_jax.methods.pemt import NORMS
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5_config import T5Config

ADAPTER, HYPER = 'adapter', 'hyper'  # names of the rules
SITES = ('mlp/wo', 'self_attention/o')
ADAPTER_NORMS = ('pre_norm/', 'post_norm/')
TASKS = (f'deltas/{HYPER}/.*', 'task_embedding')


@dataclasses.dataclass(frozen=True)
class ControllerOptions:
  """One adapter for each task; the defaults are those of the published recipe.

  Attributes:
    reduction: an adapter has embed // reduction hidden units.
    activation: of the adapters.
    pre_norm: layer norm in front of the adapter, shared by the tasks.
    post_norm: layer norm behind it, before the residual, shared by the tasks.
    tasks: number of tasks; 0 takes those of the config, one where replicas have tasks of their own.
    members: for each task id its adapter; () gives each task its own.
    one_task: every batch has rows of one task only.
    stddev: of the first kernels.
    tune_norms: also train the backbone's norms.
    tune_head: also train the head, which a tied backbone shares with its embedding.
  """

  reduction: int = 32
  activation: str = 'gelu_new'
  pre_norm: bool = False
  post_norm: bool = True
  tasks: int = 0
  members: tuple[int, ...] = ()
  one_task: bool = False
  stddev: float = 0.01
  tune_norms: bool = True
  tune_head: bool = False

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word, a number out of its range, or members of another number of tasks.
    """
    one_of('method.activation', self.activation, ACTIVATIONS)
    at_least(self, 1, 'reduction')
    at_least(self, 0, 'tasks', 'stddev')
    if self.members and self.tasks not in (0, len(self.members)):
      raise UserError(f'method.tasks is {self.tasks}, but method.members has {len(self.members)}'
                      ' entries; give one for each task.')

  @property
  def count(self) -> int:
    """Adapters, or embeddings of tasks."""
    return 1 + max(self.members) if self.members else max(self.tasks, 1)

  def adapter(self, config: T5Config) -> Adapter:
    """The adapter of one task."""
    return Adapter(Bottleneck(max(config.embed // self.reduction, 1), self.activation,
                              self.pre_norm, self.post_norm, stddev=self.stddev))


@dataclasses.dataclass(frozen=True)
class HyperOptions(ControllerOptions):
  """Adapters that hyper-networks make.

  Attributes:
    conditional_norms: the networks make the adapters' norms too; False trains them at each site.
    size: of the embeddings of tasks, layers and places.
    hidden: units of the networks that join embeddings.
    projected: size of the joint embedding.
    project_tasks: a network also stands behind the embeddings of tasks.
    joint_norm: layer norm of the joint embedding.
  """

  conditional_norms: bool = True
  size: int = 64
  hidden: int = 128
  projected: int = 64
  project_tasks: bool = False
  joint_norm: bool = True

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: see `ControllerOptions`.
    """
    super().__post_init__()
    at_least(self, 1, 'size', 'hidden', 'projected')


def _method(stage: str, rule: str, delta: TaskBank | Adapter | Generated,
            options: ControllerOptions, config: T5Config) -> Method:
  """A delta at both places; groups 'task_embedding', 'hypernet' or 'adapter', 'norm', 'head'."""
  rules = tuple(Rule(rule, f'*/{site}', delta) for site in SITES)
  if rule == HYPER:
    tuned = [TASKS, (rf'(encoder|decoder)/{HYPER}/.*', 'hypernet')]
    if delta.own:
      tuned.append((f'.*/{HYPER}/(pre|post)_norm/.*', 'adapter'))
  else:
    tuned = [(f'.*/{ADAPTER}/.*', 'adapter')]
  if options.tune_norms:
    tuned.append(NORMS)
  if options.tune_head:
    tuned.append(head_weight(config))
  return Method(stage, Plan(rules), (*tuned, FROZEN))


def controller(options: ControllerOptions, config: T5Config, prompt_length: int) -> Method:
  """One adapter for each task under norms that they share."""
  del prompt_length
  delta = options.adapter(config)
  if options.count > 1:
    delta = TaskBank(delta, options.count, options.members, ADAPTER_NORMS, options.one_task)
  return _method('adapter_controller', ADAPTER, delta, options, config)


def hyper_delta(options: HyperOptions, config: T5Config, scope: str) -> Generated:
  """The generated adapter; `scope` is a name out of `hypernet.SCOPES`."""
  embeddings = Embeddings(options.size, options.hidden, options.projected, options.project_tasks,
                          options.joint_norm)
  normed = options.pre_norm or options.post_norm
  own = ADAPTER_NORMS if normed and not options.conditional_norms else ()
  return Generated(options.adapter(config), SITES, options.count, scope, embeddings, own,
                   options.members, options.one_task, options.stddev)


def _hyper(stage: str, scope: str, options: HyperOptions, config: T5Config,
           prompt_length: int) -> Method:
  del prompt_length
  return _method(stage, HYPER, hyper_delta(options, config, scope), options, config)


# (options, backbone config, prompt rows) -> method. A network for each site of each layer, one for
# each site of all layers of a stack, and one for all sites of a stack.
SCOPES = {'meta_adapter': 'layer', 'hyperformer': 'stack', 'hyperformer_pp': 'places'}
meta_adapter, hyperformer, hyperformer_pp = (
    functools.partial(_hyper, stage, scope) for stage, scope in SCOPES.items())
