"""Finds out what a checkpoint of the original PEMT code, or a tree of the same parts, holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import re
from typing import Any

import numpy as np

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.interop import pemt_baselines
from pemt_jax.interop import pemt_layout as layouts
from pemt_jax.interop.pemt_layout import PemtLayout
from pemt_jax.models.t5_config import T5Config

_EXPERT_LORA = re.compile(r'DenseReluDense\.wo\.lora_A(?:\.(?P<expert>\d+))?$')
_ATTENTION_A = re.compile(r'Attention\.q\.lora_A$')
_ATTENTION_B = re.compile(r'Attention\.q\.lora_B$')
_SOURCE_PROMPT = re.compile(r'^task_list\.(\d+)$')
# Tensors that show the width of the residual stream, and on which axis.
_EMBED = ((r'^(?:task_shared|prefix_shared)$', 1), (r'\.wo\.lora_B(?:\.\d+)?$', 0),
          (r'\.up_sampler\.bias$', 0), (r'Attention\.q\.lora_A$', 1))
_MLP = ((r'\.wo\.lora_A(?:\.\d+)?$', 1),
        (r'DenseReluDense\.adapter_controller\..*\.down_sampler\.weight$', 1))

Shapes = dict[str, tuple[int, ...]]


def layout_from_state(
    state: Mapping[str, Any], *, backbone: T5Config | None = None,
    sources: Sequence[str] | None = None, target: str | None = None) -> PemtLayout:
  """Returns the layout of a checkpoint by looking at its names and shapes.

  What is found once is expected in every layer, so that a strict load notices gaps; adapters after
  a sub-layer may be in some layers only.

  Args:
    state: original name -> array.
    backbone: config of the T5 in it; default is read off the tensors.
    sources: task of each expert in the order of the bank. LoRA files do not name them (default
      'source_0', ...); adapter files do, and the default is their order in the file.
    target: task of the target adapter, if the file has adapters for several.

  Raises:
    UserError: if `sources` or `target` do not fit the file.
  """
  shapes = {name: tuple(np.shape(value)) for name, value in state.items()}
  if 'shared.weight' in shapes and backbone is None:
    backbone = infer_t5(state)
  encoder, decoder = (_layers(stack, shapes) for stack in ('encoder', 'decoder'))
  baselines = pemt_baselines.shapes_of_state(shapes)
  if baselines['mixda']:  # Its task adapter stands where experts of an adapter bank stand.
    form, width, found, placed = None, 0, (), None
    target = target or layouts.tasks_at(layouts.EXPERT_SITE, shapes)[0]
  else:
    form, width, found = _experts(shapes, sources)
    target = placed = _target(shapes, target)
  prompt = (layouts.TUNED_PROMPT if layouts.TUNED_PROMPT in shapes else layouts.TASK_PROMPT)
  numbered = filter(None, map(_SOURCE_PROMPT.match, shapes))
  lengths = {int(match[1]): shapes[match[0]][0] for match in numbered}
  return PemtLayout(
      embed=_first(shapes, *_EMBED) if backbone is None else backbone.embed,
      mlp=_first(shapes, *_MLP) if backbone is None else backbone.mlp,
      encoder_layers=encoder, decoder_layers=decoder, backbone=backbone,
      expert_form=form, sources=found, expert_width=width, target=target,
      target_width=_first(shapes, (_down_bias(layouts.TARGET_SITE), 0)),
      attention_adapter_width=_first(shapes, (_down_bias(layouts.ATTENTION_SITE), 0)),
      adapter_norms=tuple(kind for kind in ('pre', 'post') if _first(
          shapes, (rf'layer\.\d\.adapter_controller\.{kind}_layer_norm\.weight$', 0))),
      encoder_adapter_layers=_placement('encoder', encoder, placed, shapes),
      decoder_adapter_layers=_placement('decoder', decoder, placed, shapes),
      attention_rank=_first(shapes, (_ATTENTION_A, 0)),
      joined_kv=_first(shapes, (_ATTENTION_B, 0)),
      prompt_name=prompt,
      prompt_length=0 if 'attempt' in baselines else shapes.get(prompt, (0,))[0],
      source_lengths=tuple(lengths[number] for number in sorted(lengths)), **baselines)


def infer_t5(state: Mapping[str, Any]) -> T5Config:
  """Returns the config that the tensors of a Hugging Face T5 imply.

  Not to be seen in them, and therefore at their published values: dropout, epsilon, ids, the
  maximum distance, and the activation (tanh GELU if gated, else ReLU).

  Raises:
    UserError: if the tensors that show a size are missing.
  """
  shapes = {name: tuple(np.shape(value)) for name, value in state.items()}
  first = 'encoder.block.0.layer'
  head = state.get('lm_head.weight')
  try:
    vocab_size, embed = shapes['shared.weight']
    buckets, heads = shapes[f'{first}.0.SelfAttention.relative_attention_bias.weight']
    joined_kv = shapes[f'{first}.0.SelfAttention.q.weight'][0]
    mlp = shapes[f'{first}.1.DenseReluDense.wo.weight'][1]
  except (KeyError, ValueError) as error:
    raise UserError(f'The checkpoint lacks {error}, which shows the size of its T5; '
                    'check that the file is complete.') from error
  gated = f'{first}.1.DenseReluDense.wi_0.weight' in shapes
  return T5Config(
      vocab_size=vocab_size, embed=embed, kv=joined_kv // heads, heads=heads, mlp=mlp,
      encoder_layers=_layers('encoder', shapes), decoder_layers=_layers('decoder', shapes),
      relative_buckets=buckets, activation='gelu_tanh' if gated else 'relu', gated=gated,
      tied_head=head is None or np.array_equal(head, state['shared.weight']))


def _layers(stack: str, shapes: Mapping[str, Any]) -> int:
  found = map(re.compile(rf'^{stack}\.block\.(\d+)\.').match, shapes)
  return max((int(match[1]) + 1 for match in found if match), default=0)


def _first(shapes: Shapes, *patterns: tuple[str | re.Pattern[str], int]) -> int:
  """Size on an axis of the first tensor that a pattern finds, or 0."""
  for pattern, axis in patterns:
    for name, shape in shapes.items():
      if re.search(pattern, name) and len(shape) > axis:
        return shape[axis]
  return 0


def _down_bias(site: str) -> re.Pattern[str]:
  return layouts.sampler_pattern(site, 'down', 'bias')


def _experts(
    shapes: Shapes, given: Sequence[str] | None) -> tuple[str | None, int, tuple[str, ...]]:
  """Form, width and sources of the experts in a file."""
  matches = [match for match in map(_EXPERT_LORA.search, shapes) if match]
  if matches:
    count = max(int(match['expert'] or 0) for match in matches) + 1
    found = tuple(given) if given else layouts.unnamed_sources(count)
    if len(found) != count:
      raise UserError(f'{len(found)} source names are given ({", ".join(found)}) but the '
                      f'checkpoint has {count} experts; give one name per expert, in order.')
    return 'lora', _first(shapes, (_EXPERT_LORA, 0)), found
  found = layouts.tasks_at(layouts.EXPERT_SITE, shapes)
  if not found:
    return None, 0, ()
  if given and sorted(given) != sorted(found):
    raise UserError(f'The sources given are {", ".join(given)} but the checkpoint has the experts '
                    f'{", ".join(found)}; give these names, in the order of training.')
  width = _first(shapes, (_down_bias(layouts.EXPERT_SITE), 0))
  return 'adapter', width, tuple(given or found)


def _target(shapes: Shapes, given: str | None) -> str | None:
  found = dict.fromkeys(layouts.tasks_at(layouts.TARGET_SITE, shapes)
                        + layouts.tasks_at(layouts.ATTENTION_SITE, shapes))
  if not found:
    return None
  if given is None and len(found) == 1:
    return next(iter(found))
  if given not in found:
    raise UserError(f"The target task '{given}' is not among the adapters of the checkpoint "
                    f'({", ".join(found)}); name one of them.')
  return given


def _placement(
    stack: str, layers: int, target: str | None, shapes: Shapes) -> tuple[int, ...] | None:
  """Blocks of a stack that have an adapter after a sub-layer; None if all have."""
  if target is None:
    return None
  sites = [layouts.sampler_pattern(site)
           for site in (layouts.TARGET_SITE, layouts.ATTENTION_SITE)]
  found = {int(match['layer']) for pattern in sites for name in shapes
           if name.startswith(stack) and (match := pattern.search(name))}
  return None if len(found) == layers else tuple(sorted(found))


def layout_from_tree(
    params: Mapping[str, Any], constants: Mapping[str, Any] | None = None, *,
    backbone: T5Config | None = None, sources: Sequence[str] | None = None,
    target: str | None = None) -> PemtLayout:
  """Returns the layout of a tree of PEMT's parts, for export.

  Args:
    params: parameter tree; deltas in every layer of their stack.
    constants: collection with the masks of padded prompts; default is no padding.
    backbone: config of the T5, if the tree holds it.
    sources: task of each expert, in the order of the bank; default 'source_0', ...
    target: task of the target adapter.

  Raises:
    UserError: if the number of sources is not the bank's, or a target adapter has no task.
  """
  leaves = {path: tuple(np.shape(leaf)) for path, leaf in trees.flatten(params).items()}
  masks = trees.flatten(constants or {})
  form, width, count = _tree_experts(leaves)
  sources = tuple(sources or layouts.unnamed_sources(count))
  if len(sources) != count:
    raise UserError(f'{len(sources)} source names are given but the tree has {count} experts; '
                    'give one name per expert, in order.')
  adapter = _tree_size(leaves, r'/mlp/wo/(?:pemt/)?adapter/down/bias$')
  attention = _tree_size(leaves, r'/self_attention/o/adapter/down/bias$')
  if (adapter or attention) and target is None:
    raise UserError('The tree has a target adapter, whose names need its task; give the target.')
  rows = leaves.get('encoder/embed/prompt/table', (0,))[0]
  length = int(np.sum(masks.get('encoder/embed/prompt/mask', rows)))
  return PemtLayout(
      embed=backbone.embed if backbone else _tree_size(
          leaves, r'embed/prompt/table$|/w?o/lora/up$|bank/up$|up/bias$|bank/up_bias$'),
      mlp=backbone.mlp if backbone else _tree_size(
          leaves, r'/wo/lora/down$|bank/down$|ffout/down/kernel$|bank/down_kernel$', -2),
      encoder_layers=_tree_layers('encoder', leaves, backbone),
      decoder_layers=_tree_layers('decoder', leaves, backbone), backbone=backbone,
      expert_form=form, sources=sources, expert_width=width,
      target=target if adapter or attention else None, target_width=adapter,
      attention_adapter_width=attention,
      adapter_norms=tuple(kind for kind in ('pre', 'post')
                          if _tree_size(leaves, rf'/adapter/{kind}_norm/scale$')),
      attention_rank=_tree_size(leaves, r'attention/q/lora/down$'),
      joined_kv=_tree_size(leaves, r'attention/q/lora/up$'),
      prompt_length=length, prompt_rows=0 if rows == length else rows,
      source_lengths=_tree_source_lengths(leaves, masks))


def _tree_size(leaves: Shapes, pattern: str, axis: int = -1) -> int:
  return next((shape[axis] for path, shape in leaves.items() if re.search(pattern, path)), 0)


def _tree_layers(stack: str, leaves: Shapes, backbone: T5Config | None) -> int:
  if backbone is not None:
    return backbone.encoder_layers if stack == 'encoder' else backbone.decoder_layers
  # Adapters may be in some layers only.
  return max((shape[0] for path, shape in leaves.items() if path.startswith(f'{stack}/layers/')),
             default=0)


def _tree_experts(leaves: Shapes) -> tuple[str | None, int, int]:
  """Form, width and number of the experts in a tree."""
  for form, pattern in (('lora', r'/pemt/bank/down$'), ('adapter', r'/pemt/bank/down_kernel$')):
    if _tree_size(leaves, pattern):
      return form, _tree_size(leaves, pattern), _tree_size(leaves, pattern, 1)
  for form, pattern in (('lora', r'/wo/lora/down$'), ('adapter', r'/wo/ffout/down/kernel$')):
    if _tree_size(leaves, pattern):
      return form, _tree_size(leaves, pattern), 1
  # What stage 2 tunes, without the bank it tunes on: only the count shows.
  return None, 0, _tree_size(leaves, r'/pemt/gate/kernel$')


def _tree_source_lengths(leaves: Shapes, masks: Mapping[str, Any]) -> tuple[int, ...]:
  path = 'encoder/embed/prompt/sources'
  if path not in leaves:
    return ()
  count, rows, _ = leaves[path]
  mask = masks.get(f'{path}_mask', np.ones((count, rows)))
  return tuple(int(length) for length in np.sum(mask, axis=-1))
