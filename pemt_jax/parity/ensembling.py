"""Model cases of weight ensembling: deltas on T5, greedy tokens, training steps, single modules."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pemt_jax.interop import ensembling_original, files
from pemt_jax.interop.ensembling_original import EnsemblingLayout, layout_from_flags
from pemt_jax.methods import adapters, baselines, low_rank, prefixes, zoo
from pemt_jax.methods.base import Method, make_loss
from pemt_jax.models import t5_config
from pemt_jax.models.layers import Compute
from pemt_jax.models.t5 import T5
from pemt_jax.parity import common
from pemt_jax.training.adafactor import adafactor
from pemt_jax.training.optimisers import clip_by_global_norm
from pemt_jax.trees import Tree

Case = Mapping[str, Any]


def layout_of(case: Case) -> EnsemblingLayout:
  """The layout of a case's state.

  Raises:
    UserError: `model_config` is not a T5's.
  """
  config = t5_config.from_hf(case['model_config'], 'model_config of case.json')
  return layout_from_flags(case['model_config'], config,
                           case['method_config'].get('prompt_num', 0))


def method_of(layout: EnsemblingLayout, flags: Mapping[str, Any]) -> Method:
  """Returns the method whose deltas a layout holds.

  Args:
    layout: of the state.
    flags: of the original program.
  """
  config, parts = layout.config, []
  if layout.adapter_size:
    parts.append(_adapter(layout))
  if layout.lora_form:
    parts.append(_low_rank(layout, flags))
  if layout.prefix_length:
    parts.append(_prefix(layout))
  if layout.prompt_length:
    parts.append(baselines.prompt(baselines.PromptOptions(), config, layout.prompt_length))
  if not parts:
    return baselines.full(baselines.FullOptions(), config, 0)
  return zoo.combine(zoo.JOINT.join(part.name for part in parts), parts)


def _adapter(layout: EnsemblingLayout) -> Method:
  if layout.intrinsic:
    return low_rank.intrinsic_adapter(
        low_rank.IntrinsicAdapterOptions(layout.adapter_size, layout.intrinsic), layout.config, 0)
  options = dict(adapters.ENSEMBLING) | {'size': layout.adapter_size}
  return adapters.houlsby_ensembling(adapters.FamilyOptions(**options), layout.config, 0)


def _low_rank(layout: EnsemblingLayout, flags: Mapping[str, Any]) -> Method:
  sizes = {'rank': layout.lora_rank, 'alpha': float(flags['lora_alpha'])}
  stage2 = flags.get('apply_lora_BR') or flags.get('apply_bias_stage2')
  maker, options = {
      'lora': (low_rank.lora_ensembling, low_rank.EnsemblingLoRAOptions),
      'lora_mlp': (low_rank.lora_mlp, low_rank.LowRankOptions),
      'lora_br': (low_rank.lora_br, low_rank.LowRankBiasOptions),
      'bias_mlp': (low_rank.bias_mlp, low_rank.LowRankBiasOptions),
      'intrinsic_lora': (low_rank.intrinsic_lora, low_rank.IntrinsicLoRAOptions),
  }[layout.lora_rule]
  if layout.lora_rule in ('lora_br', 'bias_mlp'):
    sizes['tuned'] = 'vector' if stage2 else 'all'
  if layout.intrinsic:
    sizes['dimension'] = layout.intrinsic
  return maker(options(**sizes), layout.config, 0)


def _prefix(layout: EnsemblingLayout) -> Method:
  if layout.intrinsic:
    return prefixes.intrinsic_prefix(
        prefixes.IntrinsicPrefixOptions(layout.prefix_length, layout.intrinsic), layout.config, 0)
  return prefixes.prefix(
      prefixes.PrefixOptions(layout.prefix_length, layout.prefix_rank), layout.config, 0)


def compute(case_dir: pathlib.Path, run: Compute = Compute()) -> dict[str, np.ndarray]:
  """Computes every array that a model case names.

  Args:
    case_dir: folder with case.json, inputs.npz and, but for projections, state.safetensors.
    run: how to compute.

  Returns:
    name -> array, under the original's names.

  Raises:
    UserError: the files do not fit the case, or it requires an array that the method lacks.
  """
  case, inputs = common.read_case(case_dir)
  layout = layout_of(case)
  method = method_of(layout, case['model_config'])
  state = files.read_tensors(case_dir / 'state.safetensors')
  variables = jax.tree.map(jnp.asarray, ensembling_original.state_to_tree(state, layout))
  # The original hides padded targets, which shows in their own logits only.
  model = T5(layout.config, method.plan, dataclasses.replace(run, mask_targets=True))
  if 'generated_ids' in case['arrays']:
    found = {'generated_ids': common.greedy(model, variables, common.read_batch(inputs),
                                            case['method_config']['max_length'])}
  elif 'losses' in case['arrays']:
    found = _train(model, method, variables, inputs, case)
  else:
    found = _model(model, method, variables, common.read_batch(inputs), case)
  return common.named_results(found, case, case_dir, method.name)



def _model(model: T5, method: Method, variables: Tree, batch: Mapping[str, jax.Array],
           case: Case) -> dict[str, Any]:
  """Loss, logits, gradients of one batch."""
  layout = layout_of(case)
  states, logits, _ = common.forward(model, variables, batch)
  found = {'encoder_last_hidden_state': states, 'logits': logits}
  tuned, frozen = common.split_named(
      variables['params'], ensembling_original.table_of(layout), case['arrays'])
  loss_fn = make_loss(model, method)
  (loss, _), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
      tuned, frozen, variables['constants'], batch, None)
  named = ensembling_original.tree_to_state(grads, layout, partial=True)
  return found | {'loss': loss} | {f'grad/{name}': value for name, value in named.items()}


def _train(model: T5, method: Method, variables: Tree, inputs: Mapping[str, np.ndarray],
           case: Case) -> dict[str, Any]:
  """Losses, gradient norms and deltas of a few updates: clip, then Adafactor at a constant rate."""
  layout, options = layout_of(case), case['method_config']
  tuned, frozen = common.split_named(
      variables['params'], ensembling_original.table_of(layout), case['arrays'], 'after1/')
  loss_fn, optimiser = make_loss(model, method), adafactor()

  @jax.jit
  def step(tuned, moments, batch):
    (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        tuned, frozen, variables['constants'], batch, None)
    grads, norm = clip_by_global_norm(grads, options['max_grad_norm'])
    updates, moments = optimiser.update(grads, moments, tuned, learning_rate=options['lr'])
    return optax.apply_updates(tuned, updates), moments, loss, norm

  moments, found, losses, norms = optimiser.init(tuned), {}, [], []
  for number in range(options['steps']):
    batch = {name.rpartition('/')[0]: value for name, value in inputs.items()
             if name.endswith(f'/{number}')}
    tuned, moments, loss, norm = step(tuned, moments, common.read_batch(batch))
    losses, norms = [*losses, loss], [*norms, norm]
    named = ensembling_original.tree_to_state(tuned, layout, partial=True)
    found |= {f'after{number + 1}/{name}': value for name, value in named.items()}
  return found | {'losses': np.stack(losses), 'grad_norm_before_clip': np.stack(norms)}
