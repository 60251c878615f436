"""Matrix product operators: recorded decompositions, linear layers, tables, models, masks."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.deltas.record import Record
from pemt_jax.experts import mpo
from pemt_jax.experts.mpo_linear import MPO
from pemt_jax.experts.mpo_shapes import Factors
from pemt_jax.interop import files, mpoe_moe_names, mpoe_names, names
from pemt_jax.methods import mpo as method_lib
from pemt_jax.methods.base import LossForm, Method, make_loss
from pemt_jax.methods.classification import make_text_loss
from pemt_jax.methods.mpo import MPOOptions
from pemt_jax.models import roberta_config, t5_config
from pemt_jax.models.layers import Compute
from pemt_jax.models.roberta import Roberta
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.sites import Plan, Rule, Site, SiteContext
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import T5Config
from pemt_jax.parity import common
from pemt_jax.training.rules import split_params
from pemt_jax.trees import Tree

Arrays = dict[str, np.ndarray]
Flags = Mapping[str, Any]
# The original's word for a component -> ours.
_BERT_PARTS = {'FFN_1': 'wi', 'FFN_2': 'wo'}


def given_factors(flags: Flags) -> Factors:
  """Factors of the rows and columns of the original's matrix."""
  return Factors(tuple(flags['mpo_input_shape']), tuple(flags['mpo_output_shape']))


def decomposition(case_dir: pathlib.Path) -> Arrays:
  """Cores, singular values, ranks and rebuilt matrices."""
  case, inputs = common.read_case(case_dir)
  flags, matrix = case['method_config'], inputs['matrix']
  factors = given_factors(flags)
  full = mpo.decompose(matrix, factors)
  found = {'reconstruct_from_raw': mpo.rebuild(mpo.left_chain(matrix, factors))}
  for bond, values in enumerate(full.spectra, start=1):
    found[f'singular_values_bond_{bond}'] = values
    found[f'normalised_singular_values_bond_{bond}'] = values / np.linalg.norm(values)
  chains = {'canonical': full.cores}
  for name, limit in (('truncated', 'truncate_num'), ('retruncated', 'retruncate_num')):
    chains[name] = mpo.cut(full.cores, factors.ranks(flags[limit]))
  for name, cores in chains.items():
    found |= {f'{name}_core_{k}': core for k, core in enumerate(cores)}
  for kind in ('full', 'truncated'):
    ranks = factors.ranks(flags['truncate_num'] if kind == 'truncated' else None)
    found |= {f'ranks_{kind}': np.array(ranks), f'n_params_{kind}': factors.count(ranks)}
  rebuilt = {f'reconstruct_{start}{name}': mpo.rebuild(cores) for (name, cores), start
             in zip(chains.items(), ('from_', 'from_', ''), strict=True)}
  error = np.linalg.norm(matrix - np.asarray(rebuilt['reconstruct_from_truncated']))
  found |= rebuilt | {'frobenius_error_truncated': error}
  masked = mpo.squeeze(full.cores, factors.ranks(flags['retruncate_num']))
  found |= {f'step_train_masked_core_{k}': core for k, core in enumerate(masked)}
  found['step_train_masked_reconstruct'] = mpo.rebuild(masked)
  return common.named_results(found, case, case_dir, 'decomposition')


def _chain(case_dir: pathlib.Path, delta: MPO, path: str) -> tuple[Tree, names.Table]:
  """(parameters of a chain in a state of its own, their names)."""
  shapes = delta.factors.core_shapes(delta.ranks)
  weights = [names.Weight(f'_mpo.tensor_set.{k}', f'{path}core_{k}', (), shape)
             for k, shape in enumerate(shapes)]
  if delta.bias:
    weights.append(names.Weight('_mpo.bias', f'{path}bias', (), delta.shape[1:]))
  table = names.Table(tuple(weights))
  state = {f'_mpo.{name}': value
           for name, value in files.read_tensors(case_dir / 'state.safetensors').items()}
  params = jax.tree.map(jnp.asarray, mpoe_moe_names.state_to_tree(state, table))
  return params, table


def _named(grads: Tree, table: names.Table, frozen: Any = ()) -> dict[str, Any]:
  state = mpoe_moe_names.tree_to_state(grads, table)
  named = {name.removeprefix('_mpo.'): value for name, value in state.items()}
  return {f'grad/{name}': value for name, value in named.items() if name not in frozen}


def linear(case_dir: pathlib.Path) -> Arrays:
  """One linear layer: output and gradients."""
  case, inputs = common.read_case(case_dir)
  flags, factors = case['method_config'], given_factors(case['method_config']).swapped
  delta = MPO(factors.shape, factors, factors.ranks(flags['trunc']), 'grad/bias' in case['arrays'])
  params, table = _chain(case_dir, delta, '')
  site = Site('encoder/mlp/wi', *delta.shape, 'embed', 'mlp', jnp.float32)

  def loss_fn(params, x):
    y, _ = delta.act(params, None, x, _no_context(), site)
    return jnp.sum(y * inputs['loss_weights']), y

  (loss, y), (grads, at_input) = jax.jit(jax.value_and_grad(loss_fn, (0, 1), has_aux=True))(
      params, jnp.asarray(inputs['x']))
  found = {'y': y, 'loss': loss, 'grad_input': at_input, 'weight_rebuilt': delta.matrix(params).T}
  found |= _named(grads, table, case['frozen'])
  return common.named_results(found, case, case_dir, 'mpo')


def _no_context() -> SiteContext:
  return SiteContext(jnp.ones((1, 1)), jnp.ones((1,)))


def embedding(case_dir: pathlib.Path) -> Arrays:
  """A table that is read and that makes logits, and its decomposition."""
  case, inputs = common.read_case(case_dir)
  flags, factors = case['method_config'], given_factors(case['method_config'])
  shape = flags['vocab'], factors.shape[1]
  delta = MPO(shape, factors, factors.ranks(flags['trunc']))
  params, table = _chain(case_dir, delta, 'shared/')
  site = Site('shared', *shape, 'vocab', 'embed_table', jnp.float32)

  def loss_fn(params):
    rows, _ = delta.act(params['shared'], None, None, _no_context(), site)
    embedded, logits = rows[inputs['ids']], inputs['hidden'] @ rows.T
    loss = jnp.sum(embedded * inputs['w_embed']) + jnp.sum(logits * inputs['w_logits'])
    return loss, {'embedded': embedded, 'logits': logits, 'table': rows}

  (loss, found), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
  found |= {'loss': loss} | _named(grads, table)
  for bond, values in enumerate(mpo.decompose(inputs['dense_table'], factors).spectra, start=1):
    found[f'singular_values_bond_{bond}'] = values
  return common.named_results(found, case, case_dir, 'mpo')


def options_of(flags: Flags, kind: str, **changes: Any) -> MPOOptions:
  """Options of the method that a case ran.

  Args:
    flags: `method_config`.
    kind: 't5' or 'bert'.
    **changes: what differs.
  """
  parts = [part for part in flags['mpo_layers'].split(',') if part not in ('', 'nompo')]
  components = tuple(_BERT_PARTS.get(part, part) for part in parts)
  freeze = (2,) if flags['tensor_learn'] else ()
  own = {'components': components, 'embed_rank': flags['emb_trunc'],
         'mlp_rank': flags['linear_trunc'], 'attention_rank': flags['attention_trunc'],
         'pooler_rank': flags.get('pooler_trunc'), 'factors': factors_of(flags, kind),
         'tied': False, 'freeze': freeze}
  if kind == 't5':  # The original does not freeze the cores of attention.
    own['freeze_in'] = ('mlp', 'word_embed')
  return MPOOptions(**own | changes)


def factors_of(flags: Flags, kind: str) -> tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]:
  """`MPOOptions.factors` of a case."""
  model, ff, vocab = (tuple(flags[f'mpo_shape_{name}']) for name in ('model', 'ff', 'vocab'))
  inner = tuple(flags['mpo_shape_inner' if kind == 't5' else 'mpo_shape_model2'])
  into, out = ((model, inner), (inner, model)) if kind == 't5' else ((inner, model),) * 2
  return (('wi', model, ff), ('wo', ff, model), ('word_embed', vocab, model), ('o', *out),
          ('attention', *into), ('pooler', inner, model))


def t5(case_dir: pathlib.Path, run: Compute = Compute()) -> Arrays:
  """A T5 with factorised matrices: losses, logits, states, gradients."""
  case, inputs = common.read_case(case_dir)
  config = t5_config.from_hf(case['model_config'], 'model_config of case.json')
  method = method_lib.mpo(options_of(case['method_config'], 't5'), config, 0)
  params, table = _model_state(case_dir, mpoe_names.t5_table(config, method.plan))
  model, batch = T5(config, method.plan, run), common.read_batch(inputs)
  found = t5_results(model, method, params, batch)
  found |= _gradients(make_loss(model, method), method, params, (batch, table, case))
  return common.named_results(found, case, case_dir, method.name)


def t5_results(model: T5, method: Method, params: Tree,
               batch: Mapping[str, jax.Array]) -> dict[str, Any]:
  """Logits, states and both losses of a batch."""
  variables = method.variables(params, {}, {})
  states, logits, _ = common.forward(model, variables, batch)
  loss_fn = jax.jit(make_loss(model, method, LossForm(0.1, 'sum')))
  smoothed, metrics = loss_fn(params, {}, {}, batch, None)
  return {'encoder_last_hidden_state': states, 'logits': logits,
          'loss_ce': metrics['cross_entropy_nats'], 'loss_label_smoothing_0.1_sum': smoothed}


def _model_state(case_dir: pathlib.Path, table: names.Table) -> tuple[Tree, names.Table]:
  state = files.read_tensors(case_dir / 'state.safetensors')
  return jax.tree.map(jnp.asarray, mpoe_moe_names.state_to_tree(state, table)), table


def _gradients(loss_fn: Any, method: Method, params: Tree, rest: tuple[Any, ...]) -> dict[str, Any]:
  """The loss and its gradients by original names; `rest` is (batch, table, case)."""
  batch, table, case = rest
  frozen, tuned = split_params(params, method.tuned)
  (loss, _), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
      tuned, frozen, {}, batch, None)
  named = mpoe_moe_names.tree_to_state(grads, table, partial=True)
  return {'loss': loss} | {f'grad/{name}': value for name, value in named.items()}


def bert(case_dir: pathlib.Path, run: Compute = Compute()) -> Arrays:
  """A BERT classifier with factorised matrices: loss, logits, states, gradients."""
  case, inputs = common.read_case(case_dir)
  config, labels = bert_config(case), case['model_config']['num_labels']
  method = method_lib.mpo(options_of(case['method_config'], 'bert'), config, 0)
  params, table = _model_state(case_dir, mpoe_names.bert_table(config, labels, method.plan))
  batch = common.read_batch({name: value for name, value in inputs.items() if name != 'labels'})
  batch['labels'] = jnp.asarray(inputs['labels'])
  if 'token_type_ids' in inputs:
    batch['token_types'] = jnp.asarray(inputs['token_type_ids'])
  record = Rule('record', 'encoder/self_attention/q', Record())
  shown = Roberta(config, Plan((*method.plan.rules, record)), run, labels)

  @jax.jit
  def forward(params, batch):
    variables = method.variables(params, {}, {})
    encoded = shown.apply(variables, batch['inputs'], batch['inputs_mask'],
                          batch.get('token_types'), method='encode')
    return encoded, shown.apply(variables, encoded, method='classify')[0]

  encoded, logits = forward(params, batch)
  first = encoded.aux['encoder/self_attention/q/record/state'][0]
  found = {'logits': logits, 'last_hidden_state': encoded.states, 'embedding_output': first}
  model = Roberta(config, method.plan, run, labels)
  found |= _gradients(make_text_loss(model, method), method, params, (batch, table, case))
  return common.named_results(found, case, case_dir, method.name)


def bert_config(case: Mapping[str, Any]) -> RobertaConfig:
  """The backbone of a case.

  Raises:
    UserError: `model_config` is not a BERT's.
  """
  values = {'model_type': 'bert'} | case['model_config']
  return roberta_config.from_hf(values, 'model_config of case.json')
