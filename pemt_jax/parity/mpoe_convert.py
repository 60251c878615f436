"""Dense checkpoints as experts and cores, and the mask of gradients: recorded cases."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.experts.feed_forward import Work
from pemt_jax.interop import files, huggingface, mpoe_moe_names, names
from pemt_jax.interop.mpoe_moe_names import RoutedLayout
from pemt_jax.methods import moe, mpo
from pemt_jax.methods.base import Method, initialiser, make_loss
from pemt_jax.methods.mpo import MPOOptions
from pemt_jax.models import t5_config
from pemt_jax.models.layers import Compute
from pemt_jax.models.sites import Site
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import T5Config
from pemt_jax.parity import common, mpoe_matrices, mpoe_moe
from pemt_jax.trees import Tree, flatten, merge, unflatten

_RANK = 5  # of the truncated conversions


def conversions(flags: Mapping[str, Any],
                config: T5Config) -> dict[str, tuple[Method, RoutedLayout | None]]:
  """Name of a conversion -> its method, and the layout of its routed feed-forwards."""
  given = mpoe_matrices.factors_of(flags, 't5')
  factors = tuple(row for row in given if row[0] in ('wi', 'wo'))
  count = flags['num_experts']
  layout = lambda kind: RoutedLayout(kind, count, config.embed, config.mlp)

  def switch(experts, rank=0):
    options = moe.SwitchOptions(experts=experts, count=count, rank=rank, factors=factors)
    return moe.switch(options, config, 0), layout('switch')

  everything = MPOOptions(components=('word_embed', 'mlp', 'attention'), embed_rank=_RANK,
                          mlp_rank=_RANK, attention_rank=_RANK, factors=given, tied=False)
  top2 = moe.TopTwoOptions(count=count, eval_policy='all', eval_capacity_factor=2.0)
  return {'full_switch': switch('mpo'), 'truncated_switch': switch('mpo', _RANK),
          'truncated_no_moe_all': (mpo.mpo(everything, config, 0), None),
          'dense_switch_no_mpo': switch('dense'),
          'dense_moe_no_mpo': (moe.top2(top2, config, 0), layout('moe'))}


def with_routers(params: Tree, given: Mapping[str, np.ndarray], config: T5Config,
                 layout: RoutedLayout | None) -> Tree:
  """Parameters with recorded routers in place of random ones; `given` has original names."""
  flat = dict(flatten(params))
  for weight in mpoe_moe_names.t5_table(config, layout).weights:
    if weight.name in given:
      leaf = np.array(flat[weight.path])
      leaf[weight.index] = given[weight.name].T if weight.transpose else given[weight.name]
      flat[weight.path] = leaf
  return unflatten(flat)


def convert(case_dir: pathlib.Path, run: Compute = Compute()) -> dict[str, np.ndarray]:
  """Logits, loss and number of parameters after each conversion of one checkpoint."""
  case, inputs = common.read_case(case_dir)
  config = t5_config.from_hf(case['model_config'], 'model_config of case.json')
  state = files.read_tensors(case_dir / 'state.safetensors')
  dense = names.load(state, huggingface.t5_table(config))
  batch, found = common.read_batch(inputs), {}
  for tag, (method, layout) in conversions(case['method_config'], config).items():
    model, key = T5(config, method.plan, run), jax.random.key(0)
    first = initialiser(model)(key)[0]
    known = {path: leaf for path, leaf in flatten(dense).items() if path in flatten(first)}
    params = method.first_values(dense, merge(first, unflatten(known)), key)
    start = f'router/{tag}|'
    routers = {name.removeprefix(start): value for name, value in inputs.items()
               if name.startswith(start)}
    params = jax.tree.map(jnp.asarray, with_routers(params, routers, config, layout))
    loss, _ = jax.jit(make_loss(model, method))(params, {}, {}, batch, None)
    logits = common.forward(model, method.variables(params, {}, {}), batch)[1]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    found |= {f'{tag}/logits': logits, f'{tag}/loss': loss, f'{tag}/n_params': np.array(count)}
  return common.named_results(found, case, case_dir, 'conversion')


def gradient_mask(case_dir: pathlib.Path) -> dict[str, np.ndarray]:
  """One step of gradient descent with the recorded draw."""
  case, inputs = common.read_case(case_dir)
  flags, layout = case['method_config'], mpoe_moe.layout_of(case)
  delta = mpoe_moe.delta_of(layout, flags)
  weights, aliases = mpoe_moe_names.weights_of(layout, '', '')
  table = names.Table(tuple(weights), aliases)
  state = files.read_tensors(case_dir / 'state.safetensors')
  params = jax.tree.map(jnp.asarray, mpoe_moe_names.state_to_tree(state, table))
  site = Site('encoder/mlp', layout.embed, layout.embed, 'embed', 'embed', jnp.float32)

  def loss_fn(params, x):
    values = flatten(params)
    routes = delta.route(delta.logits(values, x), jnp.ones(x.shape[:2]), False, None)
    y = delta.mixed(delta.experts.kernels(values), x, routes, Work(None, None, site))
    return jnp.sum(y * inputs['loss_weights'])

  grads = jax.jit(jax.grad(loss_fn))(params, jnp.asarray(inputs['x']))
  discarded = bool(inputs['u'] < flags['p_b'])
  centre = layout.factors['wi'].centre
  masked = mpo.masked_gradients(grads, f'.*/core_{centre}', lambda path, shape: discarded)
  after = jax.tree.map(lambda value, grad: value - flags['sgd_lr'] * grad, params, masked)
  found = {'central_update_discarded': np.array(int(discarded))}
  for kind, tree in (('grad_unmasked', grads), ('grad_masked', masked),
                     ('param_after_sgd', after)):
    named = mpoe_moe_names.tree_to_state(tree, table)
    found |= {f'{kind}/{name}': value for name, value in named.items()}
  return common.named_results(found, case, case_dir, 'gradient_mask')
