"""The folders that the original PEMT code writes: lora.pt, adapter.pt, task_embedding.pt, ..."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
import json
import pathlib
from typing import Any

from pemt_jax.errors import UserError
from pemt_jax.interop import files
from pemt_jax.interop import names
from pemt_jax.interop import pemt_layout
from pemt_jax.interop import pemt_original
from pemt_jax.interop.pemt_layout import PemtLayout
from pemt_jax.models import t5_config
from pemt_jax.trees import Tree

LORA, ADAPTER, PROMPT, TUNED_PROMPT = 'lora', 'adapter', 'task_embedding', 'prefix_embeddings'
# The original's ending first; the same keys may stand in a safetensors file.
_ENDINGS = ('.pt', '.safetensors')
_WITHOUT_BACKBONE = tuple(part for part in pemt_original.PARTS if part != 'backbone')
_ADAPTERS = ('target_adapter', 'attention_adapter')
# Parts of a checkpoint that these folders have a place for.
STAGE1_PARTS = ('experts', 'attention_lora', *_ADAPTERS, 'prompt')
STAGE2_PARTS = (*_ADAPTERS, 'prompt')

Imported = tuple[PemtLayout, dict[str, Tree]]


def _find(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
  paths = [folder / f'{stem}{ending}' for ending in _ENDINGS]
  found = [path for path in paths if path.is_file()]
  if len(found) > 1:
    raise UserError(f"Both '{found[0]}' and '{found[1]}' exist; remove one of them.")
  return found[0] if found else None


def _read_folder(folder: str | pathlib.Path) -> files.TensorFiles:
  """All small files of one output folder as one state dict."""
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise UserError(f"Folder '{folder}' does not exist; give an output folder of the PEMT code.")
  readers: dict[str, Mapping[str, Any]] = {}
  for stem in (LORA, ADAPTER, PROMPT, TUNED_PROMPT):
    path = _find(folder, stem)
    if path is not None:
      state = files.read_tensors(path)
      # This file of the original is one bare tensor.
      readers[str(path)] = ({pemt_layout.TUNED_PROMPT: state[files.BARE]}
                            if files.BARE in state else state)
  if not readers:
    raise UserError(f"Folder '{folder}' holds none of {LORA}, {ADAPTER}, {PROMPT}, {TUNED_PROMPT} "
                    f'({" or ".join(_ENDINGS)}); give an output folder of the PEMT code.')
  return files.TensorFiles(folder, readers)


def import_stage1(folder: str | pathlib.Path, *, source: str | None = None) -> Imported:
  """Reads one source's folder: lora or adapter file, and the prompt's.

  Args:
    folder: holds lora.pt or adapter.pt and task_embedding.pt (or prefix_embeddings.pt), or
      `.safetensors` files of the same names and keys; .pt needs torch.
    source: task of the expert; default is the folder's name (LoRA) or the name in the file.

  Returns:
    The layout, and {'params', 'constants'} without a backbone.

  Raises:
    UserError: nothing there, or names and shapes that do not belong together.
  """
  state = _read_folder(folder)
  is_lora = any('.wo.lora_A' in name for name in state)
  sources = [source or pathlib.Path(folder).resolve().name] if is_lora else None
  layout = pemt_original.layout_from_state(state, sources=sources)
  return layout, pemt_original.state_to_tree(state, layout, parts=_WITHOUT_BACKBONE)


def import_stage2(
    folder: str | pathlib.Path, sources: Mapping[str, str | pathlib.Path] | None = None, *,
    target: str | None = None) -> Imported:
  """Reads a stage-2 folder and the folders of the sources it was trained on.

  The original writes neither gates nor layer norms into these files, so the tree has no
  `pemt/gate/kernel`; a full checkpoint has both.

  Args:
    folder: holds adapter.pt and task_embedding.pt (or the .safetensors forms).
    sources: source task -> its stage-1 folder, in the order of training. Without sources the tree
      holds the target's parts only, with the adapter under `mlp/wo/adapter`.
    target: task of the target adapter; needed if the file has adapters for several.

  Returns:
    The layout, and {'params', 'constants'} without backbone and gates.

  Raises:
    UserError: something is missing, or sources of different sizes.
  """
  state = _read_folder(folder)
  states = {name: _read_folder(place) for name, place in (sources or {}).items()}
  joined = files.TensorFiles(folder, {str(folder): state, 'its sources': {
      name: value for name, value in join_sources(states).items() if name not in state}})
  layout = pemt_original.layout_from_state(
      joined, sources=list(states) if states else None, target=target)
  parts = [part for part in _WITHOUT_BACKBONE if part != 'gates']
  return layout, pemt_original.state_to_tree(joined, layout, parts=parts)


def join_sources(states: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Names the tensors of stage-1 experts as stage 2 calls them.

  Args:
    states: source task -> state dict of its stage 1, in the order of the bank.

  Returns:
    One state dict: `.k` after the names of LoRA factors if there are several sources, prompts as
    `task_list.k`, adapter experts under their source's task.
  """
  joined = {}
  for number, (source, state) in enumerate(states.items()):
    suffix = f'.{number}' if len(states) > 1 else ''
    own_tasks = pemt_layout.tasks_at(pemt_layout.EXPERT_SITE, state)
    for name, value in state.items():
      if name == pemt_layout.TASK_PROMPT:
        name = f'task_list.{number}'
      elif name.endswith(('.wo.lora_A', '.wo.lora_B')):
        name += suffix
      elif own_tasks:
        name = name.replace(f'.adapters.{own_tasks[0]}.', f'.adapters.{source}.')
      joined[name] = value
  return joined


def split_sources(state: Mapping[str, Any], layout: PemtLayout) -> dict[str, dict[str, Any]]:
  """Inverse of `join_sources`: source task -> state dict of its stage 1."""
  states: dict[str, dict[str, Any]] = {}
  for number, source in enumerate(layout.sources):
    suffix = f'.{number}' if layout.has_mixture else ''
    own = {f'task_list.{number}': pemt_layout.TASK_PROMPT}
    for name in state:
      if name.endswith((f'.wo.lora_A{suffix}', f'.wo.lora_B{suffix}')):
        own[name] = name.removesuffix(suffix)
      elif f'.adapters.{source}.' in name:
        own[name] = name
    states[source] = {new: state[old] for old, new in own.items() if old in state}
  return states


def export_stage1(
    folder: str | pathlib.Path, params: Mapping[str, Any], layout: PemtLayout, *,
    ending: str = '.pt') -> list[pathlib.Path]:
  """Writes what the original's stage 1 (or a baseline of it) writes.

  LoRA goes to lora.pt, adapters of any site to adapter.pt, the prompt to task_embedding.pt, a tuned
  prompt without task to prefix_embeddings.pt.

  Args:
    folder: made if absent.
    params: parameter tree with one expert at most; a backbone in it is not written.
    layout: what the tree holds.
    ending: '.pt' (needs torch) or '.safetensors'.

  Returns:
    The files written.

  Raises:
    UserError: several experts, or a tree that does not fit the layout.
  """
  if layout.has_mixture:
    raise UserError(f'Stage-1 files hold one expert, the tree has {len(layout.sources)}; '
                    'export it as stage 2 or as a full checkpoint.')
  if layout.expert_form == 'lora':
    parts = {LORA: ('experts', 'attention_lora'), ADAPTER: _ADAPTERS}
  else:
    parts = {LORA: ('attention_lora',), ADAPTER: ('experts', *_ADAPTERS)}
  return _write(folder, params, layout, parts, ending)


def export_stage2(
    folder: str | pathlib.Path, params: Mapping[str, Any], layout: PemtLayout, *,
    ending: str = '.pt') -> list[pathlib.Path]:
  """Writes what the original's stage 2 writes: adapter.pt and task_embedding.pt.

  These files have no place for gates, layer norms and sources: `export_checkpoint` keeps all.

  Args:
    folder: made if absent.
    params: parameter tree of stage 2.
    layout: what the tree holds.
    ending: '.pt' (needs torch) or '.safetensors'.

  Returns:
    The files written.

  Raises:
    UserError: nothing to write, or a tree that does not fit the layout.
  """
  return _write(folder, params, layout, {ADAPTER: _ADAPTERS}, ending)


def _write(
    folder: str | pathlib.Path, params: Mapping[str, Any], layout: PemtLayout,
    parts: Mapping[str, Collection[str]], ending: str) -> list[pathlib.Path]:
  if ending not in _ENDINGS:
    raise UserError(f"Files of the PEMT code end with {' or '.join(_ENDINGS)}, not '{ending}'.")
  tuned = layout.prompt_name == pemt_layout.TUNED_PROMPT
  parts = {**parts, TUNED_PROMPT if tuned else PROMPT: ('prompt',)}
  contents = {}
  for stem, chosen in parts.items():
    table = pemt_original.table_of(layout, chosen)
    if table.weights:
      contents[stem] = names.take_known(params, table)
  if not contents:
    raise UserError('The tree has neither expert, adapter nor prompt, so there is nothing to write '
                    f"into '{folder}'; export it as a full checkpoint.")
  if tuned and ending == '.pt':
    contents[TUNED_PROMPT] = {files.BARE: contents[TUNED_PROMPT][layout.prompt_name]}
  written = []
  for stem, state in contents.items():
    written.append(pathlib.Path(folder) / f'{stem}{ending}')
    files.write_tensors(written[-1], state)
  return written


def import_checkpoint(
    path: str | pathlib.Path, *, sources: Iterable[str] | None = None, target: str | None = None
) -> Imported:
  """Reads a full checkpoint: backbone, deltas, gates, norms.

  Args:
    path: folder with pytorch_model.bin or model.safetensors (and config.json, if kept), or a file.
    sources: task of each expert in the order of the bank (LoRA files do not name them).
    target: task of the target adapter, if the file has adapters for several.

  Returns:
    The layout, and {'params', 'constants'}.

  Raises:
    UserError: unreadable, or names and shapes that do not belong together.
  """
  path = pathlib.Path(path)
  state = files.read_tensors(path)
  config_file = (path if path.is_dir() else path.parent) / 'config.json'
  backbone = t5_config.read_hf_config(config_file) if config_file.is_file() else None
  layout = pemt_original.layout_from_state(
      state, backbone=backbone, sources=list(sources) if sources else None, target=target)
  return layout, pemt_original.state_to_tree(state, layout)


def export_checkpoint(
    folder: str | pathlib.Path, params: Mapping[str, Any], layout: PemtLayout, *,
    torch_format: bool = True) -> list[pathlib.Path]:
  """Writes a full checkpoint under the original's names, second names included, and config.json.

  Args:
    folder: made if absent.
    params: backbone and deltas.
    layout: what the tree holds; needs its `backbone`.
    torch_format: pytorch_model.bin (needs torch), otherwise model.safetensors.

  Returns:
    The files written.

  Raises:
    UserError: no backbone, or a tree that does not fit the layout.
  """
  if layout.backbone is None:
    raise UserError('A full checkpoint needs the backbone and the tree has none; '
                    'merge it with the T5 it was trained on.')
  folder = pathlib.Path(folder)
  # Torch keeps one storage under all names; a safetensors file would hold a copy for each.
  state = pemt_original.tree_to_state(params, layout, aliases=torch_format)
  weights = folder / (files.TORCH if torch_format else files.SAFETENSORS)
  files.write_tensors(weights, state)
  config = folder / 'config.json'
  files.write_text(config, json.dumps(t5_config.to_hf(layout.backbone), indent=2) + '\n')
  return [weights, config]
