"""State dicts of the HyperFormer code on T5 <-> parameter trees, in both directions.

A controller `<s>.block.<b>.layer.<k>.adapter_controller` has the adapters of all tasks, or the
networks that make one. Hyper-networks of a stack lie below `<s>.adapter_layers_hyper_net`, with a
place, `feed_forward_` or `self_attention_`, in front unless they serve both.

| tensors | what |
|---|---|
| `adapters.<task>.{down,up}_sampler.{weight,bias}` | adapters |
| `meta_{down,up}_sampler.{weight,bias}_generator.0.*` | what makes them, in a controller |
| `[<place>]{down,up}_sampler_hyper_net.{weight,bias}_generator.0.*` | the same, of a stack |
| `{pre,post}_layer_norm.*`, `[<place>]{pre,post}_layernorm_hypernet.*` | norms, what makes them |
| `layer_id_embeddings`, `adapters_block_type`, `task_hypernet`, `LayerNorm` | joint embeddings |
| `task_embedding_controller.{task_to_embeddings.<task>,task_hyper_net}` | embeddings of tasks |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pemt_jax.deltas.adapter import Adapter
from pemt_jax.errors import UserError
from pemt_jax.experts.hypernet import Generated
from pemt_jax.experts.masked import site_of
from pemt_jax.interop import huggingface, names
from pemt_jax.methods import hyperformer
from pemt_jax.methods.hyperformer import ADAPTER, HYPER, SITES, ControllerOptions, HyperOptions
from pemt_jax.models.sites import StackShape
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree

PLACES = {'mlp/wo': 'feed_forward_', 'self_attention/o': 'self_attention_'}
_NORMS = {'pre_norm': 'pre_layer', 'post_norm': 'post_layer'}
_PARTS = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}
CONTROLLER = 'adapter_controller'
# Fields of the program's config file and their defaults -> fields of the options.
FLAGS = {
    'reduction_factor': (16, 'reduction'), 'non_linearity': ('swish', 'activation'),
    'add_layer_norm_before_adapter': (False, 'pre_norm'),
    'add_layer_norm_after_adapter': (True, 'post_norm'),
    'unfreeze_layer_norms': (False, 'tune_norms'), 'unfreeze_lm_head': (False, 'tune_head')}
HYPER_FLAGS = {
    'conditional_layer_norm': (False, 'conditional_norms'), 'task_embedding_dim': (512, 'size'),
    'task_hidden_dim': (128, 'hidden'), 'projected_task_embedding_dim': (64, 'projected'),
    'train_task_embeddings': (False, 'project_tasks'),
    'unique_hyper_net_layer_norm': (True, 'joint_norm')}


@dataclasses.dataclass(frozen=True)
class HyperformerLayout:
  """What a state dict holds.

  Attributes:
    config: of the backbone.
    tasks: names of the adapters or embeddings in the order of their numbers.
    stage: a name of the zoo: 'adapter_controller' or one of `hyperformer.SCOPES`.
    options: of the method.
  """

  config: T5Config
  tasks: tuple[str, ...]
  stage: str
  options: ControllerOptions | HyperOptions


def layout_from_flags(flags: Mapping[str, Any], config: T5Config) -> HyperformerLayout:
  """Returns the layout that a config file of the program describes.

  Args:
    flags: its fields, with `tasks`.
    config: of the backbone.

  Raises:
    UserError: no tasks, or values that the options refuse.
  """
  tasks = tuple(flags.get('tasks') or ())
  if not tasks:
    raise UserError('the config file of the HyperFormer code names no tasks; give the one that the'
                    ' weights were trained with.')
  stage, table, kind = CONTROLLER, FLAGS, ControllerOptions
  if flags.get('adapter_config_name') == 'meta-adapter':
    stage, table, kind = 'meta_adapter', FLAGS | HYPER_FLAGS, HyperOptions
    if flags.get('unique_hyper_net'):
      stage = 'hyperformer'
    if flags.get('efficient_unique_hyper_net'):
      stage = 'hyperformer_pp'
  values = {field: flags.get(name, default) for name, (default, field) in table.items()}
  if stage in ('hyperformer', 'hyperformer_pp'):
    values['conditional_norms'] = True  # They are always generated there.
  return HyperformerLayout(config, tasks, stage, kind(tasks=len(tasks), **values))


def flags_of(layout: HyperformerLayout) -> dict[str, Any]:
  """The fields of a config file that `layout_from_flags` reads."""
  meta = layout.stage != CONTROLLER
  table = FLAGS | HYPER_FLAGS if meta else FLAGS
  found = {'tasks': list(layout.tasks), 'eval_tasks': list(layout.tasks), 'train_adapters': True,
           'adapter_config_name': 'meta-adapter' if meta else 'adapter'}
  found |= {name: getattr(layout.options, field) for name, (_, field) in table.items()}
  if meta:
    found |= {'unique_hyper_net': layout.stage == 'hyperformer',
              'efficient_unique_hyper_net': layout.stage == 'hyperformer_pp'}
  return found


def adapter_weights(adapter: Adapter, tasks: Sequence[str], embed: int, name: str, path: str,
                    index: tuple[int, ...]) -> Iterator[names.Weight]:
  """Tensors of an adapter of each task and of their norms.

  Args:
    adapter: of one task.
    tasks: their names; one alone has no axis of experts.
    embed: width of the backbone.
    name: of the controller in the original.
    path: of the adapters here.
    index: of the layer.
  """
  size = adapter.bottleneck.size
  for number, task in enumerate(tasks):
    own = (*index, number) if len(tasks) > 1 else index
    for half, shape in (('down', (size, embed)), ('up', (embed, size))):
      yield from names.projection(f'{name}.adapters.{task}.{half}_sampler', f'{path}/{half}', shape,
                                  own)
  yield from norm_weights(adapter, embed, name, path, index)


def norm_weights(adapter: Adapter, embed: int, name: str, path: str,
                 index: tuple[int, ...]) -> Iterator[names.Weight]:
  """Tensors of the trained norms of an adapter; arguments as those of `adapter_weights`."""
  for norm, original in _NORMS.items():
    if getattr(adapter.bottleneck, norm):
      for part in ('scale', 'bias'):
        yield names.Weight(f'{name}.{original}_norm.{_PARTS[part]}', f'{path}/{norm}/{part}', index,
                           (embed,))


def network_weights(name: str, path: str, sizes: tuple[int, int, int]) -> Iterator[names.Weight]:
  """Tensors of a network that joins embeddings; `sizes` of input, hidden units and output."""
  for number, part, into, out in ((0, 'in', *sizes[:2]), (2, 'out', *sizes[1:])):
    yield from names.projection(f'{name}.task_embeding_generator.{number}', f'{path}_{part}',
                                (out, into))


def task_weights(delta: Generated, tasks: Sequence[str], name: str,
                 path: str) -> Iterator[names.Weight]:
  """Tensors of the embeddings of tasks."""
  sizes = delta.embeddings
  for number, task in enumerate(tasks):
    yield names.Weight(f'{name}.task_to_embeddings.{task}', f'{path}/tasks', (number,),
                       (sizes.size,))
  if sizes.project_tasks:
    yield from network_weights(f'{name}.task_hyper_net', f'{path}/task',
                               (sizes.size, sizes.hidden, sizes.projected))


def generator_weights(delta: Generated, shape: StackShape, site: str, name: str, path: str,
                      index: tuple[int, ...]) -> Iterator[names.Weight]:
  """Tensors of the networks that make the weights at a site.

  Args:
    delta: what is generated.
    shape: of the stack.
    site: without the stack.
    name: of the module in the original.
    path: of the stack's weights here.
    index: of the layer in scope 'layer'.
  """
  layered, place = delta.scope == 'layer', PLACES[site] if delta.scope == 'stack' else ''
  width = delta.task_size if layered else delta.embeddings.projected
  for weight_name, weight in delta.generated(site_of(f'{shape.stack}/{site}', shape)).items():
    half, _, part = weight_name.partition('/')
    if half in _NORMS:
      module, last = f'{place}{_NORMS[half]}norm_hypernet', ''
    else:
      module, last = f'meta_{half}_sampler' if layered else f'{place}{half}_sampler_hyper_net', '.0'
    start = f'{name}.{module}.{_PARTS[part]}_generator{last}'
    leaf = f'{path}/{delta.generator(site, weight_name)}'
    count, view = math.prod(weight.shape), weight.shape[::-1]
    yield names.Weight(f'{start}.weight', f'{leaf}/kernel', index, (count, width), True,
                       view=(*view, width))
    yield names.Weight(f'{start}.bias', f'{leaf}/bias', index, (count,), True, view=view)


def hypernet_weights(delta: Generated, shape: StackShape, name: str,
                     path: str) -> Iterator[names.Weight]:
  """Tensors of the hyper-network of a stack; arguments as those of `generator_weights`."""
  sizes = delta.embeddings
  joined = delta.task_size + sizes.size
  yield names.Weight(f'{name}.layer_id_embeddings.weight', f'{path}/layers', (),
                     (shape.layers, sizes.size))
  if delta.scope == 'places':
    joined += sizes.size
    yield names.Weight(f'{name}.adapters_block_type.weight', f'{path}/places', (),
                       (len(delta.sites), sizes.size))
  yield from network_weights(f'{name}.task_hypernet', f'{path}/join',
                             (joined, sizes.hidden, sizes.projected))
  if sizes.normed:
    for part in ('scale', 'bias'):
      yield names.Weight(f'{name}.LayerNorm.{_PARTS[part]}', f'{path}/norm/{part}', (),
                         (sizes.projected,))
  for site in delta.sites[:1] if delta.scope == 'places' else delta.sites:
    yield from generator_weights(delta, shape, site, name, path, ())


def _controllers(config: T5Config) -> Iterator[tuple[str, int, str, str]]:
  """(stack, layer, site, name in the original) of every place of an adapter."""
  for stack, depth in (('encoder', config.encoder_layers), ('decoder', config.decoder_layers)):
    numbers = {'self_attention/o': 0, 'mlp/wo': 1 if stack == 'encoder' else 2}
    for layer in range(depth):
      for site in SITES:
        yield stack, layer, site, f'{stack}.block.{layer}.layer.{numbers[site]}.{CONTROLLER}'


def _shape(config: T5Config, stack: str) -> StackShape:
  layers = config.encoder_layers if stack == 'encoder' else config.decoder_layers
  return StackShape(stack, layers, config.embed, config.heads, config.kv, config.mlp, np.float32)


def _deltas(layout: HyperformerLayout) -> Iterator[names.Weight]:
  config, options = layout.config, layout.options
  adapter = options.adapter(config)
  if layout.stage == CONTROLLER:
    for stack, layer, site, name in _controllers(config):
      yield from adapter_weights(adapter, layout.tasks, config.embed, name,
                                 f'{stack}/layers/{site}/{ADAPTER}', (layer,))
    return
  delta = hyperformer.hyper_delta(options, config, hyperformer.SCOPES[layout.stage])
  yield from task_weights(delta, layout.tasks, 'task_embedding_controller', f'deltas/{HYPER}')
  if delta.scope != 'layer':
    for stack in ('encoder', 'decoder'):
      yield from hypernet_weights(delta, _shape(config, stack), f'{stack}.adapter_layers_hyper_net',
                                  f'{stack}/{HYPER}')
    return
  for stack, layer, site, name in _controllers(config):
    yield from generator_weights(delta, _shape(config, stack), site, name, f'{stack}/{HYPER}',
                                 (layer,))
    if delta.own:
      yield from norm_weights(adapter, config.embed, name, f'{stack}/layers/{site}/{HYPER}',
                              (layer,))


def table_of(layout: HyperformerLayout) -> names.Table:
  """Every tensor of a state of this layout, the backbone's too, and where it lives in the tree."""
  backbone = huggingface.t5_table(layout.config)
  return names.Table((*backbone.weights, *_deltas(layout)), backbone.aliases, backbone.ignored)


def state_to_tree(state: Mapping[str, Any], layout: HyperformerLayout,
                  place: str | None = None) -> Tree:
  """Translates an original state dict, strictly.

  Args:
    state: original name -> array.
    layout: what it holds.
    place: file for messages.

  Returns:
    Parameter tree of float32.

  Raises:
    UserError: missing, unexpected or misshaped names.
  """
  return names.load(state, table_of(layout), place, np.float32)


def tree_to_state(params: Mapping[str, Any], layout: HyperformerLayout, *, aliases: bool = False,
                  partial: bool = False) -> dict[str, np.ndarray]:
  """Translates a parameter tree into an original state dict, strictly; see `names.dump`."""
  return names.dump(params, table_of(layout), aliases=aliases, partial=partial)
