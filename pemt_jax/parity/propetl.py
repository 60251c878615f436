"""ProPETL on T5: recorded forward passes, masks, gradients, outputs, updates and weight files."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pemt_jax.experts.masks import top_mask, zeros_of
from pemt_jax.interop import files, propetl_original
from pemt_jax.interop.propetl_original import ProPETLLayout, layout_from_flags, options_of
from pemt_jax.methods import baselines, propetl
from pemt_jax.methods.base import LossForm, Method, make_loss
from pemt_jax.models import t5_config
from pemt_jax.models.layers import Compute
from pemt_jax.models.t5 import T5
from pemt_jax.parity import common
from pemt_jax.training import schedules
from pemt_jax.training.optimisers import AdamWOptions, adamw, clip_by_global_norm
from pemt_jax.training.rules import split_params
from pemt_jax.trees import Tree, merge

Case = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]


def layout_of(case: Case) -> ProPETLLayout:
  """The layout of a case's state.

  Raises:
    UserError: `model_config` is not a T5's, or the flags describe no layout.
  """
  config = t5_config.from_hf(case['model_config'], 'model_config of case.json')
  config = dataclasses.replace(config, scaled_head=True)
  return layout_from_flags(case['method_config'], config, case['aliases'])


def method_of(layout: ProPETLLayout, flags: Mapping[str, Any]) -> Method:
  """Returns the method that a case ran, with the published behaviours."""
  if not layout.size:
    return baselines.full(baselines.FullOptions(), layout.config, 0)
  return propetl.propetl(options_of(layout, flags), layout.config, 0)


def batch_of(inputs: Arrays, flags: Mapping[str, Any], task: str | None) -> dict[str, jax.Array]:
  """Original inputs -> a batch of one task; labels are padded with the padding id 0."""
  own = dict(inputs)
  if 'labels' in own:
    own['labels'] = np.where(own['labels'] == 0, -100, own['labels'])
  batch = common.read_batch(own)
  if task is not None:
    number = flags['tasks'].index(task)
    batch['task_ids'] = jnp.full(batch['inputs'].shape[:1], number, jnp.int32)
  return batch


def compute(case_dir: pathlib.Path, run: Compute = Compute()) -> dict[str, np.ndarray]:
  """Computes every array that a case names.

  Args:
    case_dir: folder with case.json, inputs.npz and, for models, state.safetensors.
    run: how to compute.

  Returns:
    name -> array, under the original's names.

  Raises:
    UserError: the files do not fit the case, or it requires an array that the method lacks.
  """
  case, inputs = common.read_case(case_dir)
  if case['case'].startswith('op_'):
    return common.named_results(_operator(inputs), case, case_dir, 'mask')
  layout, flags = layout_of(case), case['method_config']
  method = method_of(layout, flags)
  state = files.read_tensors(case_dir / 'state.safetensors')
  params = jax.tree.map(jnp.asarray, propetl_original.state_to_tree(state, layout))
  model = T5(layout.config, method.plan, run)
  if 'losses' in case['arrays']:
    found = _train(model, method, params, inputs, case)
  elif 'task_sequence' not in flags and 'task' not in flags:
    found = _round_trip(model, params, inputs, case, case_dir)
  else:
    found = _model(model, method, params, batch_of(inputs, flags, flags['task']), case)
  return common.named_results(found, case, case_dir, method.name)


def _operator(inputs: Arrays) -> dict[str, Any]:
  """Masks of given scores and their gradients; the record has a loss of zero beside them."""
  found = {'loss': np.zeros(())}
  for case in {name.partition('/')[0] for name in inputs}:
    scores, density = jnp.asarray(inputs[f'{case}/scores']), float(inputs[f'{case}/k'])
    found |= {f'{case}/mask': top_mask(scores, density),
              f'{case}/n_zero': zeros_of(scores.size, density)}
    if f'{case}/coef' in inputs:
      coefficients = inputs[f'{case}/coef']
      found[f'{case}/grad_scores'] = jax.grad(
          lambda s, d=density, c=coefficients: jnp.sum(top_mask(s, d) * c))(scores)
  return found


def _named(tree: Tree, layout: ProPETLLayout, start: str) -> dict[str, np.ndarray]:
  named = propetl_original.tree_to_state(tree, layout, partial=True)
  return {f'{start}{name}': value for name, value in named.items()}


def _model(model: T5, method: Method, params: Tree, batch: Mapping[str, jax.Array],
           case: Case) -> dict[str, Any]:
  """Losses, logits, masks, gradients and outputs of one batch."""
  layout, flags, variables = layout_of(case), case['method_config'], {'params': params}
  states, logits, _ = common.forward(model, variables, batch)
  found = {'encoder_last_hidden_state': states, 'logits': logits}
  frozen, tuned = split_params(params, method.tuned)
  loss_fn = make_loss(model, method, LossForm(flags['label_smoothing'], 'sum'))
  (loss, metrics), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
      tuned, frozen, {}, batch, None)
  mean = metrics['cross_entropy_nats']
  found |= {'loss': loss, 'nll_sum': mean * jnp.sum(batch['targets_mask']), 'loss_ce_mean': mean}
  found |= _named(grads, layout, 'grad/')
  if layout.size:
    masks = propetl_original.masks_of(params, layout, flags['sparsity'])
    found |= {f'mask/{name}': mask for name, mask in masks.items()}
  for beams in (1, 3):
    wanted = case['arrays'].get(f'generated_beams{beams}')
    if wanted:
      tokens = common.generated(model, variables, batch, flags['generate_max_length'], beams)
      found[f'generated_beams{beams}'] = tokens[:, :wanted['shape'][1]]
  return found


def _round_trip(model: T5, params: Tree, inputs: Arrays, case: Case,
                case_dir: pathlib.Path) -> dict[str, Any]:
  """Logits of every task with the weights of the exported file in place of those of the state."""
  layout, flags, found = layout_of(case), case['method_config'], {}
  exported = case_dir / 'propetl_weight.safetensors'
  params = merge(params, propetl_original.read_weights(exported, layout))
  for task in flags['tasks']:
    batch = batch_of(inputs, flags, task)
    found[f'logits/{task}'] = common.forward(model, {'params': params}, batch)[1]
  return found


def optimiser_options(flags: Mapping[str, Any]) -> AdamWOptions:
  """AdamW of the original: scores of each task and layer have a counter of their own."""
  rows = ((r'(.*/)?propetl[a-z_]*/layer_task_.*', 2),
          (r'(.*/)?propetl[a-z_]*/(task|language|layer_[a-z_]+)/.*', 1))
  counters = 'nonzero_gradient' if flags['zero_grad_set_to_none'] else 'from_first_gradient'
  return AdamWOptions(*flags['adam_betas'], flags['adam_eps'], flags['weight_decay'],
                      no_decay=('.*/bias',), counters=counters, row_axes=rows)


def _train(model: T5, method: Method, params: Tree, inputs: Arrays,
           case: Case) -> dict[str, Any]:
  """Losses, rates and trained tensors of a few updates."""
  layout, flags = layout_of(case), case['method_config']
  frozen, tuned = split_params(params, method.tuned)
  loss_fn = make_loss(model, method, LossForm(flags['label_smoothing'], 'sum'))
  optimiser = adamw(optimiser_options(flags), method.tuned)
  form = schedules.FirstSteps('scores', flags['freeze_adapter_for_steps'], 3.0)
  schedule = schedules.grouped(schedules.linear_schedule, ('prototype', 'scores'),
                               {'scores': flags['mask_lr_ratio']}, form)

  @jax.jit
  def step(tuned, moments, number, batch):
    (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(tuned, frozen, {}, batch, None)
    grads, norm = clip_by_global_norm(grads, flags['max_grad_norm'])
    rates = schedule(number, flags['learning_rate'], flags['warmup_steps'], flags['total_steps'])
    updates, moments = optimiser.update(grads, moments, tuned, learning_rate=rates)
    return optax.apply_updates(tuned, updates), moments, loss, norm, rates

  moments, found, losses, norms, columns = optimiser.init(tuned), {}, [], [], []
  for number, task in enumerate(flags['task_sequence']):
    own = {name.partition('/')[2]: value for name, value in inputs.items()
           if name.startswith(f'step{number}/')}
    tuned, moments, loss, norm, rates = step(tuned, moments, number, batch_of(own, flags, task))
    losses, norms = [*losses, loss], [*norms, norm]
    columns.append([rates['prototype'], rates['prototype'], rates['scores']])
    found |= _named(tuned, layout, f'params_after_step{number}/')
  return found | {'losses': np.stack(losses), 'loss': losses[0],
                  'grad_norms_before_clip': np.stack(norms), 'lr_per_group': np.array(columns)}
