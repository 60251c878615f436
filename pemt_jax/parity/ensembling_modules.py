"""Single modules of weight ensembling: variants with biases, generated matrices, flat vectors.

The state has tensors `<module>/<original name>`; the cases ask for outputs and for gradients of the
sum of squared outputs. A case without a state is one of projections of an intrinsic vector.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.deltas.adapter import Adapter, Bottleneck
from pemt_jax.deltas.base import Delta
from pemt_jax.deltas.intrinsic import IntrinsicAdapter, IntrinsicLoRA
from pemt_jax.deltas.lora import LoRA
from pemt_jax.deltas.prefix import Prefix
from pemt_jax.deltas.subspace import fastfood
from pemt_jax.interop import files
from pemt_jax.interop.ensembling_original import split_vector
from pemt_jax.models.sites import Site, SiteContext, StackShape
from pemt_jax.parity import common

Arrays = dict[str, jax.Array]
# Name of the original -> name of the delta's weight.
_WEIGHTS = {
    'adapter_A': 'down/kernel', 'adapter_B': 'up/kernel', 'adapter_A_bias': 'down/bias',
    'adapter_B_bias': 'up/bias', 'lora_A': 'down', 'lora_B': 'up', 'lora_A_bias': 'down_bias',
    'lora_B_bias': 'up_bias'}
for _half, _ours in (('A', 'down'), ('B', 'up')):
  for _kind in ('adapter', 'lora'):
    _WEIGHTS[f'hyper_{_kind}_{_half}'] = f'hyper_{_ours}'
    _WEIGHTS[f'hyper_{_kind}_{_half}_bias'] = f'bias_{_ours}'


def _act(delta: Delta, own: Arrays, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Output of a delta around x @ kernel; tensors have the original's names."""
  context = SiteContext(jnp.ones(x.shape[:2]), jnp.ones(x.shape[0]))
  if 'share_intrinsic' in own:
    context = context.replace(model={'z': own['share_intrinsic'][:, 0]})
  values = {_WEIGHTS[name]: value for name, value in own.items() if name in _WEIGHTS}
  site = Site('module', *kernel.shape, 'in', 'out', x.dtype)
  return delta.act(values, lambda x: x @ kernel, x, context, site)[0]


def _adapter(delta: Delta, own: Arrays, inputs: Arrays) -> jax.Array:
  """The module of the original is given what it is added to."""
  x = inputs['x']
  return _act(delta, own, x, jnp.eye(x.shape[-1])) - x + inputs['residual']


def _low_rank(delta: Delta, own: Arrays, inputs: Arrays) -> jax.Array:
  return _act(delta, own, inputs['x'], own['weight'].T)


def _modules(config: Mapping[str, Any]) -> dict[str, Callable[[Arrays, Arrays], jax.Array]]:
  """Module -> function of its tensors and the inputs."""
  rank, scaling = config['r'], config['lora_alpha'] / config['r']
  shape = lambda activation, biases: Adapter(Bottleneck(rank, activation, biases=biases))
  generated = {'dimension': config['intrinsic_dim'], 'rank': rank, 'biases': True}
  deltas = {
      'adapter_swish': (_adapter, shape('swish', False)),
      'adapter_relu': (_adapter, shape('relu', False)),
      'adapter_wb': (_adapter, shape('swish', True)),
      'intrinsic_adapter_wb': (_adapter, IntrinsicAdapter(**generated)),
      'lora_wb': (_low_rank, LoRA(rank, scaling, row_biases=True)),
      'intrinsic_lora_wb': (_low_rank, IntrinsicLoRA(**generated, scaling=scaling))}
  return {name: lambda own, inputs, run=run, delta=delta: run(delta, own, inputs)
          for name, (run, delta) in deltas.items()}


def _overridden(state: Mapping[str, Arrays], inputs: Arrays,
                config: Mapping[str, Any]) -> dict[str, jax.Array]:
  """Modules whose tensors are slices of one vector."""
  rank = config['r']
  own = {}
  for name in ('adapter', 'lora', 'prefix'):
    tensors = {key: value.shape for key, value in state[f'flat_{name}'].items() if key != 'weight'}
    own[name] = {**state[f'flat_{name}'], **split_vector(inputs[f'flat/{name}'], tensors)}
  adapter = Adapter(Bottleneck(rank, 'swish', biases=False))
  lora = LoRA(rank, config['lora_alpha'] / rank)
  return {
      'flat_adapter/y': _adapter(adapter, own['adapter'], inputs),
      'flat_lora/y': _low_rank(lora, own['lora'], inputs),
      'flat_lora/plain': inputs['x'] @ own['lora']['weight'].T,
      'flat_prefix/own': _prefix(state['flat_prefix']),
      'flat_prefix/flat': _prefix(own['prefix'])}


def _prefix(own: Arrays, heads: int = 2) -> jax.Array:
  """[layer, 2, heads, prefix, kv] of a prefix."""
  first, second = own['prefix_project.0.weight'].T, own['prefix_project.2.weight'].T
  rows, embed = own['prefix'].shape
  shape = StackShape('encoder', second.shape[1] // (2 * embed), embed, heads, embed // heads, 0,
                     jnp.float32)
  values = {'table': own['prefix'], 'project_in': first, 'project_out': second}
  made = Prefix(rows, first.shape[1]).prepare(values, shape, None)[1]
  return jnp.stack([made['keys'], made['values']], axis=1)


def _projections(inputs: Arrays) -> dict[str, jax.Array]:
  """Fastfood and a dense projection of z.

  The backward pass of the original divides by sqrt(n) at each Hadamard transform, its forward pass
  does not: gradients behind both are too small by n, behind the last one by sqrt(n).
  """
  size, n = inputs['cotangent'].shape[0], inputs['G'].shape[0]
  project = lambda z, gaussian: fastfood(z, inputs['B'].astype(z.dtype), inputs['Pi'], gaussian,
                                         size, inputs['divisor'])
  found, backward = jax.vjp(project, inputs['z'], inputs['G'])
  to_z, to_gaussian = backward(inputs['cotangent'])
  return {'fastfood': found, 'random': inputs['R'] @ inputs['z'], 'grad_z_true': to_z,
          'grad_z_original': to_z / n, 'grad_G_original': to_gaussian / n**0.5}


def compute(case_dir: pathlib.Path) -> dict[str, np.ndarray]:
  """Computes every array that a case of single modules or of projections names.

  Args:
    case_dir: folder with case.json, inputs.npz and, for modules, state.safetensors.

  Returns:
    name -> array, under the original's names.

  Raises:
    UserError: the case requires an array that is not computed here.
  """
  case = json.loads((case_dir / 'case.json').read_text())
  with np.load(case_dir / 'inputs.npz') as stored:
    inputs = {name: jnp.asarray(value) for name, value in stored.items()}
  if not (case_dir / 'state.safetensors').exists():
    return common.named_results(_projections(inputs), case, case_dir, 'projections')
  state: dict[str, Arrays] = {}
  for name, value in files.read_tensors(case_dir / 'state.safetensors').items():
    module, _, tensor = name.partition('/')
    state.setdefault(module, {})[tensor] = jnp.asarray(value)
  found: dict[str, Any] = {}
  for name, module in _modules(case['method_config']).items():
    loss = lambda own, module=module: (jnp.sum(jnp.square(y := module(own, inputs))), y)
    (_, y), grads = jax.value_and_grad(loss, has_aux=True)(state[name])
    found |= {f'{name}/y': y, **{f'{name}/grad/{key}': grad for key, grad in grads.items()}}
  found |= _overridden(state, inputs, case['method_config'])
  return common.named_results(found, case, case_dir, 'single modules')
