"""Every way of tuning one expert by its config name; names join with '+'.

`adapter+lora` trains both in one model. An entry is an options dataclass and a function from the
options to a `Method`; a new one joins by a line of `ZOO`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from pemt_jax.errors import UserError
from pemt_jax.methods import (
    adamix, adapters, attempt, baselines, bitfit, hyperformer, ia3, low_rank, maml, mixda, moe,
    mpo, prefixes, propetl, propetl_roberta, subspace, task_moe)
from pemt_jax.methods.base import (
    FROZEN, Auxiliary, Expand, FirstValues, Method, Observe, as_initialised, joined)
from pemt_jax.methods.language_modelling import tuned_by
from pemt_jax.models.sites import Plan
from pemt_jax.models.t5_config import T5Config

JOINT = '+'


@dataclasses.dataclass(frozen=True)
class Entry:
  """One name of the zoo.

  Attributes:
    options: dataclass of its options.
    make: (options, backbone config, prompt rows) -> method.
    defaults: values that differ from those of the dataclass.
  """

  options: type
  make: Callable[[Any, T5Config, int], Method]
  defaults: tuple[tuple[str, Any], ...] = ()

  def default_options(self) -> Any:
    """The options that a config starts from."""
    return self.options(**dict(self.defaults))


ZOO: dict[str, Entry] = {
    'adapter': Entry(baselines.AdapterOptions, baselines.adapter),
    'lora': Entry(baselines.LoRAOptions, baselines.lora),
    'prompt': Entry(baselines.PromptOptions, baselines.prompt),
    'full': Entry(baselines.FullOptions, baselines.full),
    maml.NAME: Entry(maml.MamlOptions, maml.maml),
    'houlsby': Entry(adapters.FamilyOptions, adapters.houlsby),
    'pfeiffer': Entry(adapters.FamilyOptions, adapters.pfeiffer, adapters.PFEIFFER),
    'parallel': Entry(adapters.FamilyOptions, adapters.parallel, adapters.PARALLEL),
    'houlsby_ensembling': Entry(adapters.FamilyOptions, adapters.houlsby_ensembling,
                                adapters.ENSEMBLING),
    'compacter': Entry(adapters.CompacterOptions, adapters.compacter),
    'bitfit': Entry(bitfit.BitFitOptions, bitfit.bitfit),
    'adamix': Entry(adamix.AdaMixOptions, adamix.adamix),
    'mixda': Entry(mixda.MixDAOptions, mixda.mixda),
    'attempt': Entry(attempt.AttemptOptions, attempt.attempt),
    'lora_ensembling': Entry(low_rank.EnsemblingLoRAOptions, low_rank.lora_ensembling),
    'lora_mlp': Entry(low_rank.LowRankOptions, low_rank.lora_mlp),
    'lora_br': Entry(low_rank.LowRankBiasOptions, low_rank.lora_br),
    'bias_mlp': Entry(low_rank.LowRankBiasOptions, low_rank.bias_mlp),
    'ia3': Entry(ia3.IA3Options, ia3.ia3),
    'intrinsic_adapter': Entry(low_rank.IntrinsicAdapterOptions, low_rank.intrinsic_adapter),
    'intrinsic_lora': Entry(low_rank.IntrinsicLoRAOptions, low_rank.intrinsic_lora),
    subspace.NAME: Entry(subspace.SubspaceOptions, subspace.subspace),
    propetl.NAME: Entry(propetl.ProPETLOptions, propetl_roberta.propetl_of),
    'adapter_controller': Entry(hyperformer.ControllerOptions, hyperformer.controller),
    'meta_adapter': Entry(hyperformer.HyperOptions, hyperformer.meta_adapter),
    'hyperformer': Entry(hyperformer.HyperOptions, hyperformer.hyperformer),
    'hyperformer_pp': Entry(hyperformer.HyperOptions, hyperformer.hyperformer_pp),
    mpo.NAME: Entry(mpo.MPOOptions, mpo.mpo),
    task_moe.NAME: Entry(task_moe.TaskMoEOptions, task_moe.task_moe),
    moe.SWITCH: Entry(moe.SwitchOptions, moe.switch),
    moe.TOP2: Entry(moe.TopTwoOptions, moe.top2),
    'prefix': Entry(prefixes.PrefixOptions, prefixes.prefix),
    'prefix_kv': Entry(prefixes.KeyValuePrefixOptions, prefixes.prefix_kv),
    'intrinsic_prefix': Entry(prefixes.IntrinsicPrefixOptions, prefixes.intrinsic_prefix),
}


def names_of(stage: str) -> tuple[str, ...]:
  """Names of a stage such as `adapter+lora`; empty if it is none of the zoo.

  Raises:
    UserError: a name stands twice.
  """
  names = tuple(tuned_by(stage).split(JOINT))
  if any(name not in ZOO for name in names):
    return ()
  if len(set(names)) != len(names):
    raise UserError(f"stage '{stage}' has a name twice; give each once.")
  return names


def make(stage: str, options: Any, config: T5Config, prompt_length: int) -> Method:
  """Returns the method of a stage.

  Args:
    stage: one name, or several joined by '+'.
    options: of the one name, or {name: options}.
    config: of the backbone.
    prompt_length: rows of a prompt, padding included; read by stages that have one.
  """
  names = names_of(stage)
  if len(names) == 1:
    return ZOO[names[0]].make(options, config, prompt_length)
  return combine(stage, [ZOO[name].make(options[name], config, prompt_length) for name in names])


def for_tasks(options: Any, count: int, one_task: bool) -> Any:
  """Options of a stage with the number of its tasks, where they have and leave it open.

  Args:
    options: of a stage; {name: options} where names are joined.
    count: tasks of a replica.
    one_task: every batch has rows of one task only.

  Raises:
    UserError: options for fewer tasks.
  """
  if isinstance(options, dict):
    return {name: for_tasks(own, count, one_task) for name, own in options.items()}
  if not {'tasks', 'members', 'one_task'} <= {f.name for f in dataclasses.fields(options)}:
    return options
  tasks = options.tasks or len(options.members) or count
  if tasks < count:
    raise UserError(f'method.tasks or method.members has {tasks} tasks, but the config has {count};'
                    ' give one for each task.')
  return dataclasses.replace(options, tasks=tasks, one_task=options.one_task or one_task)


def combine(name: str, methods: Sequence[Method]) -> Method:
  """One method whose plan and trainable rules are those of several.

  Rules for all that is left stand last, whichever method they come from.
  """
  plan = Plan(tuple(rule for method in methods for rule in method.plan.rules))
  tuned = list(dict.fromkeys(rule for method in methods for rule in method.tuned))
  last = [rule for rule in tuned if rule[0] == FROZEN[0]]
  chosen = [rule for rule in last if rule != FROZEN] or [FROZEN]
  tuned = [rule for rule in tuned if rule not in last] + chosen[:1]
  return Method(name, plan, tuple(tuned), _sum([m.auxiliary for m in methods]),
                _join([m.observe for m in methods]), sum(m.consistency for m in methods),
                _after([m.expand for m in methods]),
                _in_turn([m.first_values for m in methods]),
                _chain([m.next_constants for m in methods]),
                _chain([m.transform_gradients for m in methods]),
                _chain([m.transform_clipped for m in methods]), _prediction(methods),
                _chain([m.transform_loss for m in methods]),
                _chain([m.adapt_start for m in methods]),
                _chain([m.first_constants for m in methods]))


def _sum(parts: Sequence[Auxiliary]) -> Auxiliary:
  def auxiliary(aux, rows):
    total, metrics = jnp.zeros((), jnp.float32), {}
    for part in parts:
      loss, more = part(aux, rows)
      total, metrics = total + loss, metrics | more
    return total, metrics

  return auxiliary


def _join(parts: Sequence[Observe]) -> Observe:
  def observe(aux, rows):
    found: dict[str, Any] = {}
    for part in parts:
      found |= part(aux, rows)
    return found

  return observe


def _after(parts: Sequence[Expand]) -> Expand:
  own = [part for part in parts if part is not joined]
  if len(own) < 2:
    return own[0] if own else joined

  def expand(tuned, frozen, constants):
    for part in own:
      tuned, frozen = part(tuned, frozen, constants), {}
    return tuned

  return expand


def _prediction(methods: Sequence[Method]) -> Plan | None:
  if all(method.prediction is None for method in methods):
    return None
  plans = [method.prediction or method.plan for method in methods]
  return Plan(tuple(rule for plan in plans for rule in plan.rules))


def _chain(parts: Sequence[Callable[..., Any] | None]) -> Callable[..., Any] | None:
  """Functions (value, *rest) -> value one after the other; None if there are none."""
  own = [part for part in parts if part is not None]

  def chained(value, *rest):
    for part in own:
      value = part(value, *rest)
    return value

  return chained if own else None


def _in_turn(parts: Sequence[FirstValues]) -> FirstValues:
  own = [part for part in parts if part is not as_initialised]
  if not own:
    return as_initialised

  def first_values(backbone, params, key):
    for part in own:
      params = part(backbone, params, key)
    return params

  return first_values


def default_options(stage: str) -> Mapping[str, Any]:
  """{name: default options} of a stage."""
  return {name: ZOO[name].default_options() for name in names_of(stage)}
