"""Routed feed-forwards: recorded layers, and T5 whose every feed-forward is routed."""

from __future__ import annotations

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
from pemt_jax.experts.token_routing import Routes, TokenRouting
from pemt_jax.experts.top2 import TopTwo
from pemt_jax.interop import files, mpoe_moe_names, names
from pemt_jax.interop.mpoe_moe_names import RoutedLayout
from pemt_jax.models.sites import Site
from pemt_jax.parity import common
from pemt_jax.trees import Tree, flatten, unflatten

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
  found = {'y': y, 'loss': loss, 'grad_input': at_input, **_routing(layout, flags, routes)}
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


def _routing(layout: RoutedLayout, flags: Mapping[str, Any], routes: Routes) -> dict[str, Any]:
  """What the original records of its router."""
  probability = routes.aux['probability']
  flat = probability.reshape(-1, layout.count)
  if layout.kind == 'switch':
    chosen = routes.aux['chosen'].reshape(-1)
    counts = jnp.sum(jax.nn.one_hot(chosen, layout.count), axis=0)
    dropped = jnp.sum(routes.chosen == layout.count)
    return {'route_prob': flat, 'route_prob_sum': jnp.sum(flat, axis=0), 'routes': chosen,
            'counts': counts, 'n_dropped': dropped}
  batch, length, choices = routes.chosen.shape
  capacity = flags.get('capacity', routes.capacity)
  by_choice = routes.chosen.swapaxes(1, 2).reshape(batch, -1)
  place = ranks(by_choice, layout.count).reshape(batch, choices, length).swapaxes(1, 2)
  expert = jax.nn.one_hot(routes.chosen, layout.count)
  slot = jax.nn.one_hot(place, capacity) * routes.weight[..., None]
  combine = jnp.einsum('blke,blkc->blec', expert, slot)
  loss = flags.get('loss_coef', 0.01) * routes.aux['balance']
  return {'raw_gates': probability, 'combine': combine, 'dispatch': combine != 0,
          'aux_loss': loss, 'gate_loss': routes.aux['balance']}
