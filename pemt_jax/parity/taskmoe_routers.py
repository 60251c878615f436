"""Routers and routes: recorded logits, gradients, read-outs and temperatures."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.experts.routers import RouterSpec, route_logits
from pemt_jax.experts.routes import annealed, expert_distance, override, select, split_stacks
from pemt_jax.interop import files, names
from pemt_jax.interop.taskmoe_names import router_table
from pemt_jax.parity import common
from pemt_jax.trees import Tree, flatten


def router_spec(case: Mapping[str, Any]) -> RouterSpec:
  """The router of a case."""
  model, flags = case['model_config'], case['method_config']
  return RouterSpec(flags['router_nn_type'], flags['router_input_dim'], flags['router_hidden_dim'],
                    model['encoder_layers'] + model['decoder_layers'], flags['router_block_num'])


def _params(case_dir: pathlib.Path, table: names.Table) -> Tree:
  state = files.read_tensors(case_dir / 'state.safetensors')
  return jax.tree.map(jnp.asarray, names.load(state, table))


def router(case_dir: pathlib.Path) -> dict[str, Any]:
  """Logits of both stacks, the probe's loss and its gradients."""
  case, inputs = common.read_case(case_dir)
  spec, layers = router_spec(case), case['model_config']['encoder_layers']
  table = router_table(spec, '', 'model.')

  @jax.jit
  def probe(params, vectors):
    encoder, decoder = split_stacks(route_logits(spec, flatten(params), vectors), layers)
    loss = (jnp.sum(encoder * inputs['w_enc']) + jnp.sum(decoder * inputs['w_dec'])
            + jnp.sum(jnp.square(jax.nn.softmax(encoder, axis=-1))))
    return loss, (encoder, decoder)

  (loss, (encoder, decoder)), (grads, own) = jax.value_and_grad(probe, (0, 1), has_aux=True)(
      _params(case_dir, table), jnp.asarray(inputs['task_embed']))
  found = {'loss': loss, 'enc_logits': encoder, 'dec_logits': decoder, 'grad/task_embed': own}
  found |= {f'grad/{name}': value for name, value in names.dump(grads, table).items()}
  return common.named_results(found, case, case_dir, spec.kind)


def read_out(case_dir: pathlib.Path) -> dict[str, Any]:
  """Routes of one vector and of several, at two temperatures, and with experts disabled."""
  case, inputs = common.read_case(case_dir)
  spec, flags = router_spec(case), case['method_config']
  layers = case['model_config']['encoder_layers']
  params = flatten(_params(case_dir, router_table(spec, '')))
  read = lambda logits, tau: select(logits, flags['router_mode'], tau)
  one = route_logits(spec, params, jnp.asarray(inputs['task_vec'])[None])
  many = route_logits(spec, params, jnp.asarray(inputs['task_vec_batch']))
  single = read(one, flags['tau'])[:, 0]
  closed = np.concatenate([inputs['disable_enc'], inputs['disable_dec']])
  rest = read(override(one, closed), flags['tau'])[:, 0]
  found = {'single_all': single, 'batch_routes': read(many, flags['tau']),
           'batch_routes_t1': read(many, 1.0)}
  for name, routes in (('single', single), ('override', rest)):
    found[f'{name}_enc'], found[f'{name}_dec'] = split_stacks(routes, layers)
  return common.named_results(found, case, case_dir, spec.kind)


def temperatures(case_dir: pathlib.Path) -> dict[str, Any]:
  """Temperatures of several schedules at several steps."""
  case, inputs = common.read_case(case_dir)
  found = {'tau': np.stack([annealed(inputs['steps'], *row) for row in inputs['settings']])}
  return common.named_results(found, case, case_dir, 'schedule')


def distance(case_dir: pathlib.Path) -> dict[str, Any]:
  """The regulariser of experts and its gradients; a leaf has the experts of one layer."""
  case = json.loads((case_dir / 'case.json').read_text())
  state = files.read_tensors(case_dir / 'state.safetensors')
  leaf_of = {name: re.sub(r'blocks\.\d+\.', '', name) for name in sorted(state)
             if '.blocks.' in name}
  experts: dict[str, list[str]] = {}
  for name, leaf in leaf_of.items():
    experts.setdefault(leaf, []).append(name)
  stacked = {leaf: jnp.stack([state[name] for name in names]) for leaf, names in experts.items()}
  loss, grads = jax.jit(jax.value_and_grad(expert_distance))(stacked)
  found = {f'grad/{name}': grads[leaf][experts[leaf].index(name)]
           for name, leaf in leaf_of.items()}
  return common.named_results(found | {'loss': loss}, case, case_dir, 'expert distance')
