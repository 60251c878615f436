"""RoBERTa cases of ProPETL: states, masks, losses, gradients, training steps."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pemt_jax.deltas.record import Record
from pemt_jax.interop import files, propetl_roberta as original
from pemt_jax.interop.propetl_roberta import RobertaLayout
from pemt_jax.methods import propetl_roberta
from pemt_jax.methods.base import Method
from pemt_jax.methods.classification import make_text_loss
from pemt_jax.models import roberta_config
from pemt_jax.models.layers import Compute
from pemt_jax.models.roberta import Roberta
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.parity import common
from pemt_jax.training.optimisers import AdamWOptions, adamw, clip_by_global_norm
from pemt_jax.training.schedules import linear_schedule

Case = Mapping[str, Any]
# A layer's input, and its attention with the rows in front.
_RECORDS = (Rule('record', 'encoder/self_attention', Record()),
            Rule('record', 'encoder/self_attention/q', Record()))


def layout_of(case: Case) -> RobertaLayout:
  """The layout of a case's state.

  Raises:
    UserError: `model_config` is not a RoBERTa's, or an unknown form.
  """
  config = roberta_config.from_hf(case['model_config'], 'model_config of case.json')
  return original.layout_from_flags(case['method_config'], config,
                                    case['model_config']['num_labels'])


def method_of(layout: RobertaLayout, flags: Mapping[str, Any]) -> Method:
  """Returns the method that a case ran, with the published behaviours."""
  if not layout.form:
    return Method('full', Plan(), (('pooler/.*', 'frozen'), ('.*', 'backbone')))
  return propetl_roberta.propetl_roberta(original.options_of(layout, flags), layout.config)


def read_batch(inputs: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
  """Original inputs -> a batch."""
  return {'inputs': jnp.asarray(inputs['input_ids'], jnp.int32),
          'inputs_mask': jnp.asarray(inputs['attention_mask'], jnp.float32),
          'labels': jnp.asarray(inputs['labels'])}


def compute(case_dir: pathlib.Path, run: Compute = Compute()) -> dict[str, np.ndarray]:
  """Computes every array that a model case names.

  Args:
    case_dir: folder with case.json, state.safetensors and inputs.npz.
    run: how to compute.

  Returns:
    name -> array, under the original's names.

  Raises:
    UserError: the files do not fit the case, or it requires an array that the method lacks.
  """
  case, inputs = common.read_case(case_dir)
  layout = layout_of(case)
  method = method_of(layout, case['method_config'])
  state = files.read_tensors(case_dir / 'state.safetensors')
  params = jax.tree.map(jnp.asarray, original.state_to_tree(state, layout))
  compute_one = _train if 'losses' in case['arrays'] else _model
  found = compute_one(layout, method, params, inputs, case, run)
  return common.named_results(found, case, case_dir, method.name)



def _model(layout, method, params, inputs, case, run):
  """Loss, logits, states, masks, prefixes and gradients of one batch."""
  batch = read_batch(inputs)
  # Records stand inside, where they see the rows that a prefix has put in front.
  shown = Roberta(layout.config, Plan((*_RECORDS, *method.plan.rules)), run, layout.labels)

  @jax.jit
  def forward(params, batch):
    encoded = shown.apply({'params': params}, batch['inputs'], batch['inputs_mask'],
                          method='encode')
    return encoded, shown.apply({'params': params}, encoded, method='classify')[0]

  encoded, logits = forward(params, batch)
  states = [*encoded.aux['encoder/self_attention/q/record/state'], encoded.states]
  found = {'logits': logits} | {f'hidden/{i}': state for i, state in enumerate(states)}
  attention = encoded.aux['encoder/self_attention/record/state']
  if attention.prefix_key is not None:
    for layer, (key, value) in enumerate(zip(attention.prefix_key, attention.prefix_value)):
      found |= {f'prefix/{layer}/key': key[None], f'prefix/{layer}/value': value[None]}
  if layout.shared:
    masks = original.masks_of(params, layout, case['method_config']['sparsity'])
    found |= {f'mask/{name}': mask for name, mask in masks.items()}
  model = Roberta(layout.config, method.plan, run, layout.labels)
  tuned, frozen = common.split_named(params, original.table_of(layout), case['arrays'])
  value_and_grad = jax.jit(jax.value_and_grad(make_text_loss(model, method), has_aux=True))
  (loss, _), grads = value_and_grad(tuned, frozen, {}, batch, None)
  named = original.tree_to_state(grads, layout, partial=True)
  return found | {'loss': loss} | {f'grad/{name}': value for name, value in named.items()}


def _train(layout, method, params, inputs, case, run):
  """Losses, gradient norms, rates and parameters of a few updates."""
  flags = case['method_config']
  model = Roberta(layout.config, method.plan, run, layout.labels)
  tuned, frozen = common.split_named(params, original.table_of(layout), case['arrays'],
                                     'params_after_step0/')
  loss_fn = make_text_loss(model, method)
  rates = {group: flags['mask_learning_rate' if group == 'scores' else 'learning_rate']
           for _, group in method.tuned if group != 'frozen'}
  options = AdamWOptions(epsilon=flags['adam_eps'], weight_decay=flags['weight_decay'],
                         no_decay=propetl_roberta.NO_DECAY)
  optimiser = adamw(options, method.tuned)

  @jax.jit
  def step(tuned, moments, batch, number):
    (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(tuned, frozen, {}, batch, None)
    grads, norm = clip_by_global_norm(grads, flags['max_grad_norm'])
    now = {group: linear_schedule(number, rate, flags['warmup_steps'], flags['total_steps'])
           for group, rate in rates.items()}
    updates, moments = optimiser.update(grads, moments, tuned, learning_rate=now)
    shown = jnp.stack([now['scores'], now['prototype'], now['prototype']])
    return optax.apply_updates(tuned, updates), moments, (loss, norm, shown)

  moments, found, rows = optimiser.init(tuned), {}, []
  steps = case['arrays']['losses']['shape'][0]
  for number in range(steps):
    batch = {name: inputs[f'step{number}/{name}']
             for name in ('input_ids', 'attention_mask', 'labels')}
    tuned, moments, row = step(tuned, moments, read_batch(batch), number)
    rows.append(row)
    named = original.tree_to_state(tuned, layout, partial=True)
    found |= {f'params_after_step{number}/{name}': value for name, value in named.items()}
  losses, norms, shown = (np.stack(column) for column in zip(*rows, strict=True))
  return found | {'losses': losses, 'grad_norms_before_clip': norms, 'lr_per_group': shown,
                  'loss': losses[0]}
