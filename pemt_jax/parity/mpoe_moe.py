"""Routed feed-forwards: recorded layers, and T5 whose every feed-forward is routed."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.experts.feed_forward import DenseExperts, MPOExperts, Work
from pemt_jax.experts.grouped import ranks
from pemt_jax.experts.mpo_shapes import Factors
from pemt_jax.experts.switch import Switch
from pemt_jax.experts.token_routing import TokenRouting
from pemt_jax.experts.top2 import TopTwo
from pemt_jax.interop import files, mpoe_moe_names, mpoe_names, names
from pemt_jax.interop.mpoe_moe_names import RoutedLayout
from pemt_jax.methods import baselines, moe, mpo, zoo
from pemt_jax.methods.base import LossForm, Method, make_loss
from pemt_jax.models import t5_config
from pemt_jax.models.layers import Compute
from pemt_jax.models.sites import Aux, Site
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import T5Config
from pemt_jax.parity import common, mpoe_matrices
from pemt_jax.training.rules import split_params
from pemt_jax.trees import flatten

LOSS_WEIGHT = 0.01  # of the load-balancing loss, which the original computes and leaves out
Case = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]


def layout_of(case: Case) -> RoutedLayout | None:
  """What the routed feed-forwards of a case are; None where they are not routed."""
  flags, model = case['method_config'], case['model_config']
  if not flags['moe_type']:
    return None
  rows, cols = tuple(flags['mpo_shape_model']), tuple(flags['mpo_shape_ff'])
  factors = {'wi': Factors(rows, cols), 'wo': Factors(cols, rows)}
  return RoutedLayout(flags['moe_type'], flags['num_experts'], model['d_model'], model['d_ff'],
                      factors if 'mlp' in flags['mpo_layers'] else None, flags['linear_trunc'])


def delta_of(layout: RoutedLayout, flags: Mapping[str, Any]) -> TokenRouting:
  """The delta of a layout with the published behaviours."""
  biases = 'none' if layout.kind == 'switch' else 'shared'
  experts = DenseExperts(layout.mlp, biases=biases)
  if layout.factors is not None:
    experts = MPOExperts(layout.mlp, biases=biases, embed=layout.embed, limit=layout.limit,
                         factors=tuple(layout.factors.items()))
  if layout.kind == 'switch':
    capacity = flags['capacity_factor'] if flags.get('drop_tokens') else None
    return Switch(experts, layout.count, eval_capacity_factor=capacity, dropped='input',
                  scaling='probability' if flags['is_scale_prob'] else 'gradient')
  return TopTwo(experts, layout.count, policy=flags.get('policy', 'random'),
                eval_capacity_factor=2.0,
                eval_policy=flags.get('policy', flags.get('second_policy_eval', 'random')))


def layer(case_dir: pathlib.Path) -> dict[str, np.ndarray]:
  """Recomputes a recorded layer: output, routing, loss and gradients."""
  case, inputs = common.read_case(case_dir)
  layout, flags = layout_of(case), case['method_config']
  delta = delta_of(layout, flags)
  table = names.Table(*_as_tuple(mpoe_moe_names.weights_of(layout, '', '')))
  state = files.read_tensors(case_dir / 'state.safetensors')
  params = jax.tree.map(jnp.asarray, mpoe_moe_names.state_to_tree(state, table))
  training = bool(flags.get('training_mode'))
  logits = delta.logits(flatten(params), jnp.asarray(inputs['x']))
  draws = _draws(delta, logits, inputs)
  site = Site('encoder/mlp', layout.embed, layout.embed, 'embed', 'embed', jnp.float32)

  def loss_fn(params, x):
    values = flatten(params)
    routes = delta.route(delta.logits(values, x), jnp.ones(x.shape[:2]), training, draws)
    y = delta.mixed(delta.experts.kernels(values), x, routes, Work(None, None, site))
    loss = jnp.sum(y * inputs['loss_weights'])
    if layout.kind == 'moe':
      loss += flags['loss_coef'] * routes.aux['balance']
    return loss, (y, routes)

  (loss, (y, routes)), (grads, at_input) = jax.jit(
      jax.value_and_grad(loss_fn, (0, 1), has_aux=True))(params, jnp.asarray(inputs['x']))
  aux = routes.aux | {'weight': routes.weight}
  found = {'y': y, 'loss': loss, 'grad_input': at_input, **_routing(layout, flags, aux)}
  frozen = set(case['frozen'])
  named = mpoe_moe_names.tree_to_state(grads, table)
  found |= {f'grad/{name}': value for name, value in named.items() if name not in frozen}
  return common.named_results(found, case, case_dir, layout.kind)


def _as_tuple(found):
  weights, aliases = found
  return tuple(weights), aliases


def _draws(delta: TokenRouting, logits: jax.Array, inputs: Arrays) -> jax.Array | None:
  """The recorded draws as those of each token.

  A full expert keeps the first of a permutation of its tokens; a token's draw is its place there.
  """
  if 'probs' in inputs:
    return jnp.asarray(inputs['probs'])
  permutations = [inputs[name] for name in sorted(inputs) if name.startswith('perm_')]
  if not permutations:
    return None
  chosen = np.asarray(jnp.argmax(logits, axis=-1)).reshape(-1)
  capacity = int(delta.eval_capacity_factor * chosen.size / delta.count)
  draws = np.zeros(chosen.shape, np.float32)
  for expert in range(delta.count):
    own = np.flatnonzero(chosen == expert)
    if own.size > capacity:
      draws[own[permutations.pop(0)]] = np.arange(own.size)
  return jnp.asarray(draws.reshape(logits.shape[:2]))


def _routing(layout: RoutedLayout, flags: Mapping[str, Any], aux: Aux) -> dict[str, Any]:
  """What the original records of a router, from the auxiliaries of its layer."""
  probability, chosen = aux['probability'], aux['chosen']
  flat = probability.reshape(-1, layout.count)
  if layout.kind == 'switch':
    routes = jnp.argmax(flat, axis=-1)
    counts = jnp.sum(jax.nn.one_hot(routes, layout.count), axis=0)
    return {'route_prob': flat, 'route_prob_sum': jnp.sum(flat, axis=0), 'routes': routes,
            'counts': counts, 'n_dropped': jnp.sum(chosen == layout.count)}
  batch, length, choices = chosen.shape
  by_choice = chosen.swapaxes(1, 2).reshape(batch, -1)
  place = ranks(by_choice, layout.count).reshape(batch, choices, length).swapaxes(1, 2)
  slot = jax.nn.one_hot(place, flags['capacity']) * aux['weight'][..., None]
  combine = jnp.einsum('blke,blkc->blec', jax.nn.one_hot(chosen, layout.count), slot)
  return {'raw_gates': probability, 'combine': combine, 'dispatch': combine != 0,
          'aux_loss': LOSS_WEIGHT * aux['balance'], 'gate_loss': aux['balance']}


def method_of(config: T5Config, flags: Mapping[str, Any], layout: RoutedLayout | None) -> Method:
  """What a T5 of the original trains: routed feed-forwards, factorised matrices, all the rest."""
  if layout is None:
    return baselines.full(baselines.FullOptions(), config, 0)
  factors = ((name, own.rows, own.cols) for name, own in (layout.factors or {}).items())
  common_options = {'count': layout.count, 'experts': 'dense' if layout.factors is None else 'mpo',
                    'rank': layout.limit, 'factors': tuple(factors),
                    'freeze': (2,) if flags['tensor_learn'] and layout.factors else ()}
  if layout.kind == 'switch':
    scaling = 'probability' if flags['is_scale_prob'] else 'gradient'
    options = moe.SwitchOptions(**common_options, scaling=scaling)
    methods = [moe.switch(options, config, 0)]
  else:
    options = moe.TopTwoOptions(**common_options, eval_policy=flags['second_policy_eval'],
                                eval_capacity_factor=2.0)
    methods = [moe.top2(options, config, 0)]
  others = mpoe_matrices.options_of(flags | {'mpo_layers': flags['mpo_layers'] + ',mlp'}, 't5')
  parts = tuple(part for part in others.components if part != 'mlp')
  if parts:
    others = dataclasses.replace(others, components=parts, freeze_in=(
        ('word_embed',) if 'word_embed' in parts else others.freeze_in))
    methods.append(mpo.mpo(others, config, 0))
  return methods[0] if len(methods) == 1 else zoo.combine('mpoe', methods)


def t5(case_dir: pathlib.Path, run: Compute = Compute()) -> dict[str, np.ndarray]:
  """Recomputes a T5 with routed feed-forwards: losses, logits, states, routing, gradients."""
  case, inputs = common.read_case(case_dir)
  flags, layout = case['method_config'], layout_of(case)
  config = t5_config.from_hf(case['model_config'], 'model_config of case.json')
  method = method_of(config, flags, layout)
  table = mpoe_names.with_cores(mpoe_moe_names.t5_table(config, layout), method.plan)
  state = files.read_tensors(case_dir / 'state.safetensors')
  params = jax.tree.map(jnp.asarray, mpoe_moe_names.state_to_tree(state, table))
  model, batch = T5(config, method.plan, run), common.read_batch(inputs)
  frozen, tuned = split_params(params, method.tuned)
  found = mpoe_matrices.t5_results(model, method, params, batch)
  form = LossForm(0.1, 'sum') if case['case'].endswith('label_smoothing') else LossForm()
  (loss, _), grads = jax.jit(jax.value_and_grad(make_loss(model, method, form), has_aux=True))(
      tuned, frozen, {}, batch, None)
  named = mpoe_moe_names.tree_to_state(grads, table, partial=True)
  found |= {'loss': loss} | {f'grad/{name}': value for name, value in named.items()}
  if layout is not None:
    aux = common.forward(model, method.variables(tuned, frozen, {}), batch)[2]
    found |= _of_layers(config, layout, aux, case['arrays'])
  return common.named_results(found, case, case_dir, method.name)


def _of_layers(config: T5Config, layout: RoutedLayout, aux: Aux,
               wanted: Mapping[str, Any]) -> dict[str, Any]:
  """What the original records of every router, by its names."""
  found = {}
  for stack, layer, name in mpoe_moe_names.places(config, layout):
    start = f'{stack}/mlp/{mpoe_moe_names.RULES[layout.kind]}/'
    own = {key.removeprefix(start): value[layer] for key, value in aux.items()
           if key.startswith(start)}
    capacity = wanted.get(f'{name}/combine', {'shape': (0,)})['shape'][-1]
    found |= {f'{name}/{kind}': value
              for kind, value in _routing(layout, {'capacity': capacity}, own).items()}
  return found
