"""Adapters and hyper-networks of the HyperFormer code, and its sampler: recorded passes."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.data import mixture
from pemt_jax.data.task_sampler import TaskSampler
from pemt_jax.deltas.adapter import Adapter, Bottleneck
from pemt_jax.experts.hypernet import Embeddings, Generated
from pemt_jax.experts.masked import site_of
from pemt_jax.experts.task_bank import TaskBank
from pemt_jax.interop import files, hyperformer_names, names
from pemt_jax.methods.hyperformer import ADAPTER_NORMS, SITES
from pemt_jax.models.sites import SiteContext, StackShape
from pemt_jax.parity import common
from pemt_jax.trees import Tree

Case = Mapping[str, Any]
_STACK = 'encoder'
_TEMPERATURES = 'weights_T'
_BATCHES = 'batches_per_epoch_bs{}_replicas{}'


def _adapter(case: Case) -> Adapter:
  flags, width = case['method_config'], case['model_config']['d_model']
  return Adapter(Bottleneck(width // flags['reduction_factor'], flags['non_linearity'],
                            'adapter_meta' in case['case'], True))


def _shape(case: Case) -> StackShape:
  width = case['model_config']['d_model']
  return StackShape(_STACK, case['method_config'].get('num_layers', 1), width, 1, width, width,
                    jnp.float32)


def _generated(case: Case, sites: tuple[str, ...], scope: str) -> Generated:
  flags = case['method_config']
  sizes = Embeddings(flags['task_embedding_dim'], flags.get('task_hidden_dim', 1),
                     flags.get('projected_task_embedding_dim', 1),
                     flags.get('train_task_embeddings', False))
  return Generated(_adapter(case), sites, len(flags['tasks']), scope, sizes)


def parts_of(case: Case) -> tuple[TaskBank | Generated, names.Table]:
  """The delta of a case, and the names of its tensors.

  Leaves lie below `site`, `stack` and `model`, by the place where the delta has them.
  """
  tasks, shape = case['method_config']['tasks'], _shape(case)
  if case['case'] == 'adapter_single_task':
    delta = TaskBank(_adapter(case), len(tasks), shared=ADAPTER_NORMS)
    own = hyperformer_names.adapter_weights(delta.delta, tasks, shape.embed, 'adapter', 'site', ())
    return delta, names.Table(tuple(own))
  if case['case'].startswith('adapter_meta'):
    delta = _generated(case, SITES[:1], 'layer')
    own = hyperformer_names.generator_weights(delta, shape, SITES[0], 'meta', 'stack', (0,))
  else:
    delta = _generated(case, SITES, 'places' if case['case'] == 'hyperformer_pp' else 'stack')
    own = hyperformer_names.hypernet_weights(delta, shape, 'hyper', 'stack')
  return delta, names.Table(
      (*hyperformer_names.task_weights(delta, tasks, 'task', 'model'), *own))


def _values(params: Tree, level: str) -> dict[str, jax.Array]:
  """Values of a delta by name; groups are one level deep."""
  found = {}
  for name, leaf in params.get(level, {}).items():
    found |= ({f'{name}/{part}': value for part, value in leaf.items()}
              if isinstance(leaf, dict) else {name: leaf})
  return found


def _forward(delta: TaskBank | Generated, case: Case) -> Callable[..., Any]:
  """(parameters, x) -> (output, generated weights of the layer, embedding of the task)."""
  flags, shape = case['method_config'], _shape(case)
  number = flags['tasks'].index(flags['task'])
  # Self-attention comes first, as in a layer.
  sites = [site_of(f'{_STACK}/{site}', shape)
           for site in reversed(getattr(delta, 'sites', SITES[:1]))]

  def run(params, x):
    ids = jnp.full(x.shape[:1], number, jnp.int32)
    context = SiteContext(jnp.ones(x.shape[:2]), jnp.ones(x.shape[:1]), task_ids=ids,
                          model=_values(params, 'model'))
    made, embedding = None, None
    if isinstance(delta, Generated):
      _, layers = delta.prepare(_values(params, 'stack'), shape, context)
      made = jax.tree.map(lambda a: a[flags.get('layer_id', 0)], layers)
      embedding = delta.task_embeddings(context)[number]
    for site in sites:
      x, _ = delta.act(_values(params, 'site'), lambda y: y, x, context.replace(per_layer=made),
                       site)
    made = {name: value[number] for name, value in (made or {}).items()}
    return x, made, embedding

  return run


def compute(case_dir: pathlib.Path) -> dict[str, np.ndarray]:
  """Computes every array of a case: output, loss, gradients, generated weights.

  Args:
    case_dir: folder with case.json, inputs.npz and state.safetensors.

  Raises:
    UserError: the files do not fit the case.
  """
  case, inputs = common.read_case(case_dir)
  if case['case'] == 'multitask_sampler':
    return common.named_results(_sampler(case, inputs), case, case_dir, 'sampler')
  delta, table = parts_of(case)
  params = names.load(files.read_tensors(case_dir / 'state.safetensors'), table, str(case_dir))
  forward = _forward(delta, case)

  def loss_fn(params, x):
    y, made, embedding = forward(params, x)
    return jnp.sum(y * inputs['loss_weights']), (y, made, embedding)

  (loss, (y, made, embedding)), (grads, grad_input) = jax.jit(
      jax.value_and_grad(loss_fn, (0, 1), has_aux=True))(
          jax.tree.map(jnp.asarray, params), jnp.asarray(inputs['x']))
  found = {'y': y, 'loss': loss, 'grad_input': grad_input, 'task_embedding': embedding}
  shown = {'ff': 'mlp_wo', 'sa': 'self_attention_o'}
  for short, site in shown.items() if made else ():
    found |= {f'{short}_{half}_weight': made.get(f'{site}/{half}/kernel', jnp.zeros(())).T
              for half in ('down', 'up')}
    found[f'{short}_post_norm_weight'] = made.get(f'{site}/post_norm/scale')
  found |= {f'grad/{name}': grad for name, grad in names.dump(grads, table).items()}
  return common.named_results(found, case, case_dir, 'hyperformer')


def _sampler(case: Case, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Shares of the tasks at each temperature, and the batches of an epoch."""
  sizes = tuple(inputs['dataset_sizes'].tolist())
  found = {name: mixture.shares(sizes, 'temperature', int(name.removeprefix(_TEMPERATURES)))
           for name in case['arrays'] if name.startswith(_TEMPERATURES)}
  flags = case['method_config']
  batch, ranks = flags['batch_size'], flags['num_replicas']
  sampler = TaskSampler(sizes, mixture.shares(sizes, 'proportional'), batch, ranks=ranks)
  return found | {_BATCHES.format(batch, ranks): sampler.batches_per_epoch}
