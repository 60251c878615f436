"""`adapter_config.json` of Hugging Face PEFT: which options have a form here."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import regex

from pemt_jax.errors import UserError
from pemt_jax.interop import peft_forms
from pemt_jax.interop.peft_forms import IA3Form, LoRAForm, Module, PrefixForm, PromptForm
from pemt_jax.models.t5_config import T5Config

Form = LoRAForm | IA3Form | PromptForm | PrefixForm

# Options that say nothing about what the adapter computes when it is used.
_NEUTRAL = {'auto_mapping', 'base_model_name_or_path', 'inference_mode', 'peft_type',
            'peft_version', 'revision', 'task_type'}
_SIZES = {'num_attention_heads', 'num_layers', 'num_transformer_submodules', 'num_virtual_tokens',
          'token_dim'}
# Kind -> options that are read, or that matter to training only.
_KNOWN = {
    'LORA': {'r', 'lora_alpha', 'lora_dropout', 'target_modules', 'exclude_modules', 'use_rslora',
             'init_lora_weights', 'megatron_core', 'qalora_group_size', 'bias'},
    'IA3': {'target_modules', 'exclude_modules', 'feedforward_modules', 'init_ia3_weights'},
    'PREFIX_TUNING': _SIZES | {'encoder_hidden_size', 'prefix_projection', 'init_weights'},
    'PROMPT_TUNING': _SIZES | {'prompt_tuning_init', 'prompt_tuning_init_text',
                               'tokenizer_kwargs', 'tokenizer_name_or_path'},
}
# Ways to start a LoRA that leave the backbone as it is.
_PLAIN_STARTS = (True, False, 'gaussian', 'eva', 'orthogonal')
_ALL_LINEAR = 'all-linear'
_SECONDS = 1.0  # for a pattern on one name
_TASK = 'SEQ_2_SEQ_LM'


def form_of(values: Any, config: T5Config, file: pathlib.Path) -> Form:
  """Reads a config strictly.

  Args:
    values: the parsed file.
    config: of the backbone.
    file: for messages.

  Raises:
    UserError: a kind, an option or a size without a form here.
  """
  kind = values.get('peft_type') if isinstance(values, Mapping) else None
  if kind not in _KNOWN:
    raise UserError(f"'{file}' has peft_type {kind!r}; formats that can be read are "
                    f"{', '.join(_KNOWN)}.")
  if values.get('task_type') not in (_TASK, None):
    raise UserError(f"'{file}' has task_type '{values['task_type']}'; only adapters of T5 "
                    f"('{_TASK}') can be read.")
  for key, value in values.items():
    if key not in _KNOWN[kind] | _NEUTRAL and not _is_off(value):
      raise UserError(f"'{file}' sets '{key}' to {value!r}, which has no form here; train without "
                      'it, or merge the adapter into its backbone and convert that as hf_t5.')
  return _READERS[kind](values, config, file)


def _is_off(value: Any) -> bool:
  return not any(value.values()) if isinstance(value, Mapping) else not value


def _need(values: Mapping[str, Any], key: str, right: Callable[[Any], bool], what: str,
          file: pathlib.Path) -> Any:
  value = values.get(key)
  if isinstance(value, bool) or not right(value):
    raise UserError(f"'{file}' has {value!r} as '{key}', which must be {what}; check that the "
                    'adapter belongs to this backbone.')
  return value


def _count(values: Mapping[str, Any], key: str, file: pathlib.Path) -> int:
  return _need(values, key, lambda v: isinstance(v, int) and v >= 1, 'a whole number above 0', file)


def _same(values: Mapping[str, Any], key: str, wanted: int, file: pathlib.Path) -> None:
  _need(values, key, lambda v: v == wanted, str(wanted), file)


def _lora(values: Mapping[str, Any], config: T5Config, file: pathlib.Path) -> LoRAForm:
  if values.get('bias', 'none') != 'none':
    raise UserError(f"'{file}' has bias '{values['bias']}', and T5 has no biases; set it to "
                    "'none'.")
  start = values.get('init_lora_weights', True)
  if start not in _PLAIN_STARTS:
    raise UserError(f"'{file}' has init_lora_weights '{start}', which changes the backbone; save "
                    'it with path_initial_model_for_weight_conversion, or merge it and convert '
                    'the backbone as hf_t5.')
  rank = _count(values, 'r', file)
  alpha = _need(values, 'lora_alpha', lambda v: isinstance(v, (int, float)) and v > 0,
                'a number above 0', file)
  scaling = alpha / (math.sqrt(rank) if values.get('use_rslora') else rank)
  return LoRAForm(peft_forms.sites_of(_targets(values, config, file)), rank, scaling)


def _ia3(values: Mapping[str, Any], config: T5Config, file: pathlib.Path) -> IA3Form:
  chosen = _targets(values, config, file)
  inward = values.get('feedforward_modules') or ()
  if isinstance(inward, str):
    is_input = lambda name: _fits(inward, name)
  else:  # A list of endings, not of whole names: so PEFT reads it.
    is_input = lambda name: name.endswith(tuple(inward))
  inputs = peft_forms.sites_of(module for module in chosen if is_input(module.name))
  outputs = peft_forms.sites_of(module for module in chosen if not is_input(module.name))
  both = [site for site in inputs if site in outputs]
  if both:
    raise UserError(f"'{file}' has feedforward_modules that match '{both[0]}' in some layers only;"
                    ' name the same modules of all layers.')
  return IA3Form(outputs, inputs)


def _prompt(values: Mapping[str, Any], config: T5Config, file: pathlib.Path) -> PromptForm:
  _same(values, 'token_dim', config.embed, file)
  return PromptForm(_count(values, 'num_virtual_tokens', file))


def _prefix(values: Mapping[str, Any], config: T5Config, file: pathlib.Path) -> PrefixForm:
  _same(values, 'token_dim', config.joined_kv, file)
  _same(values, 'num_attention_heads', config.heads, file)
  _same(values, 'num_transformer_submodules', 2, file)
  _need(values, 'num_layers', lambda v: isinstance(v, int) and v >= config.decoder_layers,
        f'at least {config.decoder_layers}, the layers of the decoder', file)
  return PrefixForm(_count(values, 'num_virtual_tokens', file))


_READERS = {'LORA': _lora, 'IA3': _ia3, 'PREFIX_TUNING': _prefix, 'PROMPT_TUNING': _prompt}


def _targets(values: Mapping[str, Any], config: T5Config, file: pathlib.Path) -> list[Module]:
  """Projections that the adapter stands at, in the order of the backbone."""
  wanted, left_out = values.get('target_modules'), values.get('exclude_modules') or ()
  chosen = [module for module in peft_forms.modules_of(config)
            if _matches(module.name, wanted) and not _matches(module.name, left_out)]
  if not chosen:
    raise UserError(f"'{file}' has target_modules {wanted!r}, which name no projection of this "
                    'backbone; give the backbone it was trained on.')
  partial = peft_forms.incomplete_sites(chosen, config)
  if partial:
    site, count = next(iter(partial.items()))
    raise UserError(f"'{file}' has target_modules that match '{site}' in {count} layers only; "
                    'adapters of some layers have no form here.')
  return chosen


def _matches(name: str, wanted: Any) -> bool:
  """The rule of PEFT: a pattern of the whole name, or a list of names and of their last parts."""
  if wanted == _ALL_LINEAR:
    return True
  if isinstance(wanted, str):
    return _fits(wanted, name)
  return any(name == one or name.endswith(f'.{one}') for one in wanted or ())


def _fits(pattern: str, name: str) -> bool:
  """Whether a pattern out of a file fits a whole name; some patterns would take for ever."""
  try:
    return regex.fullmatch(pattern, name, timeout=_SECONDS) is not None
  except (regex.error, TimeoutError) as error:
    raise UserError(f'The pattern {pattern!r:.200} of an adapter config is no regular expression,'
                    f' or takes more than {_SECONDS} s for one name; name the modules in a list.'
                    ) from error


def values_of(form: Form, config: T5Config, backbone: str | None) -> dict[str, Any]:
  """Returns a config that PEFT reads; what is left out has PEFT's defaults.

  Args:
    form: what the adapter is.
    config: of the backbone.
    backbone: its name, for `base_model_name_or_path`.
  """
  common = {'base_model_name_or_path': backbone, 'inference_mode': True, 'task_type': _TASK}
  if isinstance(form, LoRAForm):
    alpha = form.scaling * form.rank
    own = {'peft_type': 'LORA', 'r': form.rank,
           'lora_alpha': int(alpha) if alpha == int(alpha) else alpha,
           'target_modules': _naming(form.sites, config), 'bias': 'none'}
  elif isinstance(form, IA3Form):
    inward = _naming(form.inputs, config)
    if isinstance(inward, list) and any(site.endswith(tuple(inward)) for site in form.outputs):
      inward = _pattern(form.inputs, config)  # PEFT reads a list as endings: 'o' is also 'wo'
    own = {'peft_type': 'IA3', 'target_modules': _naming(form.sites, config),
           'feedforward_modules': inward}
  elif isinstance(form, PromptForm):
    own = {'peft_type': 'PROMPT_TUNING', 'num_virtual_tokens': form.length,
           'num_transformer_submodules': 1, 'token_dim': config.embed,
           'num_attention_heads': config.heads, 'num_layers': config.encoder_layers}
  else:
    own = {'peft_type': 'PREFIX_TUNING', 'num_virtual_tokens': form.length,
           'num_transformer_submodules': 2, 'token_dim': config.joined_kv,
           'num_attention_heads': config.heads, 'num_layers': prefix_layers(config),
           'encoder_hidden_size': config.joined_kv, 'prefix_projection': False}
  return dict(sorted((common | own).items()))


def prefix_layers(config: T5Config) -> int:
  """Layers that a written prefix states: odd, so that no two layers share keys (see `peft.py`)."""
  return config.decoder_layers | 1


def _naming(sites: Iterable[str], config: T5Config) -> list[str] | str:
  """Projections by their last names where that says it all, or a pattern."""
  sites = set(sites)
  names = sorted({site.rpartition('/')[2] for site in sites})
  meant = {module.site for module in peft_forms.modules_of(config)
           if module.site.rpartition('/')[2] in names}
  return names if meant == sites else _pattern(sites, config)


def _pattern(sites: Iterable[str], config: T5Config) -> str:
  """A regular expression over the names of the projections of these sites."""
  sites = set(sites)
  names = dict.fromkeys(
      re.sub(r'\\\.block\\\.\d+', lambda _: r'\.block\.\d+', re.escape(module.name))
      for module in peft_forms.modules_of(config) if module.site in sites)
  return '|'.join(names)
