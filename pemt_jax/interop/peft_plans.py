"""Plans of deltas <-> the forms that adapter folders of other programs can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import math
from typing import Any

from pemt_jax.deltas.adapter import Adapter
from pemt_jax.deltas.ia3 import IA3
from pemt_jax.deltas.lora import LoRA
from pemt_jax.deltas.prefix import KeyValuePrefix
from pemt_jax.deltas.prompt import Prompt
from pemt_jax.errors import UserError
from pemt_jax.interop import peft_forms
from pemt_jax.interop.peft_forms import (
    STACKS, BottleneckForm, IA3Form, LoRAForm, PrefixForm, PromptForm)
from pemt_jax.methods import adapters
from pemt_jax.methods import baselines
from pemt_jax.methods import ia3
from pemt_jax.methods import prefixes
from pemt_jax.methods import zoo
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5_config import T5Config

Form = LoRAForm | IA3Form | PromptForm | PrefixForm | BottleneckForm
_PREFIX_SITE = 'decoder/self_attention'
_ATTENTIONS = ('encoder/self_attention', _PREFIX_SITE, 'decoder/cross_attention')
_OTHER_SITES = ('encoder/embed', *_ATTENTIONS)
# Fields of a bottleneck that matter to its first values only.
_STARTS = {'stddev': 0.01, 'up_init': 'normal'}


def form_of(plan: Plan, config: T5Config, place: str) -> Form:
  """What a plan is in the words of other programs.

  Args:
    plan: of an expert; its deltas must be of one kind and size.
    config: of the backbone.
    place: the expert, for messages.

  Raises:
    UserError: deltas that the other programs have no form for.
  """
  kinds = {type(rule.delta) for rule in plan.rules}
  if len(kinds) != 1 or not kinds <= set(_FORMS):
    named = ' and '.join(sorted(kind.__name__ for kind in kinds)) or 'no delta'
    raise UserError(f"'{place}' has {named}; an adapter folder holds one of "
                    f"{', '.join(kind.__name__ for kind in _FORMS)}.")
  return _FORMS[kinds.pop()](_by_site(plan, config, place), place)


def _by_site(plan: Plan, config: T5Config, place: str) -> dict[str, Rule]:
  """The rule of each site, sites in the order of the backbone."""
  found = {}
  for site in (*peft_forms.sites_of(peft_forms.modules_of(config)), *_OTHER_SITES):
    rules = [rule for rule in plan.at(site) if _layers_at(rule, site) != ()]
    if len(rules) > 1:
      raise UserError(f"'{place}' has {len(rules)} deltas at '{site}'; an adapter folder holds "
                      'one.')
    if rules:
      found[site] = rules[0]
  return found


def _layers_at(rule: Rule, site: str) -> tuple[tuple[str, int], ...] | None:
  """Layers of the site's stack to which a rule is limited."""
  stack = site.partition('/')[0]
  return rule.layers and tuple(pair for pair in rule.layers if pair[0] == stack)


def _one_delta(rules: Mapping[str, Rule], place: str, **ignored: Any) -> Any:
  """The delta of all rules, which may differ in first values only."""
  deltas = {dataclasses.replace(rule.delta, **ignored) for rule in rules.values()}
  if len(deltas) != 1:
    raise UserError(f"'{place}' has deltas of different sizes; an adapter folder holds one size.")
  return deltas.pop()


def _all_layers(rules: Mapping[str, Rule], place: str) -> None:
  if any(rule.layers is not None for rule in rules.values()):
    raise UserError(f"'{place}' has deltas in some layers only, for which PEFT's folders have no "
                    'form here; train it in all layers.')


def _lora(rules: Mapping[str, Rule], place: str) -> LoRAForm:
  _all_layers(rules, place)
  delta = _one_delta(rules, place, up_init='zero', down_bound=None)
  return LoRAForm(tuple(rules), delta.rank, delta.scaling)


def _ia3(rules: Mapping[str, Rule], place: str) -> IA3Form:
  _all_layers(rules, place)
  of_side = lambda side: tuple(site for site, rule in rules.items() if rule.delta.side == side)
  return IA3Form(of_side('output'), of_side('input'))


def _prompt(rules: Mapping[str, Rule], place: str) -> PromptForm:
  delta = _one_delta(rules, place)
  if delta.source_lengths:
    raise UserError(f"'{place}' has a prompt that reads source prompts, for which an adapter folder"
                    ' has no form; export a prompt that stands alone.')
  return PromptForm(delta.length)


def _prefix(rules: Mapping[str, Rule], place: str) -> PrefixForm:
  _all_layers(rules, place)
  if tuple(rules) != (_PREFIX_SITE,):
    raise UserError(f"'{place}' has prefixes at {', '.join(rules)}; PEFT gives a T5 one at "
                    f"'{_PREFIX_SITE}' only (prefix_kv with the place 'decoder').")
  return PrefixForm(_one_delta(rules, place).length)


def _bottleneck(rules: Mapping[str, Rule], place: str) -> BottleneckForm:
  plain = {rule.delta.bottleneck: dataclasses.replace(rule.delta.bottleneck, **_STARTS)
           for rule in rules.values()}
  deltas = {(plain[rule.delta.bottleneck], rule.delta.reads) for rule in rules.values()}
  limits = {rule.layers for rule in rules.values()}
  if len(deltas) != 1:
    raise UserError(f"'{place}' has adapters of different sizes; an adapter folder holds one "
                    'size.')
  (bottleneck, reads), = deltas
  if not bottleneck.biases:
    raise UserError(f"'{place}' has adapters without biases, for which adapterhub has no form.")
  layers = None
  if limits != {None}:
    layers = tuple(sorted({pair for rule in rules.values() for pair in rule.layers or ()},
                          key=lambda pair: (STACKS.index(pair[0]), pair[1])))
  for site, rule in rules.items():
    own = _layers_at(rule, site)
    if layers is not None and own != tuple(p for p in layers if p[0] == site.partition('/')[0]):
      raise UserError(f"'{place}' has adapters at '{site}' in other layers than elsewhere, for "
                      'which adapterhub has no form.')
  return BottleneckForm(tuple(rules), reads, bottleneck.size, bottleneck.activation,
                        bottleneck.scaling, bottleneck.pre_norm, bottleneck.post_norm, layers)


_FORMS = {LoRA: _lora, IA3: _ia3, Prompt: _prompt, KeyValuePrefix: _prefix, Adapter: _bottleneck}

# Name of the rule in the paths of foreign tables.
RULE_NAMES = {LoRAForm: 'lora', IA3Form: 'ia3', PromptForm: 'prompt', PrefixForm: 'prefix_kv',
              BottleneckForm: 'adapter'}


def stage_of(form: Form, config: T5Config, place: str) -> tuple[str, Any]:
  """The stage of the zoo, and its options, whose plan is a form.

  Args:
    form: what a foreign folder holds.
    config: of the backbone.
    place: the folder, for messages.

  Raises:
    UserError: no stage places such deltas.
  """
  for stage, options in _STAGES[type(form)](form):
    plan = zoo.make(stage, options, config, getattr(form, 'length', 0)).plan
    if _equal(form_of(plan, config, place), form):
      return stage, options
  raise UserError(f"'{place}' holds deltas at {', '.join(getattr(form, 'sites', ()))}, which no "
                  'method can place like this.')


# Each gives candidates, the plainest first.


def _as_lora(form: LoRAForm) -> Iterator[tuple[str, Any]]:
  last = {site.rpartition('/')[2] for site in form.sites}
  plain = baselines.LoRAOptions(
      form.rank, form.scaling * form.rank, 'zero',
      tuple(name for name in baselines.PROJECTIONS if name in last) or baselines.PROJECTIONS)
  yield 'lora', plain
  yield 'lora', dataclasses.replace(plain, sites=form.sites)


def _as_ia3(form: IA3Form) -> Iterator[tuple[str, Any]]:
  yield 'ia3', ia3.IA3Options()
  yield 'ia3', ia3.IA3Options(outputs=form.outputs, inputs=form.inputs)


def _as_prompt(form: PromptForm) -> Iterator[tuple[str, Any]]:
  del form
  yield 'prompt', baselines.PromptOptions()


def _as_prefix(form: PrefixForm) -> Iterator[tuple[str, Any]]:
  yield 'prefix_kv', prefixes.KeyValuePrefixOptions(form.length, ('decoder',))


def _as_adapters(form: BottleneckForm) -> Iterator[tuple[str, Any]]:
  stage = {'output': 'houlsby', 'sum': 'pfeiffer'}.get(form.reads, 'parallel')
  kinds = {site.partition('/')[2] for site in form.sites}
  limits = dict.fromkeys(STACKS)
  if form.layers is not None:
    limits = {stack: tuple(layer for owner, layer in form.layers if owner == stack)
              for stack in STACKS}
  yield stage, adapters.FamilyOptions(
      size=form.size, activation=form.activation, scaling=form.scaling, reads=form.reads,
      after_self_attention='self_attention/o' in kinds,
      after_cross_attention='cross_attention/o' in kinds, after_mlp='mlp/wo' in kinds,
      pre_norm=form.pre_norm, post_norm=form.post_norm, tune_norms=False,
      encoder_layers=limits['encoder'], decoder_layers=limits['decoder'])


_STAGES = {LoRAForm: _as_lora, IA3Form: _as_ia3, PromptForm: _as_prompt, PrefixForm: _as_prefix,
           BottleneckForm: _as_adapters}


def _equal(first: Form, second: Form) -> bool:
  """Equality but for the last bits of a scaling that is stored as alpha."""
  if isinstance(first, LoRAForm) and isinstance(second, LoRAForm):
    return (dataclasses.replace(first, scaling=second.scaling) == second
            and math.isclose(first.scaling, second.scaling, rel_tol=1e-12))
  return first == second
