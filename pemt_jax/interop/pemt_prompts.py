"""Prompt and attention files of ATTEMPT, SPoT and prompt tuning <-> experts of the library.

A folder, such as a `checkpoint-*_prompt_only`, holds `prefix_embeddings.pt` or one
`prefix_embeddings_<task>.pt` for each target, and with ATTEMPT `attn_W_down.pt` and
`attn_W_up.pt` (or `attn_Wa_weights.pt`), `layer_norm_weight.pt` and `layer_norm_bias.pt`. Every
file is one bare tensor. A file `.safetensors` of the same name may take its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.experts import library
from pemt_jax.experts.library import ExpertCard
from pemt_jax.interop import files
from pemt_jax.interop import huggingface
from pemt_jax.interop.pemt_baselines import ATTEMPT_PATH
from pemt_jax.methods import attempt as attempt_lib
from pemt_jax.methods import zoo
from pemt_jax.models.sites import plan_as_json

KIND = 'pemt_prompts'
ABOUT = ("folder with the PEMT code's prompts: prefix_embeddings*.pt, and attn_W_*.pt of ATTEMPT")
PROMPT_PATH = 'encoder/embed/prompt'
PROMPT = 'prefix_embeddings'
_ENDINGS = ('.pt', '.safetensors')
# File -> (leaf, transposed).
ATTENTION = {'attn_W_down': ('attention_down/kernel', True),
             'attn_W_up': ('attention_up/kernel', True),
             'attn_Wa_weights': ('attention/kernel', True),
             'layer_norm_weight': ('attention_norm/scale', False),
             'layer_norm_bias': ('attention_norm/bias', False)}


@dataclasses.dataclass(frozen=True)
class PromptFolder:
  """What such a folder holds.

  Attributes:
    prompts: task -> [prompt, embed]; the task '' is the only one of the folder.
    attention: leaf of ATTEMPT -> array; empty without files of it.
  """

  prompts: Mapping[str, np.ndarray]
  attention: Mapping[str, np.ndarray]


def _file_name(task: str) -> str:
  return task.replace('/', '-')


def _read_one(path: pathlib.Path) -> np.ndarray:
  state = files.read_tensors(path)
  if len(state) != 1:
    raise UserError(f"'{path}' holds {len(state)} tensors, expected one; give a folder of prompts.")
  return np.asarray(state[next(iter(state))], np.float32)


def read(folder: str | pathlib.Path, tasks: Sequence[str] = ()) -> PromptFolder:
  """Reads a folder of prompts.

  Args:
    folder: see the module.
    tasks: order of the targets; default is the order of their names.

  Raises:
    UserError: no prompt, one for another task than `tasks`, or prompts of different sizes.
  """
  folder, found = pathlib.Path(folder), {}
  paths = [path for path in sorted(folder.glob('*')) if path.suffix in _ENDINGS]
  attention = {}
  for path in paths:
    if path.stem in ATTENTION:
      leaf, transposed = ATTENTION[path.stem]
      attention[leaf] = _read_one(path).T if transposed else _read_one(path)
    elif path.stem == PROMPT or path.stem.startswith(f'{PROMPT}_'):
      found[path.stem.removeprefix(PROMPT).removeprefix('_')] = _read_one(path)
  if not found:
    raise UserError(f"Folder '{folder}' holds no {PROMPT}.pt and no {PROMPT}_TASK.pt; give an"
                    ' output folder of the PEMT code.')
  if '' in found:
    found = {'': found['']}
  elif tasks and sorted(map(_file_name, tasks)) != sorted(found):
    raise UserError(f"Folder '{folder}' has prompts of {', '.join(found)}, expected"
                    f" {', '.join(tasks)}; name the tasks of the folder.")
  else:
    found = {task: found[_file_name(task)] for task in tasks or found}
  shapes = {table.shape for table in found.values()}
  if len(shapes) > 1 or len(next(iter(shapes))) != 2:
    raise UserError(f"Folder '{folder}' has prompts of the shapes"
                    f" {', '.join(map(str, sorted(shapes)))}; all must be one [prompt, embed].")
  return PromptFolder(found, attention)


def write(folder: str | pathlib.Path, content: PromptFolder, ending: str = '.pt') -> None:
  """Writes a folder of prompts; the inverse of `read`.

  Args:
    folder: made if absent.
    content: what goes there.
    ending: '.pt' (needs torch) or '.safetensors'.
  """
  arrays = {f'{PROMPT}_{_file_name(task)}' if task else PROMPT: table
            for task, table in content.prompts.items()}
  for name, (leaf, transposed) in ATTENTION.items():
    if leaf in content.attention:
      value = np.asarray(content.attention[leaf])
      arrays[name] = np.ascontiguousarray(value.T) if transposed else value
  for name, array in arrays.items():
    key = files.BARE if ending == '.pt' else name
    files.write_tensors(pathlib.Path(folder) / f'{name}{ending}', {key: np.asarray(array)})


def from_expert(source: str | pathlib.Path, target: str | pathlib.Path,
                weights: str = '') -> list[str]:
  """Writes the prompts of an expert of the stages `prompt` and `attempt`.

  Args:
    source: folder of the expert.
    target: folder of the prompts.
    weights: 'torch' or 'safetensors'; '' is torch, as the PEMT code has it.

  Returns:
    Paths of arrays that the folder has no place for.

  Raises:
    UserError: an expert without a prompt.
  """
  tuned, constants, card = library.load_expert(source)
  flat = trees.flatten(tuned)
  table, own = flat.get(f'{ATTEMPT_PATH}/table'), ATTEMPT_PATH
  if table is None:
    own, table = PROMPT_PATH, flat.get(f'{PROMPT_PATH}/table')
  if table is None:
    raise UserError(f"Expert '{source}' of method '{card.method}' has no prompt; give one of the"
                    " stages 'prompt' and 'attempt'.")
  table = np.asarray(table)
  mask = trees.flatten(constants).get(f'{PROMPT_PATH}/mask')
  if own == PROMPT_PATH and mask is not None:
    table = table[np.asarray(mask) > 0]
  prompts = {'': table}
  if table.ndim == 3:
    tasks = card.extra.get('config', {}).get('tasks') or [str(i) for i in range(len(table))]
    prompts = {task: one for task, one in zip(tasks, table, strict=True)}
  attention = {path.removeprefix(f'{ATTEMPT_PATH}/'): leaf for path, leaf in flat.items()
               if path.startswith(f'{ATTEMPT_PATH}/attention')}
  write(target, PromptFolder(prompts, attention),
        '.safetensors' if weights == 'safetensors' else '.pt')
  known = {f'{own}/table', *(f'{ATTEMPT_PATH}/{leaf}' for leaf in attention)}
  return [path for path in flat if path not in known]


def to_expert(source: str | pathlib.Path, target: str | pathlib.Path, backbone: str | None,
              sources: Mapping[str, str], tasks: Sequence[str] = ()) -> list[str]:
  """Reads a folder of prompts and writes an expert: of `attempt` where there are sources.

  The files do not tell ATTEMPT's temperature; the expert has the published 2000.

  Args:
    source: the folder.
    target: folder of the expert; its name is the expert's.
    backbone: T5 that the prompts stand on.
    sources: task -> file or folder of a source prompt, in the order of training; they are copied
      into the expert.
    tasks: targets in the order of their ids.

  Raises:
    UserError: no backbone, an attention without sources, or prompts of other sizes.
  """
  if backbone is None:
    raise UserError('An expert belongs to a backbone; give --backbone.')
  content = read(source, tasks)
  config, params = huggingface.load_t5(backbone)
  if content.attention and not sources:
    raise UserError(f"Folder '{source}' has the attention of ATTEMPT, which reads source prompts;"
                    ' give --sources=TASK=FOLDER,...')
  tables, target = np.stack(list(content.prompts.values())), pathlib.Path(target)
  if tables.shape[-1] != config.embed:
    raise UserError(f"Folder '{source}' has prompts of width {tables.shape[-1]} and backbone"
                    f" '{backbone}' has {config.embed}; give the backbone they were trained on.")
  banks = {name: _source(pathlib.Path(place)) for name, place in sources.items()}
  for name, bank in banks.items():
    if bank.shape != tables.shape[1:]:
      raise UserError(f"Source '{name}' has a prompt of shape {list(bank.shape)}, the targets have"
                      f' {list(tables.shape[1:])}; give the sources that they were trained on.')
  identity = {'backbone_id': backbone, 'backbone_hash': library.backbone_hash(params)}
  task = next(iter(content.prompts)) or pathlib.Path(source).resolve().name
  make = _attempt if banks else _prompt
  tree, constants, card = make(content, tables, config, list(banks))
  library.save_expert(target, tree, constants,
                      dataclasses.replace(card, name=target.name, task=task, **identity))
  for name, bank in banks.items():
    files.write_tensors(target / _source_file(name), {'prefix_shared': bank})
  return []


def _source_file(task: str) -> str:
  return f'sources/{_file_name(task)}.safetensors'


def _source(place: pathlib.Path) -> np.ndarray:
  """The prompt of one source: [prompt, embed]."""
  return _read_one(place) if place.is_file() else next(iter(read(place).prompts.values()))


def _prompt(content, tables, config, sources):
  del sources
  if len(tables) > 1:
    raise UserError(f"The folder has prompts of {', '.join(content.prompts)}; give --sources for"
                    ' ATTEMPT, or one folder for each task.')
  table = tables[0]
  method = zoo.make('prompt', zoo.ZOO['prompt'].default_options(), config, len(table))
  return (trees.unflatten({f'{PROMPT_PATH}/table': table}),
          trees.unflatten({f'{PROMPT_PATH}/mask': np.ones(len(table), np.float32)}),
          _card('prompt', method, {}, []))


def _attempt(content, tables, config, sources):
  own = content.attention
  form = 'linear' if 'attention/kernel' in own else 'sub' if own else 'constant'
  norm = any('norm' in leaf for leaf in own)
  hidden = own['attention_down/kernel'].shape[1] if form == 'sub' else 100
  options = attempt_lib.AttemptOptions(
      form, len(sources), len(tables), hidden=hidden, tune_attention_norm=norm)
  method = attempt_lib.attempt(options, config, tables.shape[1])
  leaves = {f'{ATTEMPT_PATH}/{leaf}': array for leaf, array in own.items()}
  leaves[f'{ATTEMPT_PATH}/table'] = tables if len(tables) > 1 else tables[0]
  found = [{'task': task, 'folder': _source_file(task)} for task in sources]
  return (trees.unflatten(leaves), {},
          _card('attempt', method, dataclasses.asdict(options), found))


def _card(stage: str, method: Any, options: dict[str, Any], sources: list[Any]) -> ExpertCard:
  return ExpertCard(name='', method=stage, plan=plan_as_json(method.plan), backbone_id='',
                    backbone_hash='', task='', extra={'options': options, 'sources': sources})
