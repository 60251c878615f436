"""State dicts and checkpoint folders of the original ProPETL program on RoBERTa, both ways.

Names stand below `roberta.encoder.layer.<l>`, but for heads; `<t>` is the task. Tensors that are
tied stand under all their names: the first one owns them, the others are aliases.

| tensors | shape |
|---|---|
| `[attention.]output.adapters.<t>.adapter_down.0.{weight,bias}` | [size, embed], [size] |
| `[attention.]output.adapters.<t>.adapter_up.{weight,bias}` | [embed, size], [embed] |
| `[attention.]output.adapters_mask.<t>.{down,up}_mask` | [embed, size], [size, embed] |
| `attention.self.{query,value}.loras.<t>.lora_{A,B}` | [rank, in], [out, rank] |
| `attention.self.{query,value}.adapters_mask.<t>.lora_{A,B}_mask` | the same |
| P = `attention.self.prefix_tuning.pool.prefix_tunings.<t>.self_prefix` | |
| `P.wte.weight`, `P.control_trans.{0,2}.{weight,bias}` | [prefix, embed]; two projections |
| `P.adapters_mask.adapters_mask` | [layer, prefix, 2 embed] |
| `heads.<t>.{1,4}.{weight,bias}` | two projections |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.experts.masks import top_mask
from pemt_jax.interop import names, roberta_files
from pemt_jax.methods.propetl import NAME, ProPETLOptions
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.trees import Tree

PREFIX = 'roberta.'
PARTS = ('backbone', 'delta', 'masks', 'head')
FORMS = ('', 'pfeiffer', 'houlsby', 'lora', 'prefix_tuning')
# Adapter modules of a layer in the original's order, and the sites here.
_PLACES = {'pfeiffer': (('output', 'mlp_norm'),),
           'houlsby': (('attention.output', 'self_attention_residual'),
                       ('output', 'mlp_residual'))}
_PROJECTIONS = {'q': 'query', 'k': 'key', 'v': 'value'}


@dataclasses.dataclass(frozen=True)
class RobertaLayout:
  """What a state dict holds.

  Attributes:
    config: of the backbone.
    labels: outputs of the head.
    task: name of adapter and head.
    form: one of `FORMS`; '' for a model without delta.
    shared: one prototype under masks; otherwise layers have their own and there are no masks.
    size: hidden units of the adapter, rank, or prefix rows.
    hidden: units of the network that makes the prefix.
    projections: with LoRA: keys of `_PROJECTIONS`.
  """

  config: RobertaConfig
  labels: int
  task: str
  form: str = ''
  shared: bool = False
  size: int = 0
  hidden: int = 0
  projections: tuple[str, ...] = ('q', 'v')


def layout_from_flags(flags: Mapping[str, Any], config: RobertaConfig,
                      labels: int) -> RobertaLayout:
  """Returns the layout that the program's options describe.

  Args:
    flags: `adapter_config`, `share_adapter`, `adapter_and_head_name` and the sizes of the form.
    config: of the backbone.
    labels: outputs of the head.

  Raises:
    UserError: an unknown form.
  """
  form, task = flags.get('adapter_config') or '', flags['adapter_and_head_name']
  if form not in FORMS:
    raise UserError(f"adapter_config is '{form}'; supported are {', '.join(FORMS[1:])}.")
  size = 0
  if form in _PLACES:
    size = int(config.embed // flags['reduction_factor'])
  elif form:
    size = flags['r' if form == 'lora' else 'prefix_length']
  return RobertaLayout(config, labels, task, form, bool(form and flags['share_adapter']), size,
                       flags.get('bottleneck_size', 512) if form == 'prefix_tuning' else 0)


def options_of(layout: RobertaLayout, flags: Mapping[str, Any]) -> ProPETLOptions:
  """The options of the method that a state belongs to, with the published behaviours.

  Raises:
    UserError: a model without delta.
  """
  shared = {'density': flags.get('sparsity', 1.0), 'owners': ('layer',)}
  common = shared if layout.shared else {'owners': (), 'place': 'layer'}
  if layout.form == 'lora':
    return ProPETLOptions('lora', rank=layout.size, alpha=float(flags['alpha']), fan='in',
                          projections=layout.projections, **common)
  if layout.form == 'prefix_tuning':
    return ProPETLOptions('prefix', length=layout.size, hidden=layout.hidden, fan='all', **common)
  if not layout.form:
    raise UserError('a model without adapter_config has no delta; give one of'
                    f' {", ".join(FORMS[1:])}.')
  houlsby = layout.form == 'houlsby'
  activation = flags.get('non_linearity') or ('swish' if houlsby else 'relu')
  return ProPETLOptions(
      'adapter', reduction=max(layout.config.embed // layout.size, 1), activation=activation,
      placement='houlsby' if houlsby else 'mlp', stddev=0.02, fan='out', **common)


def _adapters(layout: RobertaLayout, layer: int) -> Iterator[names.Weight]:
  embed, size = layout.config.embed, layout.size
  for module, site in _PLACES[layout.form]:
    inside = f'{PREFIX}encoder.layer.{layer}.{module}'
    path, index = f'deltas/{NAME}', ()
    if not layout.shared:
      path, index = f'encoder/layers/{site}/{NAME}', (layer,)
    for half, module_name, shape in (('down', 'adapter_down.0', (size, embed)),
                                     ('up', 'adapter_up', (embed, size))):
      name = f'{inside}.adapters.{layout.task}.{module_name}'
      yield from names.projection(name, f'{path}/{half}', shape, index)
      if layout.shared:
        yield names.Weight(f'{inside}.adapters_mask.{layout.task}.{half}_mask',
                           f'encoder/{NAME}/layer_{site}/{half}_kernel', (layer,), shape[::-1])


def _loras(layout: RobertaLayout, layer: int) -> Iterator[names.Weight]:
  embed, size = layout.config.embed, layout.size
  for projection in layout.projections:
    rule = f'{NAME}_{projection}'
    inside = f'{PREFIX}encoder.layer.{layer}.attention.self.{_PROJECTIONS[projection]}'
    path, index = f'deltas/{rule}', ()
    if not layout.shared:
      path, index = f'encoder/layers/self_attention/{projection}/{rule}', (layer,)
    for half, letter, shape in (('down', 'A', (size, embed)), ('up', 'B', (embed, size))):
      yield names.Weight(f'{inside}.loras.{layout.task}.lora_{letter}', f'{path}/{half}', index,
                         shape, True)
      if layout.shared:
        yield names.Weight(f'{inside}.adapters_mask.{layout.task}.lora_{letter}_mask',
                           f'encoder/{rule}/layer_self_attention_{projection}/{half}', (layer,),
                           shape, True)


def _prefixes(layout: RobertaLayout, layer: int | None) -> Iterator[names.Weight]:
  """Those below a layer, or below the pool of the model (None)."""
  config, hidden = layout.config, layout.hidden
  place = '' if layer is None else f'encoder.layer.{layer}.attention.self.'
  pool = 'prefix_tuning.' if layer is None else 'prefix_tuning.pool.'
  inside = f'{PREFIX}{place}{pool}prefix_tunings.{layout.task}.self_prefix'
  path, size = f'deltas/{NAME}', 2 * config.embed
  if not layout.shared:
    path, size = f'encoder/{NAME}', size * config.encoder_layers
  rows = [('wte.weight', 'table', (layout.size, config.embed), False)]
  for number, part, shape in ((0, 'in', (hidden, config.embed)), (2, 'out', (size, hidden))):
    rows += [(f'control_trans.{number}.weight', f'project_{part}', shape, True),
             (f'control_trans.{number}.bias', f'bias_{part}', shape[:1], False)]
  for name, leaf, shape, transpose in rows:
    yield names.Weight(f'{inside}.{name}', f'{path}/{leaf}', (), shape, transpose)
  if layout.shared:
    yield names.Weight(f'{inside}.adapters_mask.adapters_mask',
                       f'encoder/{NAME}/layer_self_attention/rows', (),
                       (config.encoder_layers, layout.size, size))


def _deltas(layout: RobertaLayout) -> Iterator[names.Weight]:
  makers = {'pfeiffer': _adapters, 'houlsby': _adapters, 'lora': _loras,
            'prefix_tuning': _prefixes}
  if not layout.form:
    return
  for layer in range(layout.config.encoder_layers):
    yield from makers[layout.form](layout, layer)
  if layout.form == 'prefix_tuning':
    yield from _prefixes(layout, None)


def is_score(name: str) -> bool:
  """Whether an original name is that of scores."""
  return 'adapters_mask.' in name


def head_modules(layout: RobertaLayout) -> tuple[str, str]:
  """Names of the two projections of the head; without dropout they have other numbers."""
  numbers = (1, 4) if layout.config.dropout else (0, 2)
  return tuple(f'heads.{layout.task}.{number}' for number in numbers)


def table_of(layout: RobertaLayout, parts: tuple[str, ...] = PARTS) -> names.Table:
  """Returns the tensors of a state of this layout and where they live in the tree.

  Args:
    layout: what the state holds.
    parts: some of `PARTS`; the pooler belongs to the backbone, though nothing reads it.
  """
  weights, aliases, owners, ignored = [], {}, {}, ()
  if 'backbone' in parts:
    weights += roberta_files.encoder_weights(layout.config, PREFIX)
    weights += roberta_files.pooler_weights(layout.config, PREFIX)
    ignored = (f'{PREFIX}embeddings.position_ids',)
  for weight in _deltas(layout):
    if ('masks' if is_score(weight.name) else 'delta') not in parts:
      continue
    first = owners.setdefault((weight.path, weight.index), weight.name)
    if first == weight.name:
      weights.append(weight)
    else:
      aliases[weight.name] = first
  if 'head' in parts:
    weights += roberta_files.head_weights(layout.config, layout.labels, head_modules(layout))
  return names.Table(tuple(weights), aliases, ignored)


def state_to_tree(state: Mapping[str, Any], layout: RobertaLayout, *,
                  parts: tuple[str, ...] = PARTS, place: str | None = None) -> Tree:
  """Translates an original state dict, strictly; masks of zeros and ones become scores.

  Args:
    state: original name -> array; second names of tied tensors may be there or not.
    layout: what it holds.
    parts: see `table_of`.
    place: file for messages.

  Raises:
    UserError: missing, unexpected or misshaped names; the sentence has file, name and shape.
  """
  return names.load(state, table_of(layout, parts), place, np.float32)


def tree_to_state(params: Mapping[str, Any], layout: RobertaLayout, *,
                  parts: tuple[str, ...] = PARTS, aliases: bool = False,
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


def masks_of(params: Tree, layout: RobertaLayout, density: float) -> dict[str, np.ndarray]:
  """Zeros and ones of every score tensor, by its name; a prefix has `layer<l>` for each layer."""
  found = {}
  state = names.take_known(params, table_of(layout, ('masks',)))
  for name, scores in state.items():
    if layout.form != 'prefix_tuning':
      found[name] = np.asarray(top_mask(jnp.asarray(scores), density))
      continue
    for layer, mask in enumerate(np.asarray(top_mask(jnp.asarray(scores), density, 1))):
      found[f'{name.rpartition(".")[0]}.layer{layer}'] = mask
  return found
