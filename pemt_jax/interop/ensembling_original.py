"""State dicts of the original weight-ensembling program <-> parameter trees, in both directions.

A layout says which deltas a state holds; it follows from the program's own flags, which stand in
every checkpoint (`args`). Names and shapes of the tensors:

| delta | tensors, the first ones with their stack and block in front |
|---|---|
| adapter | `layer.<l>.adapter.adapter_A` [embed, size], `adapter_B` [size, embed] |
| LoRA | `SelfAttention.{q,v}.lora_A` [embed, rank], `lora_B` [rank, out]; `EncDecAttention` too |
| its other forms | `lora_A` [rank, embed] or `lora_R` [rank, 1], `lora_B` [out, rank], `lora_C` |
| prefix | `<stack>.prefix.prefix`, `.prefix_project.0.weight`, `.prefix_project.2.weight` |
| generated | `share_intrinsic` [intrinsic, 1]; `hyper_...` where the parameters would be |
| prompt | `prompt` [rows, embed] |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.interop import huggingface, names
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree

_STACKS = ('encoder', 'decoder')
# Sub-layers of a block in their order: module of the original, site here.
_SUBLAYERS = {
    'encoder': (('SelfAttention', 'self_attention'), ('DenseReluDense', 'mlp')),
    'decoder': (('SelfAttention', 'self_attention'), ('EncDecAttention', 'cross_attention'),
                ('DenseReluDense', 'mlp'))}
PROMPT = 'encoder/embed/prompt'
SHARED = 'share_intrinsic'


@dataclasses.dataclass(frozen=True)
class EnsemblingLayout:
  """What a state dict holds.

  Attributes:
    config: of the backbone.
    adapter_size: hidden units of the adapters; 0 without.
    lora_form: 'lora', 'lora_mlp', 'lora_br' or 'bias_mlp'; '' without.
    lora_rank: of that form.
    prefix_length: rows of a prefix; 0 without.
    prefix_rank: hidden units behind the prefix.
    intrinsic: numbers of the vector that generates the deltas; 0 where they are parameters.
    prompt_length: rows of the prompt; 0 without.
  """

  config: T5Config
  adapter_size: int = 0
  lora_form: str = ''
  lora_rank: int = 0
  prefix_length: int = 0
  prefix_rank: int = 0
  intrinsic: int = 0
  prompt_length: int = 0

  def layers(self, stack: str) -> int:
    """Number of blocks of a stack."""
    return self.config.encoder_layers if stack == 'encoder' else self.config.decoder_layers

  @property
  def lora_rule(self) -> str:
    """Name of the low-rank rule in a plan; '' without."""
    return 'intrinsic_lora' if self.lora_form and self.intrinsic else self.lora_form


def layout_from_flags(flags: Mapping[str, Any], config: T5Config,
                      prompt_length: int = 0) -> EnsemblingLayout:
  """Returns the layout that the program's flags describe.

  Args:
    flags: `args` of a checkpoint, or `model_config` of a recorded case.
    config: of the backbone.
    prompt_length: rows of a soft prompt, which is no part of the model there.

  Raises:
    UserError: one vector generates deltas of several kinds, or a form that has no generator.
  """
  number = lambda name: int(flags.get(name) or 0)
  forms = [form for flag, form in (('apply_lora', 'lora'), ('apply_lora_BR', 'lora_br'),
                                   ('apply_bias', 'lora_br'), ('apply_bias_stage2', 'lora_br'))
           if flags.get(flag)]
  form = forms[-1] if forms else ''
  if form and flags.get('decoder_mlp'):
    form = {'lora': 'lora_mlp', 'lora_br': 'bias_mlp'}[form]
  prefix, shared = bool(flags.get('apply_prefix')), bool(flags.get('share_intrinsic'))
  kinds = [form, *(name for name in ('adapter', 'prefix') if flags.get(f'apply_{name}'))]
  if shared and [kind for kind in kinds if kind] not in (['lora'], ['adapter'], ['prefix']):
    raise UserError('share_intrinsic stands with apply_adapter, apply_lora or apply_prefix alone,'
                    f" but the flags name {', '.join(filter(None, kinds)) or 'none'}; this state"
                    ' cannot be read.')
  return EnsemblingLayout(
      config, number('adapter_size') if flags.get('apply_adapter') else 0, form,
      number('lora_r') if form else 0, number('prefix_num') if prefix else 0,
      number('prefix_r') if prefix and not shared else 0,
      number('intrinsic_dim') if shared else 0, prompt_length)


def table_of(layout: EnsemblingLayout, parts: Collection[str] | None = None) -> names.Table:
  """Returns every tensor of a state of this layout and where it lives in the tree.

  Args:
    layout: what the state holds.
    parts: some of `PARTS`; default is all.

  Raises:
    UserError: unknown part.
  """
  chosen = PARTS if parts is None else parts
  unknown = [part for part in chosen if part not in PARTS]
  if unknown:
    raise UserError(f"Unknown part '{unknown[0]}' of a checkpoint; known are {', '.join(PARTS)}.")
  weights = [weight for part in PARTS if part in chosen for weight in PARTS[part](layout)]
  aliases, ignored = _aliases(weights), ()
  if 'backbone' in chosen:
    backbone = huggingface.t5_table(layout.config)
    aliases, ignored = aliases | backbone.aliases, backbone.ignored
  return names.Table(tuple(weights), aliases, ignored)


def _aliases(weights: list[names.Weight]) -> dict[str, str]:
  """Each module that reads the shared vector bears it under a name of its own."""
  aliases = {}
  for weight in weights:
    owner, _, last = weight.name.rpartition('.')
    if last in ('hyper_adapter_A', 'hyper_lora_A'):
      aliases[f'{owner}.share_intrinsic'] = SHARED
    if weight.name.endswith('.hyper_prefix_project.bias'):
      aliases[f'{owner.removesuffix("_project")}'] = SHARED
  return aliases


def _backbone(layout: EnsemblingLayout) -> Iterator[names.Weight]:
  yield from huggingface.t5_table(layout.config).weights


def _sublayers(layout: EnsemblingLayout) -> Iterator[tuple[str, str, str, int]]:
  """(name of the sub-layer, module in it, path of its site, layer) of every block."""
  for stack in _STACKS:
    for layer in range(layout.layers(stack)):
      for number, (module, site) in enumerate(_SUBLAYERS[stack]):
        yield (f'{stack}.block.{layer}.layer.{number}', module, f'{stack}/layers/{site}', layer)


def _vector(layout: EnsemblingLayout, rule: str) -> names.Weight:
  return names.Weight(SHARED, f'deltas/{rule}/z', (), (layout.intrinsic, 1), unit=1)


def _adapters(layout: EnsemblingLayout) -> Iterator[names.Weight]:
  embed, size = layout.config.embed, layout.adapter_size
  if not size:
    return
  if layout.intrinsic:
    yield _vector(layout, 'intrinsic_adapter')
  for name, module, path, layer in _sublayers(layout):
    site = f'{path}/wo' if module == 'DenseReluDense' else f'{path}/o'
    if layout.intrinsic:
      for half, ours in (('A', 'down'), ('B', 'up')):
        yield names.Weight(f'{name}.adapter.hyper_adapter_{half}',
                           f'{site}/intrinsic_adapter/hyper_{ours}', (layer,),
                           (layout.intrinsic, embed * size))
      continue
    for half, ours, shape in (('A', 'down', (embed, size)), ('B', 'up', (size, embed))):
      yield names.Weight(f'{name}.adapter.adapter_{half}', f'{site}/adapter/{ours}/kernel',
                         (layer,), shape)


def _lora(layout: EnsemblingLayout) -> Iterator[names.Weight]:
  form = layout.lora_rule
  if not form:
    return
  if layout.intrinsic:
    yield _vector(layout, form)
  for name, module, path, layer in _sublayers(layout):
    if module == 'DenseReluDense':
      continue
    for projection in 'qv':
      yield from LORA_FORMS[form](layout, f'{name}.{module}.{projection}',
                                  f'{path}/{projection}/{form}', (layer,))


def _plain_lora(layout: EnsemblingLayout, name: str, path: str,
                index: tuple[int, ...]) -> Iterator[names.Weight]:
  rank, config = layout.lora_rank, layout.config
  yield names.Weight(f'{name}.lora_A', f'{path}/down', index, (config.embed, rank))
  yield names.Weight(f'{name}.lora_B', f'{path}/up', index, (rank, config.joined_kv))


def _tanh_lora(layout: EnsemblingLayout, name: str, path: str,
               index: tuple[int, ...]) -> Iterator[names.Weight]:
  rank, out = layout.lora_rank, layout.config.joined_kv
  yield names.Weight(f'{name}.lora_A', f'{path}/down', index, (rank, layout.config.embed), True)
  yield names.Weight(f'{name}.lora_B', f'{path}/up', index, (out, rank), True)
  yield names.Weight(f'{name}.lora_C', f'{path}/mix', index, (out, out), True)


def _bias(layout: EnsemblingLayout, name: str, path: str,
          index: tuple[int, ...]) -> Iterator[names.Weight]:
  rank, out = layout.lora_rank, layout.config.joined_kv
  yield names.Weight(f'{name}.lora_R', f'{path}/vector', index, (rank, 1), unit=1)
  yield names.Weight(f'{name}.lora_B', f'{path}/up', index, (out, rank), True)


def _tanh_bias(layout: EnsemblingLayout, name: str, path: str,
               index: tuple[int, ...]) -> Iterator[names.Weight]:
  out = layout.config.joined_kv
  yield from _bias(layout, name, path, index)
  yield names.Weight(f'{name}.lora_C', f'{path}/mix', index, (out, out), True)


def _generated_lora(layout: EnsemblingLayout, name: str, path: str,
                    index: tuple[int, ...]) -> Iterator[names.Weight]:
  rank, config = layout.lora_rank, layout.config
  for half, ours, size in (('A', 'down', config.embed), ('B', 'up', config.joined_kv)):
    yield names.Weight(f'{name}.hyper_lora_{half}', f'{path}/hyper_{ours}', index,
                       (layout.intrinsic, rank * size))


# Form of a low-rank delta -> its tensors at one projection; the name is that of the rule too.
LORA_FORMS: dict[str, Callable[..., Iterator[names.Weight]]] = {
    'lora': _plain_lora, 'lora_mlp': _tanh_lora, 'lora_br': _bias, 'bias_mlp': _tanh_bias,
    'intrinsic_lora': _generated_lora}


def _prefixes(layout: EnsemblingLayout) -> Iterator[names.Weight]:
  rows, rank, embed = layout.prefix_length, layout.prefix_rank, layout.config.embed
  if not rows:
    return
  if layout.intrinsic:
    yield _vector(layout, 'intrinsic_prefix')
  for stack in _STACKS:
    name = f'{stack}.prefix'
    generated = 2 * layout.layers(stack) * layout.config.joined_kv
    if layout.intrinsic:
      path, size = f'{stack}/intrinsic_prefix', generated * rows
      yield names.Weight(f'{name}.hyper_prefix_project.weight', f'{path}/kernel', (),
                         (size, layout.intrinsic), True)
      yield names.Weight(f'{name}.hyper_prefix_project.bias', f'{path}/bias', (), (size,))
      continue
    path = f'{stack}/prefix'
    yield names.Weight(f'{name}.prefix', f'{path}/table', (), (rows, embed))
    yield names.Weight(f'{name}.prefix_project.0.weight', f'{path}/project_in', (), (rank, embed),
                       True)
    yield names.Weight(f'{name}.prefix_project.2.weight', f'{path}/project_out', (),
                       (generated, rank), True)


def _prompt(layout: EnsemblingLayout) -> Iterator[names.Weight]:
  if layout.prompt_length:
    yield names.Weight('prompt', f'{PROMPT}/table', (),
                       (layout.prompt_length, layout.config.embed))


# Part of a state -> its tensors. A checkpoint of a tuned delta holds the parts of that delta.
PARTS: dict[str, Callable[[EnsemblingLayout], Iterator[names.Weight]]] = {
    'backbone': _backbone,
    'adapter': _adapters,
    'lora': _lora,
    'prefix': _prefixes,
    'prompt': _prompt,
}
DELTAS = tuple(part for part in PARTS if part != 'backbone')


def constants_of(layout: EnsemblingLayout) -> Tree:
  """Returns the collection `constants`: the prompt's mask, empty without a prompt."""
  if not layout.prompt_length:
    return {}
  return {'encoder': {'embed': {'prompt': {'mask': np.ones(layout.prompt_length, np.float32)}}}}


def state_to_tree(
    state: Mapping[str, Any], layout: EnsemblingLayout, *, parts: Collection[str] | None = None,
    place: str | None = None) -> dict[str, Tree]:
  """Translates an original state dict, strictly.

  Args:
    state: original name -> array; second names of tied parameters may be there or not.
    layout: what it holds.
    parts: some of `PARTS`, for a file that holds only these; default is all of the layout.
    place: file for messages.

  Returns:
    {'params': tree, 'constants': mask of the prompt}, NumPy arrays.

  Raises:
    UserError: missing, unexpected or misshaped names; the sentence has file, name and shape.
  """
  params = names.load(state, table_of(layout, parts), place)
  return {'params': params, 'constants': constants_of(layout)}


def tree_to_state(
    params: Mapping[str, Any], layout: EnsemblingLayout, *, parts: Collection[str] | None = None,
    aliases: bool = False, partial: bool = False) -> dict[str, np.ndarray]:
  """Translates a parameter tree into an original state dict, strictly.

  Args:
    params: parameter tree, without `constants`.
    layout: what the state dict is to hold.
    parts: some of `PARTS`, if `params` holds only these; default is all of the layout.
    aliases: also write the second names of tied parameters.
    partial: let leaves of the layout be absent from `params`.

  Returns:
    Original name -> array.

  Raises:
    UserError: a leaf that is missing, misshaped or has no name in the layout.
  """
  return names.dump(params, table_of(layout, parts), aliases=aliases, partial=partial)



def split_vector(vector: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Cuts a flat vector that replaces the tensors of one module of the original.

  Args:
    vector: [size], the tensors one behind the other in memory order.
    shapes: name -> shape in the order of the module: A, B of adapters and LoRA; table, first and
      second projection of a prefix.

  Returns:
    name -> array.

  Raises:
    UserError: the vector has another size.
  """
  sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
  if vector.shape != (sum(sizes.values()),):
    raise UserError(f'a flat vector of shape {list(vector.shape)} cannot replace'
                    f" {', '.join(shapes)} of {sum(sizes.values())} numbers; give as many numbers.")
  ends = np.cumsum(list(sizes.values()))
  return {name: vector[end - sizes[name]:end].reshape(shape)
          for (name, shape), end in zip(shapes.items(), ends, strict=True)}
