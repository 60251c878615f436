"""Source experts of stage 2: read from a library of experts, stacked into a bank."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.experts.library import (
    CARD, ExpertCard, check_backbone, expert_folder, load_expert)
from pemt_jax.methods.pemt import BankShape
from pemt_jax.stages.prompts import trim
from pemt_jax.trees import Tree, flatten, unflatten

PROMPT = 'encoder/embed/prompt'
_ADAPTER_LEAVES = {'down/kernel': 'down_kernel', 'down/bias': 'down_bias',
                   'up/kernel': 'up_kernel', 'up/bias': 'up_bias'}


@dataclasses.dataclass(frozen=True)
class Sources:
  """Source experts as one bank.

  Attributes:
    names: tasks of the sources, in the order of the bank.
    shape: what the method needs to know.
    params: canonical tree of the bank (or of the single expert) and the source prompts.
  """

  names: tuple[str, ...]
  shape: BankShape
  params: Tree


def copy_sources(folders: Sequence[str], place: pathlib.Path) -> list[pathlib.Path]:
  """Copies source experts beside a run, so that its experts stay loadable.

  Raises:
    UserError: a folder without a card, or two sources of one name.
  """
  copies = []
  for folder in expand(folders):
    if not (folder / CARD).is_file():
      raise UserError(f'source {folder} holds no expert ({CARD} is missing); give folders of'
                      ' experts that a first stage wrote as sources.')
    target = place / folder.name
    if target in copies:
      raise UserError(f"two sources are called '{folder.name}'; rename one of the folders.")
    if not target.exists():
      place.mkdir(parents=True, exist_ok=True)
      partial = place / f'.{folder.name}.part'
      shutil.rmtree(partial, ignore_errors=True)
      shutil.copytree(folder, partial)
      partial.rename(target)
    copies.append(target)
  return copies


def expand(folders: Sequence[str]) -> list[pathlib.Path]:
  """Replaces the folder of a run by its experts, in the order of the run's replicas."""
  found = []
  for folder in map(pathlib.Path, folders):
    if (folder / CARD).is_file() or not (folder / 'result.json').is_file():
      found.append(folder)
    else:
      names = tree_files.read_json(folder / 'result.json')['replicas']
      found += [expert_folder(folder, name) for name in names]
  return found


def load_sources(folders: Sequence[str | pathlib.Path], backbone_name: str,
                 backbone_hash: str) -> Sources:
  """Loads source experts of one form and stacks them.

  Args:
    folders: expert folders of stage 1, in the order of the bank.
    backbone_name: name of the backbone in use.
    backbone_hash: its hash; experts of another backbone are refused.

  Raises:
    UserError: no source, another backbone, or experts of different forms or sizes.
  """
  if not folders:
    raise UserError('stage 2 has no sources; set config.sources to the expert folders of stage 1.')
  loaded = [load_expert(folder) for folder in folders]
  for _, _, card in loaded:
    check_backbone(card, backbone_name, backbone_hash)
  flats = [flatten(tuned) for tuned, _, _ in loaded]
  experts = [{path: leaf for path, leaf in flat.items() if '/mlp/wo/' in path} for flat in flats]
  for folder, expert in zip(folders, experts, strict=True):
    first = {path: np.shape(leaf) for path, leaf in experts[0].items()}
    if {path: np.shape(leaf) for path, leaf in expert.items()} != first:
      raise UserError(f'source {folder} has experts of another form or size than {folders[0]};'
                      ' train all sources with one stage-1 config.')
  params, prompts = _bank(experts), []
  for flat, (_, constants, _) in zip(flats, loaded, strict=True):
    if f'{PROMPT}/table' in flat:
      prompts.append(trim(flat[f'{PROMPT}/table'], flatten(constants)[f'{PROMPT}/mask']))
  if prompts and len(prompts) != len(loaded):
    raise UserError('some sources have a prompt and others have none; train all sources with one'
                    ' stage-1 config.')
  if prompts:
    size = max(len(prompt) for prompt in prompts)
    params[f'{PROMPT}/sources'] = np.stack(
        [np.pad(prompt, ((size - len(prompt), 0), (0, 0))) for prompt in prompts])
  shape = _shape(loaded[0][2], experts[0], tuple(len(prompt) for prompt in prompts))
  names = tuple(card.task for _, _, card in loaded)
  return Sources(names, dataclasses.replace(shape, count=len(loaded)), unflatten(params))


def _bank(experts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Stacks expert leaves [layer, ...] to [layer, expert, ...] under the bank's names."""
  if len(experts) == 1:
    return dict(experts[0])
  bank = {}
  for path in experts[0]:
    site, name, leaf = path.partition('/wo/')[0], *path.split('/wo/')[1].split('/', 1)
    leaf = leaf if name == 'lora' else _ADAPTER_LEAVES[leaf]
    bank[f'{site}/wo/pemt/bank/{leaf}'] = np.stack([e[path] for e in experts], axis=1)
  return bank


def _shape(card: ExpertCard, expert: dict[str, np.ndarray],
           lengths: tuple[int, ...]) -> BankShape:
  options = card.extra['options']
  path, leaf = next((p, v) for p, v in expert.items() if p.endswith(('lora/down', 'down/kernel')))
  width = np.shape(leaf)[-1]
  if path.endswith('lora/down'):
    return BankShape('lora', 1, width, options['alpha'] / options['rank'], prompt_lengths=lengths)
  return BankShape('adapter', 1, width, activation=options['activation'], prompt_lengths=lengths)
