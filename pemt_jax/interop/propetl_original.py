"""State dicts of the original ProPETL program on T5 <-> parameter trees, in both directions.

A controller `<stack>.block.<b>.layer.<k>.adapter_controller` holds an adapter and scores. Tensors
that are tied stand under all their names; the first one owns them, the others are aliases.

| tensors below a controller | shape |
|---|---|
| `adapters.common_adapter.{down,up}_sampler.weight` | [size, embed], [embed, size] |
| `adapters.common_adapter.{down,up}_sampler.bias` | [size], [embed] |
| `mask_scores.<owner>_{down,up}_mask.param`, owner: a task, a language, `layer` | as the weights |
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.experts.masks import top_mask
from pemt_jax.interop import files, huggingface, names
from pemt_jax.methods.pemt import NORMS
from pemt_jax.methods.propetl import NAME, ProPETLOptions
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree, flatten

PARTS = ('backbone', 'propetl', 'norms')
_STACKS = ('encoder', 'decoder')
# Half -> (its matrix here, whether its bias has the size of the adapter).
_HALVES = {'down': 'down_kernel', 'up': 'up_kernel'}
# The adapter's placement by the original's word; every other word is Houlsby's.
_BEHIND_MLP = 'preiffer'


@dataclasses.dataclass(frozen=True)
class ProPETLLayout:
  """What a state dict holds.

  Attributes:
    config: of the backbone.
    tasks: names of the task masks, in their order.
    languages: names of the language masks.
    size: hidden units of the adapters; 0 for a plain T5.
    owners: whose masks there are, see `experts.masked`.
    place: of the prototype: 'model', 'stack' or 'layer'.
    houlsby: adapters after self-attention too.
    first_layer: number of the language or task mask that is also that of encoder block 0, or None.
  """

  config: T5Config
  tasks: tuple[str, ...] = ()
  languages: tuple[str, ...] = ()
  size: int = 0
  owners: tuple[str, ...] = ()
  place: str = 'model'
  houlsby: bool = False
  first_layer: int | None = None


@dataclasses.dataclass(frozen=True)
class Controller:
  """One place of an adapter.

  Attributes:
    name: of the module in the original.
    rule: name of the rule here.
    stack: `encoder` or `decoder`.
    layer: number of the block.
    site: path of the site below its stack.
  """

  name: str
  rule: str
  stack: str
  layer: int
  site: str


def split_task(task: str) -> tuple[str, str]:
  """'xnli_de' -> ('xnli', 'de').

  Raises:
    UserError: no language in the name.
  """
  name, _, language = task.partition('_')
  if not name or not language or '_' in language:
    raise UserError(f"'{task}' does not name a task and a language; give names such as xnli_de.")
  return name, language


def layout_from_flags(flags: Mapping[str, Any], config: T5Config,
                      aliases: Mapping[str, str]) -> ProPETLLayout:
  """Returns the layout that the program's flags describe.

  Args:
    flags: adapter fields of a config file of the original, with `tasks`.
    config: of the backbone.
    aliases: second names of tied tensors -> first names; with languages they tell which one is that
      of encoder block 0, which there goes by the order of a set.

  Raises:
    UserError: a task name without language where masks of languages are asked for, or hybrid masks
      without a shared adapter.
  """
  if not flags.get('tasks'):
    return ProPETLLayout(config)
  tasks, languages = tuple(flags['tasks']), ()
  hybrid, shared = flags['mask_extreme_mode'], flags['share_adapter']
  if hybrid and not shared:
    raise UserError('mask_extreme_mode without share_adapter is not supported; set share_adapter.')
  owners = ('task', 'layer') if hybrid else ('layer_task',)
  if flags.get('use_multilingual'):
    split = [split_task(task) for task in tasks]
    tasks, languages = (tuple(dict.fromkeys(column)) for column in zip(*split, strict=True))
    owners = ('task', 'language', 'layer')
  factor = flags['reduction_factor']
  size = int(config.embed // factor) if factor > 1 else int(config.embed / factor)
  both = flags.get('share_encoder_decoder_single_adapter')
  first = None
  if hybrid:
    named = languages or tasks
    first = len(named) - 1
    for alias, owner in aliases.items():
      if alias.startswith('encoder.block.0.') and alias.endswith('.layer_down_mask.param'):
        first = named.index(owner.rpartition('mask_scores.')[2].removesuffix('_down_mask.param'))
  return ProPETLLayout(
      config, tasks, languages, size, owners,
      ('model' if both else 'stack') if shared else 'layer',
      flags.get('adapter_config_name', _BEHIND_MLP) != _BEHIND_MLP, first)


def options_of(layout: ProPETLLayout, flags: Mapping[str, Any]) -> ProPETLOptions:
  """The options of the method that a state belongs to, with the published behaviours."""
  members = ()
  if layout.languages:
    pairs = [split_task(task) for task in flags['tasks']]
    members = tuple((layout.tasks.index(a), layout.languages.index(b)) for a, b in pairs)
  return ProPETLOptions(
      density=flags['sparsity'], owners=layout.owners,
      combine=flags.get('mask_extreme_mode_combine_method', 'or'), place=layout.place,
      tasks=len(flags['tasks']), members=members, first_layer=layout.first_layer, full_masks=True,
      reduction=max(layout.config.embed // layout.size, 1), activation=flags['non_linearity'],
      placement='houlsby' if layout.houlsby else 'mlp',
      tune_norms=bool(flags.get('unfreeze_layer_norms')))


def controllers(layout: ProPETLLayout) -> Iterator[Controller]:
  """Every adapter of a layout, the owners of shared tensors first."""
  if not layout.size:
    return
  depths = {'encoder': layout.config.encoder_layers, 'decoder': layout.config.decoder_layers}
  for stack in _STACKS:
    for layer in range(depths[stack]):
      block = f'{stack}.block.{layer}.layer'
      if layout.houlsby:
        yield Controller(f'{block}.0.adapter_controller', f'{NAME}_attention', stack, layer,
                         'self_attention_residual')
      number = 1 if stack == 'encoder' else 2
      yield Controller(f'{block}.{number}.adapter_controller', NAME, stack, layer, 'mlp_residual')


def _prototype(layout: ProPETLLayout, own: Controller) -> Iterator[names.Weight]:
  shapes = {'down': (layout.size, layout.config.embed), 'up': (layout.config.embed, layout.size)}
  path, index = {'model': (f'deltas/{own.rule}', ()), 'stack': (f'{own.stack}/{own.rule}', ()),
                 'layer': (f'{own.stack}/layers/{own.site}/{own.rule}', (own.layer,))}[layout.place]
  for half, shape in shapes.items():
    name = f'{own.name}.adapters.common_adapter.{half}_sampler'
    yield from names.projection(name, f'{path}/{half}', shape, index)


def _scores(layout: ProPETLLayout, own: Controller) -> Iterator[names.Weight]:
  site = own.site.replace('/', '_')
  takes_first = own.stack == 'encoder' and layout.first_layer is not None
  places = [(task, f'deltas/{own.rule}/task', (number,), 'task')
            for number, task in enumerate(layout.tasks)]
  places += [(language, f'deltas/{own.rule}/language', (number,), 'language')
             for number, language in enumerate(layout.languages)]
  places += [(task, f'{own.stack}/{own.rule}/layer_task_{site}', (own.layer, number), 'layer_task')
             for number, task in enumerate(layout.tasks)]
  if takes_first and not own.layer:
    owner = 'language' if layout.languages else 'task'
    places.append(('layer', f'deltas/{own.rule}/{owner}', (layout.first_layer,), 'layer'))
  else:
    places.append(('layer', f'{own.stack}/{own.rule}/layer_{site}', (own.layer - takes_first,),
                   'layer'))
  shapes = {'down': (layout.size, layout.config.embed), 'up': (layout.config.embed, layout.size)}
  for name, path, index, owner in places:
    if owner in layout.owners:
      for half, leaf in _HALVES.items():
        yield names.Weight(f'{own.name}.mask_scores.{name}_{half}_mask.param', f'{path}/{leaf}',
                           index, shapes[half], True)


def table_of(layout: ProPETLLayout, parts: tuple[str, ...] = ('backbone', 'propetl')
             ) -> names.Table:
  """Returns every tensor of a state of this layout and where it lives in the tree.

  Args:
    layout: what the state holds.
    parts: some of `PARTS`; 'norms' are those of the backbone, for files of trained tensors.
  """
  backbone = huggingface.t5_table(layout.config)
  weights, aliases, owners = [], {}, {}
  if 'backbone' in parts:
    weights, aliases = list(backbone.weights), dict(backbone.aliases)
  elif 'norms' in parts:
    weights = [weight for weight in backbone.weights if re.fullmatch(NORMS[0], weight.path)]
  for own in controllers(layout) if 'propetl' in parts else ():
    for weight in (*_prototype(layout, own), *_scores(layout, own)):
      first = owners.setdefault((weight.path, weight.index), weight.name)
      if first == weight.name:
        weights.append(weight)
      else:
        aliases[weight.name] = first
  return names.Table(tuple(weights), aliases, backbone.ignored if 'backbone' in parts else ())


def state_to_tree(state: Mapping[str, Any], layout: ProPETLLayout, *,
                  parts: tuple[str, ...] = ('backbone', 'propetl'),
                  place: str | None = None) -> Tree:
  """Translates an original state dict, strictly; masks of zeros and ones become scores.

  Args:
    state: original name -> array; second names of tied tensors may be there or not.
    layout: what it holds.
    parts: see `table_of`.
    place: file for messages.

  Returns:
    Parameter tree of float32.

  Raises:
    UserError: missing, unexpected or misshaped names; the sentence has file, name and shape.
  """
  return names.load(state, table_of(layout, parts), place, np.float32)


def tree_to_state(params: Mapping[str, Any], layout: ProPETLLayout, *,
                  parts: tuple[str, ...] = ('backbone', 'propetl'), aliases: bool = False,
                  partial: bool = False) -> dict[str, np.ndarray]:
  """Translates a parameter tree into an original state dict, strictly.

  Args:
    params: parameter tree.
    layout: what the state dict is to hold.
    parts: see `table_of`.
    aliases: also write the second names of tied tensors.
    partial: let leaves of the layout be absent from `params`.

  Raises:
    UserError: a leaf that is missing, misshaped or has no name in the layout.
  """
  return names.dump(params, table_of(layout, parts), aliases=aliases, partial=partial)


def _is_score(name: str) -> bool:
  return '.mask_scores.' in name


def read_weights(path: str | pathlib.Path, layout: ProPETLLayout, *, norms: bool = False) -> Tree:
  """Reads a `propetl_weight` file: the trained leaves, masks as scores of zeros and ones.

  Args:
    path: torch file or safetensors.
    layout: what it belongs to.
    norms: whether the norms of the backbone were trained too.

  Raises:
    UserError: the file does not fit the layout.
  """
  parts = ('propetl', 'norms') if norms else ('propetl',)
  return state_to_tree(files.read_tensors(path), layout, parts=parts)


def write_weights(path: str | pathlib.Path, params: Tree, layout: ProPETLLayout,
                  density: float) -> None:
  """Writes a `propetl_weight` file: float32 prototype, masks as booleans, first names only.

  Args:
    path: torch file or safetensors.
    params: tree with the leaves of the method; norms are written if they are there.
    layout: what it belongs to.
    density: share of the entries that a mask keeps.
  """
  parts = ('propetl', 'norms') if any(re.fullmatch(NORMS[0], p) for p in flatten(params)) else (
      'propetl',)
  state = tree_to_state(params, layout, parts=parts)
  files.write_tensors(path, {
      name: np.asarray(top_mask(jnp.asarray(value), density)) > 0 if _is_score(name) else value
      for name, value in state.items()})


def masks_of(params: Tree, layout: ProPETLLayout, density: float) -> dict[str, np.ndarray]:
  """Masks of every controller by `<controller>.<owner>_<half>_mask`, in the original's shape."""
  state = tree_to_state(params, layout, aliases=True, partial=True)
  return {name.replace('.mask_scores.', '.').removesuffix('.param'):
          np.asarray(top_mask(jnp.asarray(value), density))
          for name, value in state.items() if _is_score(name)}
