"""Names in checkpoints of the task-level mixture of experts (Ye et al. 2022)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

from pemt_jax.experts.routers import RouterSpec, router_weights
from pemt_jax.interop import bart_files
from pemt_jax.interop.bart_files import PREFIX, bart_table
from pemt_jax.interop.names import Table, Weight, projection
from pemt_jax.models.bart_config import BartConfig

# Leaves of a router -> the original's tensors; kernels there are [out, in].
_LINEAR = {'hidden': 'linear1', 'out': 'linear2'}
_SEQUENCE = {'spread': 'layer_specific_proj', 'out': 'proj'}
_TRANSFORMER = {'attention_out': 'transformer.self_attn.out_proj', 'wi': 'transformer.linear1',
                'wo': 'transformer.linear2', 'attention_norm': 'transformer.norm1',
                'mlp_norm': 'transformer.norm2'}
_ENDINGS = {'kernel': 'weight', 'bias': 'bias', 'scale': 'weight', 'embedding': 'weight'}
_RECURRENT = {'input_kernel': 'weight_ih', 'hidden_kernel': 'weight_hh', 'input_bias': 'bias_ih',
              'hidden_bias': 'bias_hh'}
_WHOLE = {'positions/embedding': 'pos_embed.weight',
          'attention/kernel': 'transformer.self_attn.in_proj_weight',
          'attention/bias': 'transformer.self_attn.in_proj_bias'}


def _foreign(spec: RouterSpec, name: str) -> str:
  """The original's name of a weight, behind that of its module."""
  group, _, leaf = name.partition('/')
  if name in _WHOLE:
    return _WHOLE[name]
  if group in ('forward', 'backward'):
    return f'rnn.{_RECURRENT[leaf]}_l0{"_reverse" if group == "backward" else ""}'
  groups = _LINEAR if spec.form == 'linear' else _SEQUENCE | _TRANSFORMER
  return f'{groups[group]}.{_ENDINGS[leaf]}'


def _unit(layer: int, start: str, stacks: int | None) -> str:
  """Module of one layer's own network; `stacks` is the number of encoder layers, if it counts."""
  if stacks is None:
    return f'{start}router_units.{layer}.'
  if layer < stacks:
    return f'{start}encoder.routers.{layer}.'
  return f'{start}decoder.routers.{layer - stacks}.'


def router_table(spec: RouterSpec, path: str = 'router/', start: str = 'router.model.',
                 inside_stacks: int | None = None) -> Table:
  """Table of a router's tensors.

  Args:
    spec: shape of the router.
    path: how the paths of its leaves begin; '' at the top of the tree.
    start: how the original's names begin.
    inside_stacks: number of encoder layers, for files of the older form, which keeps the networks
      of `linear_layer_specific` inside of the stacks (`start` is then 'model.'); None otherwise.
  """
  weights = []
  for name, weight in router_weights(spec).items():
    foreign, leaf = _foreign(spec, name), f'{path}{name}'
    make = functools.partial(Weight, path=leaf, transpose=name.endswith('kernel'))
    if spec.kind != 'linear_layer_specific':
      shape = weight.shape[::-1] if name.endswith('kernel') else weight.shape
      weights.append(make(f'{start}{foreign}', index=(), shape=shape))
      continue
    weights += [make(f'{_unit(layer, start, inside_stacks)}{foreign}', index=(layer,),
                     shape=weight.shape[:0:-1]) for layer in range(spec.layers)]
  return Table(tuple(weights))


def adapter_table(config: BartConfig, size: int, name: str = 'adapter') -> Table:
  """Table of a BART with adapters behind all sub-layers, as those of Fisher task vectors.

  Args:
    config: of the backbone.
    size: units of an adapter.
    name: of the adapters' rule.
  """
  depths = {'encoder': config.encoder_layers, 'decoder': config.decoder_layers}
  kinds = {'encoder': ('self_attention', 'mlp'),
           'decoder': ('self_attention', 'cross_attention', 'mlp')}
  shapes = {'down': (size, config.embed), 'up': (config.embed, size)}
  weights = []
  for (stack, depth), part in itertools.product(depths.items(), shapes):
    for layer, (number, kind) in itertools.product(range(depth), enumerate(kinds[stack])):
      start = f'{PREFIX}{stack}.layers.{layer}.adapter_{part}{number}'
      path = f'{stack}/layers/{kind}_residual/{name}/{part}'
      weights += projection(start, path, shapes[part], (layer,))
  backbone = bart_table(config)
  return dataclasses.replace(backbone, weights=(*backbone.weights, *weights))


def model_table(config: BartConfig, chosen: Mapping[str, Sequence[int]], experts: int,
                router: Table | None = None) -> Table:
  """Table of a whole mixture: `model.pt` of the original.

  Args:
    config: of the backbone.
    chosen: for each stack, its layers that have experts, in order.
    experts: of a layer.
    router: tensors of the router, see `router_table`; None for files without them.
  """
  weights = [*bart_files.outer_weights(config), bart_files.bias_weight(config)]
  for stack, depth in (('encoder', config.encoder_layers), ('decoder', config.decoder_layers)):
    own = list(chosen[stack])
    plain = [layer for layer in range(depth) if layer not in own]
    for layer in range(depth):
      inside = f'model.{stack}.layers.{layer}.'
      if layer in plain:
        weights += bart_files.layer_weights(config, stack, inside, f'{stack}/layers',
                                            (plain.index(layer),))
      for expert in range(experts if layer in own else 0):
        weights += bart_files.layer_weights(
            config, stack, f'{inside}blocks.{expert}.', f'{stack}/layers/experts',
            (own.index(layer), expert))
  return bart_files.table_of((*weights, *(router.weights if router else ())))


def vectors_weight(shape: tuple[int, ...], path: str = 'deltas/task_moe/vectors') -> Weight:
  """Task vectors, where a file has them among the tensors."""
  return Weight('task_model.embed.weight', path, (), shape)
