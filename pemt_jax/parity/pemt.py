"""PEMT cases: loss, logits, gates, gradients and greedy tokens from the original's state."""

from __future__ import annotations

from collections.abc import Collection
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pemt_jax.interop import files, pemt_original
from pemt_jax.interop.pemt_layout import PemtLayout
from pemt_jax.methods import pemt
from pemt_jax.methods.base import Method, boxed_shapes, make_loss
from pemt_jax.models.layers import Compute
from pemt_jax.models.segments import cut, join
from pemt_jax.models.t5 import T5
from pemt_jax.parity import common, pemt_baselines
from pemt_jax.trees import Tree, merge


def method_of(layout: PemtLayout, options: dict[str, Any],
              trained: Collection[str] = ()) -> Method:
  """Returns the method that a case ran, with the published behaviours.

  Args:
    layout: parts of the case's state.
    options: `method_config` of the case.
    trained: original names of the trained parameters.

  Raises:
    UserError: the case ran another method.
  """
  config = layout.backbone
  baseline = pemt_baselines.method_of(layout, options, trained)
  if baseline is not None:
    return baseline
  scaling = options.get('lora_scaling')
  if scaling is None and 'lora_alpha' in options:
    scaling = options['lora_alpha'] / options['lora_r']
  scaling = 1.0 if scaling is None else float(scaling)
  activation = options.get('non_linearity', 'gelu_new')
  norms = bool(options.get('unfreeze_layer_norms', layout.has_target_adapter))
  single = len(layout.sources) == 1
  if single and not layout.has_target_adapter:
    stage1 = pemt.Stage1Options(
        expert=layout.expert_form, rank=max(layout.expert_width, 1),
        alpha=scaling * max(layout.expert_width, 1),
        reduction=max(config.mlp // max(layout.expert_width, 1), 1), activation=activation,
        prompt=layout.prompt_length > 0, tune_norms=norms)
    return pemt.stage1(stage1, config, layout.prompt_length)
  stage2 = pemt.Stage2Options(
      prompt=layout.prompt_length > 0, correlation=bool(layout.source_lengths),
      target_adapter=layout.has_target_adapter,
      reduction=config.embed // max(layout.target_width, 1), activation=activation,
      adapter_pre_norm='pre' in layout.adapter_norms,
      adapter_post_norm='post' in layout.adapter_norms, tune_adapter_norms=False,
      encoder_layers=layout.encoder_adapter_layers, decoder_layers=layout.decoder_adapter_layers,
      sparsity_weight=_weight(options), gate_temperature=options.get('gate_temperature', 1.0),
      tune_norms=norms, mask_padding=False,
      pool_without_prompt='first' if layout.expert_form == 'lora' else 'all')
  bank = pemt.BankShape(layout.expert_form, len(layout.sources), layout.expert_width, scaling,
                        activation, layout.source_lengths)
  return pemt.stage2(stage2, config, layout.prompt_length, bank)


def _weight(options: dict[str, Any]) -> float:
  weight = options.get('imbalance_loss_weight', 0.1)
  return float(weight) if isinstance(weight, (int, float)) else 0.0


def compute(case_dir: pathlib.Path, run: Compute = Compute()) -> dict[str, np.ndarray]:
  """Computes every array that a model case names.

  Args:
    case_dir: folder with case.json, state.safetensors and inputs.npz.
    run: how to compute.

  Returns:
    name -> array, under the original's names.

  Raises:
    UserError: the case ran a method that is not PEMT's, its files do not fit it, or it requires an
      array that the method does not have.
  """
  case, inputs = common.read_case(case_dir)
  layout = pemt_original.layout_from_case(case)
  options = pemt_baselines.with_draws(case['method_config'], inputs)
  method = method_of(layout, options, case.get('trainable', ()))
  state = files.read_tensors(case_dir / 'state.safetensors')
  variables = jax.tree.map(jnp.asarray, pemt_original.state_to_tree(state, layout))
  variables['constants'] |= pemt_baselines.draws_of(inputs, layout)
  batch = common.read_batch(inputs)
  model = T5(layout.backbone, method.plan, run)
  wanted, shapes = case['arrays'], nn.meta.unbox(boxed_shapes(model))['params']
  parts = common.split_named(variables['params'], pemt_original.table_of(layout), wanted)
  tuned, frozen = (cut(part, shapes) for part in parts)
  variables['params'] = merge(frozen, tuned)
  outputs = _forward(model, variables, batch)
  loss_fn = make_loss(model, method)
  (loss, metrics), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
      tuned, frozen, variables['constants'], batch, None)
  outputs |= {'loss': loss, 'ce_loss': metrics['cross_entropy_nats']}
  outputs |= pemt_original.grads_to_named(join(grads), layout)
  weights = [metrics[name] for name in sorted(metrics) if re.fullmatch(r'moe_weight_\d+', name)]
  if weights:
    order = sorted((n for n in metrics if n.startswith('moe_weight_')),
                   key=lambda n: int(n.rsplit('_', 1)[1]))
    outputs['moe_weight_metric'] = jnp.stack([metrics[name] for name in order])
  if 'greedy_tokens' in wanted:
    length = wanted['greedy_tokens']['shape'][1]
    outputs['greedy_tokens'] = common.greedy(model, variables, batch, length)
  return common.named_results(outputs, case, case_dir, method.name)



def _forward(model: T5, variables: Tree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
  states, logits, aux = common.forward(model, variables, batch)
  outputs = {'logits': logits, 'encoder_last_hidden_state': states}
  for short, stack in (('enc', 'encoder'), ('dec', 'decoder')):
    for layer, gate in enumerate(aux.get(f'{stack}/mlp/wo/pemt/gate', ())):
      outputs[f'{short}/{layer}/gate'] = gate[:, None, :]
      outputs[f'{short}/{layer}/gate_dense'] = gate[:, None, :]
    for layer, loss in enumerate(aux.get(f'{stack}/mlp/wo/pemt/misalignment', ())):
      outputs[f'{short}/{layer}/imbalance_loss'] = loss
  return outputs
