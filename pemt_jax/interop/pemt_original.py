"""State dicts of the original PEMT code <-> parameter trees, in both directions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.interop import huggingface
from pemt_jax.interop import names
from pemt_jax.interop import pemt_baselines
from pemt_jax.interop import pemt_detect
from pemt_jax.interop import pemt_layout
from pemt_jax.interop.pemt_layout import PemtLayout
from pemt_jax.trees import Tree

layout_from_case = pemt_layout.layout_from_case
layout_from_state = pemt_detect.layout_from_state
layout_from_tree = pemt_detect.layout_from_tree

_STACKS = ('encoder', 'decoder')
_ATTENTIONS = {'encoder': (('layer.0.SelfAttention', 'self_attention'),),
               'decoder': (('layer.0.SelfAttention', 'self_attention'),
                           ('layer.1.EncDecAttention', 'cross_attention'))}
PROMPT = 'encoder/embed/prompt'


def table_of(layout: PemtLayout, parts: Collection[str] | None = None) -> names.Table:
  """Returns every tensor of a checkpoint of this layout and where it lives in the tree.

  Args:
    layout: what the checkpoint holds.
    parts: some of `PARTS`; default is all.

  Raises:
    UserError: unknown part.
  """
  chosen = PARTS if parts is None else parts
  unknown = [part for part in chosen if part not in PARTS]
  if unknown:
    raise UserError(f"Unknown part '{unknown[0]}' of a checkpoint; known are {', '.join(PARTS)}.")
  weights = [weight for part in PARTS if part in chosen for weight in PARTS[part](layout)]
  aliases, ignored = {}, ()
  if layout.backbone is not None and 'backbone' in chosen:
    backbone = huggingface.t5_table(layout.backbone)
    aliases, ignored = dict(backbone.aliases), backbone.ignored
    aliases |= _prompt_aliases(layout) | pemt_baselines.aliases_of(layout)
  return names.Table(tuple(weights), aliases, ignored)


def _prompt_aliases(layout: PemtLayout) -> dict[str, str]:
  aliases = {}
  own = {pemt_layout.TASK_PROMPT: 'task_emb', pemt_layout.TUNED_PROMPT: 'prefix_emb'}
  for stack in _STACKS:
    if layout.prompt_length:
      aliases[f'{stack}.{own[layout.prompt_name]}'] = layout.prompt_name
    for number in range(len(layout.source_lengths)):
      aliases[f'{stack}.pretrain_task_emb_list.{number}'] = f'task_list.{number}'
  return aliases


def _backbone(layout: PemtLayout) -> Iterator[names.Weight]:
  if layout.backbone is not None:
    yield from huggingface.t5_table(layout.backbone).weights


def _feed_forwards(layout: PemtLayout) -> Iterator[tuple[str, str, int]]:
  """(name of the feed-forward sub-layer, path of its output projection, layer) of every block."""
  for stack, number in zip(_STACKS, (1, 2), strict=True):
    for layer in range(layout.layers(stack)):
      yield f'{stack}.block.{layer}.layer.{number}', f'{stack}/layers/mlp/wo', layer


def _lora(
    name: str, path: str, index: tuple[int, ...], sizes: tuple[int, int, int],
    number: int | None = None) -> Iterator[names.Weight]:
  """The two factors of a LoRA; `sizes` are in, rank, out."""
  size_in, rank, size_out = sizes
  suffix = '' if number is None else f'.{number}'
  yield names.Weight(f'{name}.lora_A{suffix}', f'{path}/down', index, (rank, size_in), True)
  yield names.Weight(f'{name}.lora_B{suffix}', f'{path}/up', index, (size_out, rank), True)


def _bottleneck(
    name: str, path: str, index: tuple[int, ...], sizes: tuple[int, int, int],
    joint: str = '/') -> Iterator[names.Weight]:
  """The four arrays of an adapter; `sizes` are in, bottleneck, out; `joint` is '_' in a bank."""
  size_in, width, size_out = sizes
  for half, shape in (('down', (width, size_in)), ('up', (size_out, width))):
    prefix = f'{path}/{half}{joint}'
    yield names.Weight(f'{name}.{half}_sampler.weight', f'{prefix}kernel', index, shape, True)
    yield names.Weight(f'{name}.{half}_sampler.bias', f'{prefix}bias', index, shape[:1])


def _experts(layout: PemtLayout) -> Iterator[names.Weight]:
  sizes = (layout.mlp, layout.expert_width, layout.embed)
  mixed = layout.has_mixture
  for name, path, layer in _feed_forwards(layout):
    for number, source in enumerate(layout.sources):
      index = (layer, number) if mixed else (layer,)
      if layout.expert_form == 'lora':
        yield from _lora(f'{name}.DenseReluDense.wo', f'{path}/pemt/bank' if mixed else
                         f'{path}/lora', index, sizes, number if mixed else None)
      else:
        yield from _bottleneck(f'{name}.DenseReluDense.adapter_controller.adapters.{source}',
                               f'{path}/pemt/bank' if mixed else f'{path}/ffout', index, sizes,
                               '_' if mixed else '/')


def _gates(layout: PemtLayout) -> Iterator[names.Weight]:
  if not layout.has_mixture:
    return
  owner = 'wo.' if layout.expert_form == 'lora' else ''
  for name, path, layer in _feed_forwards(layout):
    size = layout.mlp if name.startswith('encoder') else layout.embed
    yield names.Weight(f'{name}.DenseReluDense.{owner}w_gate', f'{path}/pemt/gate/kernel', (layer,),
                       (size, len(layout.sources)))


def _target_adapter(layout: PemtLayout) -> Iterator[names.Weight]:
  if not layout.target_width:
    return
  inside = 'pemt/adapter' if layout.has_mixture else 'adapter'
  for stack, number in zip(_STACKS, (1, 2), strict=True):
    yield from _adapters(layout, stack, f'layer.{number}', f'mlp/wo/{inside}', layout.target_width)


def _attention_adapter(layout: PemtLayout) -> Iterator[names.Weight]:
  if not layout.attention_adapter_width:
    return
  for stack in _STACKS:
    yield from _adapters(layout, stack, 'layer.0', 'self_attention/o/adapter',
                         layout.attention_adapter_width)


def _adapters(
    layout: PemtLayout, stack: str, sub_layer: str, site: str, width: int
) -> Iterator[names.Weight]:
  """Adapters after one sub-layer, in the blocks that have them."""
  sizes = (layout.embed, width, layout.embed)
  path = f'{stack}/layers/{site}'
  for position, layer in enumerate(layout.adapter_layers(stack)):
    name = f'{stack}.block.{layer}.{sub_layer}.adapter_controller'
    yield from _bottleneck(f'{name}.adapters.{layout.target}', path, (position,), sizes)
    for kind in layout.adapter_norms:
      for theirs, ours in (('weight', 'scale'), ('bias', 'bias')):
        yield names.Weight(f'{name}.{kind}_layer_norm.{theirs}', f'{path}/{kind}_norm/{ours}',
                           (position,), (layout.embed,))


def _attention_lora(layout: PemtLayout) -> Iterator[names.Weight]:
  if not layout.attention_rank:
    return
  inward = (layout.embed, layout.attention_rank, layout.joined_kv)
  modules = [(stack, layer, *attention) for stack in _STACKS
             for layer in range(layout.layers(stack)) for attention in _ATTENTIONS[stack]]
  for stack, layer, module, site in modules:
    for projection in 'qkvo':
      yield from _lora(f'{stack}.block.{layer}.{module}.{projection}',
                       f'{stack}/layers/{site}/{projection}/lora', (layer,),
                       inward[::-1] if projection == 'o' else inward)


def _prompt(layout: PemtLayout) -> Iterator[names.Weight]:
  if layout.prompt_length:
    yield names.Weight(layout.prompt_name, f'{PROMPT}/table', (),
                       (layout.prompt_length, layout.embed), rows=layout.prompt_rows or None)


def _source_prompts(layout: PemtLayout) -> Iterator[names.Weight]:
  for number, length in enumerate(layout.source_lengths):
    yield names.Weight(f'task_list.{number}', f'{PROMPT}/sources', (number,),
                       (length, layout.embed), rows=max(layout.source_lengths))


# Part of a checkpoint -> its tensors. Legacy files hold some parts each.
PARTS = {
    'backbone': _backbone,
    'experts': _experts,
    'gates': _gates,
    'target_adapter': _target_adapter,
    'attention_adapter': _attention_adapter,
    'attention_lora': _attention_lora,
    'prompt': _prompt,
    'source_prompts': _source_prompts,
    'biases': pemt_baselines.biases,
    'adamix': pemt_baselines.adamix,
    'mixda': pemt_baselines.mixda,
    'attempt': pemt_baselines.attempt,
}


def constants_of(layout: PemtLayout, parts: Collection[str] | None = None) -> Tree:
  """Returns the collection `constants`: masks of the left-padded prompts, empty without prompts."""
  chosen = PARTS if parts is None else parts
  masks = {}
  if layout.prompt_length and 'prompt' in chosen:
    rows = layout.prompt_rows or layout.prompt_length
    masks['mask'] = _left_padded([layout.prompt_length], rows)[0]
  if layout.source_lengths and 'source_prompts' in chosen:
    masks['sources_mask'] = _left_padded(layout.source_lengths, max(layout.source_lengths))
  return {'encoder': {'embed': {'prompt': masks}}} if masks else {}


def _left_padded(lengths: Any, rows: int) -> np.ndarray:
  """[len(lengths), rows] float32 with `length` ones at the end of each row."""
  return (np.arange(rows) >= rows - np.asarray(lengths)[:, None]).astype(np.float32)


def state_to_tree(
    state: Mapping[str, Any], layout: PemtLayout, *, parts: Collection[str] | None = None,
    place: str | None = None) -> dict[str, Tree]:
  """Translates an original state dict, strictly.

  Args:
    state: original name -> array; second names of tied parameters may be there or not.
    layout: what it holds.
    parts: some of `PARTS`, for a file that holds only these; default is all of the layout.
    place: file for messages.

  Returns:
    {'params': tree, 'constants': masks of the prompts}, NumPy arrays.

  Raises:
    UserError: missing, unexpected or misshaped names; the sentence has file, name and shape.
  """
  params = names.load(state, table_of(layout, parts), place)
  return {'params': params, 'constants': constants_of(layout, parts)}


def tree_to_state(
    params: Mapping[str, Any], layout: PemtLayout, *, parts: Collection[str] | None = None,
    aliases: bool = False, partial: bool = False) -> dict[str, np.ndarray]:
  """Translates a parameter tree into an original state dict, strictly; padding rows are dropped.

  Args:
    params: parameter tree (without `constants`, which follow from the layout).
    layout: what the state dict is to hold.
    parts: some of `PARTS`, if `params` holds only these; default is all of the layout.
    aliases: also write the second names of tied parameters, as full checkpoints do.
    partial: let leaves of the layout be absent from `params`.

  Returns:
    Original name -> array.

  Raises:
    UserError: a leaf that is missing, misshaped or has no name in the layout.
  """
  return names.dump(params, table_of(layout, parts), aliases=aliases, partial=partial)


def grads_to_named(grads: Mapping[str, Any], layout: PemtLayout) -> dict[str, np.ndarray]:
  """Returns {'grad/<original name>': array} for the gradients of a tuned tree.

  Raises:
    UserError: a leaf that has no name in the layout, or another shape.
  """
  state = tree_to_state(grads, layout, partial=True)
  return {f'grad/{name}': value for name, value in state.items()}
