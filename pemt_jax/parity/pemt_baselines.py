"""Cases of the baselines that the PEMT code carries: which method a case ran, recorded draws."""

from __future__ import annotations

from collections.abc import Collection, Mapping
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.interop.pemt_layout import TUNED_PROMPT, PemtLayout
from pemt_jax.methods import adamix, adapters, attempt, baselines, bitfit, mixda, spot
from pemt_jax.methods.base import Method
from pemt_jax.trees import Tree, unflatten

_INFERENCE = {0: 'token', 1: 'sentence', 3: 'average'}
_DRAW = 'randint/'


def method_of(layout: PemtLayout, options: Mapping[str, Any],
              trained: Collection[str] = ()) -> Method | None:
  """Returns the baseline that a case ran, as published; None where it ran PEMT.

  Args:
    layout: parts of the case's state.
    options: `method_config` of the case.
    trained: original names of the trained parameters, which decide about norms.

  Raises:
    UserError: options that belong to no known method.
  """
  config = layout.backbone
  for part, make in _MAKERS.items():
    if getattr(layout, part):
      return make(layout, options, trained)
  if layout.expert_form is not None:
    return None
  if layout.attention_rank:
    rank = layout.attention_rank
    scaling = float(options.get('scaling', 1.0))
    return baselines.lora(baselines.LoRAOptions(rank, rank * scaling), config, 0)
  if layout.target_width or layout.attention_adapter_width:
    return _adapter(layout, options, trained)
  if layout.prompt_length and layout.prompt_name == TUNED_PROMPT:
    return baselines.prompt(baselines.PromptOptions(), config, layout.prompt_length)
  foreign = sorted(set(options) - {'note'})
  if foreign:
    raise UserError(f"method_config has '{foreign[0]}', which belongs to none of the methods that"
                    ' can be recomputed (PEMT and the baselines of its code); leave the case out.')
  return baselines.full(baselines.FullOptions(), config, 0)


def _adapter(layout, options, trained):
  return adapters.houlsby(adapters.FamilyOptions(
      size=layout.target_width or layout.attention_adapter_width,
      activation=options.get('non_linearity', 'gelu_new'),
      after_self_attention=layout.attention_adapter_width > 0, after_mlp=layout.target_width > 0,
      pre_norm='pre' in layout.adapter_norms, post_norm='post' in layout.adapter_norms,
      tune_adapter_norms=False, tune_norms=any(n.endswith('layer_norm.weight') for n in trained),
      tune_head=bool(options.get('unfreeze_lm_head')),
      encoder_layers=layout.encoder_adapter_layers,
      decoder_layers=layout.decoder_adapter_layers), layout.backbone, 0)


def _bitfit(layout, options, trained):
  del trained
  head = 'bias' if options.get('freeze_bitfit_lm_head') else 'weight_and_bias'
  head = 'none' if options.get('freeze_bitfit_lm_head_all') else head
  return bitfit.bitfit(bitfit.BitFitOptions(head), layout.backbone, 0)


def _adamix(layout, options, trained):
  del trained
  shape = layout.adamix
  made = adamix.AdaMixOptions(
      options['num_experts'], shape.size, bool(options.get('sharing_down')),
      bool(options.get('sharing_up')), _INFERENCE.get(options.get('inference_level', 3), 'average'))
  return adamix.adamix(made, layout.backbone, 0, recorded=bool(options.get('recorded')))


def _mixda(layout, options, trained):
  del trained
  shape = layout.mixda
  made = mixda.MixDAOptions(
      shape.count, options['adapter_down_scale'], shape.hidden,
      encoder_layers=shape.encoder_layers, decoder_layers=shape.decoder_layers, gate_reads='last')
  return mixda.mixda(made, layout.backbone, 0)


def _attempt(layout, options, trained):
  del trained
  shape = layout.attempt
  made = attempt.AttemptOptions(
      options.get('attn_method', 'sub'), shape.sources, max(shape.targets, 1),
      bool(options.get('ignore_target')), shape.hidden or 100,
      float(options.get('temperature', 2000.0)), mask_padding=False,
      tune_attention=not options.get('fix_attention', False))
  return attempt.attempt(made, layout.backbone, shape.length)


# Part of the layout -> maker of its method.
_MAKERS = {'biases': _bitfit, 'adamix': _adamix, 'mixda': _mixda, 'attempt': _attempt}


def with_draws(options: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Options of a case, with the mark that its inputs hold draws."""
  return dict(options) | ({'recorded': True} if any(n.startswith(_DRAW) for n in inputs) else {})


def draws_of(inputs: Mapping[str, np.ndarray], layout: PemtLayout) -> Tree:
  """Constants of AdaMix: recorded draws, per layer (encoder first) one for down, then one for up.

  Args:
    inputs: arrays of the case; draws are `randint/<k>`.
    layout: parts of the case's state.

  Raises:
    UserError: another number of draws than two for each layer.
  """
  names = sorted((n for n in inputs if n.startswith(_DRAW)), key=lambda n: int(n[len(_DRAW):]))
  if not names:
    return {}
  needed = 2 * (layout.layers('encoder') + layout.layers('decoder'))
  if len(names) != needed:
    raise UserError(f'inputs.npz has {len(names)} draws and the layers of the case need {needed};'
                    ' record one for down and one for up in each.')
  found, start = {}, 0
  for stack in ('encoder', 'decoder'):
    stop = start + 2 * layout.layers(stack)
    for i, half in enumerate(('down', 'up')):
      own = [inputs[name] for name in names[start + i:stop:2]]
      found[f'{stack}/layers/mlp/wo/adamix/{half}/draw'] = jnp.asarray(np.stack(own))
    start = stop
  return unflatten(found)


def compute(case_dir: pathlib.Path) -> dict[str, np.ndarray]:
  """Recomputes the case of SPoT's first prompts.

  Args:
    case_dir: folder with inputs.npz: `source/<i>`, `target`, `random_weights`.
  """
  with np.load(case_dir / 'inputs.npz') as inputs:
    names = sorted((n for n in inputs if n.startswith('source/')),
                   key=lambda n: int(n.partition('/')[2]))
    sources = np.stack([inputs[name] for name in names])
    target, weights = inputs['target'], inputs['random_weights']
  return {'single': np.asarray(sources[0]),
          'cosine_sums': np.asarray(spot.cosine_sums(sources, target)),
          'similarity_weighted': np.asarray(
              spot.mix(sources, spot.similarity_weights(sources, target))),
          'random_weighted': np.asarray(spot.mix(sources, weights))}
