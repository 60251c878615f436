"""Source experts of stage 2: read from a library of experts, stacked into a bank."""

from __future__ import annotations

import dataclasses
import filecmp
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np

from pemt_jax import guards
from pemt_jax.data.tasks import get_task
from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.experts.library import (
    CARD, ExpertCard, check_backbone, expert_folder, load_expert)
from pemt_jax.experts.masked_bank import MaskedSource, join_masks, masked_of
from pemt_jax.experts.packed import pack
from pemt_jax.methods import pemt, propetl
from pemt_jax.methods.pemt import BankShape
from pemt_jax.stages.prompts import trim
from pemt_jax.training.records import RESULT
from pemt_jax.trees import Tree, flatten, unflatten

PROMPT = 'encoder/embed/prompt'
EXPERT = '/mlp/wo/'  # part of the path of every leaf of a source expert
STAGE1 = 'pemt/stage1'
COPIES = 'sources'  # folder of the copies of source experts below a workdir
_ADAPTER_LEAVES = {'down/kernel': 'down_kernel', 'down/bias': 'down_bias',
                   'up/kernel': 'up_kernel', 'up/bias': 'up_bias'}


@dataclasses.dataclass(frozen=True)
class Sources:
  """Source experts as one bank.

  Attributes:
    names: tasks of the sources, in the order of the bank.
    shape: what the method needs to know.
    params: canonical tree of the bank (or of the single expert) and the source prompts.
    per_folder: number of experts in each folder; () for one each.
  """

  names: tuple[str, ...]
  shape: BankShape
  params: Tree
  per_folder: tuple[int, ...] = ()

  def by_folder(self) -> list[str]:
    """Tasks of each folder, joined by ','."""
    names, counts = list(self.names), self.per_folder or (1,) * len(self.names)
    return [','.join(names.pop(0) for _ in range(count)) for count in counts]


def find_sources(folders: Sequence[str]) -> list[pathlib.Path]:
  """Expert folders that `config.sources` names; the folder of a run stands for all of its experts.

  Raises:
    UserError: a folder without an expert, or two sources of one name.
  """
  found: list[pathlib.Path] = []
  for folder in map(pathlib.Path, folders):
    found += [folder] if (folder / CARD).is_file() else _experts_of_run(folder)
  for folder in found:
    if not (folder / CARD).is_file() and ',' in str(folder):
      names = ', '.join(f"'{part.strip()}'" for part in str(folder).split(','))
      raise UserError(f"config.sources holds '{folder}' as one folder; write"
                      f' --config.sources="({names})" for several.')
    if not (folder / CARD).is_file():
      raise UserError(f'source {folder} holds no expert ({CARD} is missing); give folders of'
                      ' experts that a first stage wrote as config.sources.')
  names = [folder.name for folder in found]
  for name in names:
    if names.count(name) > 1:
      raise UserError(f"two sources are called '{name}'; rename one of the folders.")
  return found


def _experts_of_run(folder: pathlib.Path) -> list[pathlib.Path]:
  """Experts of a run in the order of its replicas; the folder itself where there is no run."""
  if not (folder / RESULT).is_file():
    return [folder]
  with guards.reading(folder / RESULT):
    names = tree_files.read_json(folder / RESULT).get('replicas', {})
    return [guards.inside(expert_folder(folder, ''), name, folder / RESULT)
            for name in names] or [folder]


def copy_sources(folders: Sequence[pathlib.Path], place: pathlib.Path) -> None:
  """Copies source experts beside a run, so that its experts stay loadable.

  Raises:
    UserError: a copy is there that is not of the same expert.
  """
  for folder in folders:
    target = place / copy_name(folder)
    if folder.is_file():
      _copy_file(folder, target)
    elif not target.exists():
      with tree_files.replacing_folder(target) as partial:
        shutil.copytree(folder, partial, dirs_exist_ok=True)
    elif (target / CARD).read_bytes() != (folder / CARD).read_bytes():
      raise UserError(f'{target} is a copy of another expert than {folder}; choose another workdir'
                      ' or the sources that this run began with.')


def copy_name(place: pathlib.Path) -> str:
  """Name of the copy of a source; files of several folders often share their own."""
  return f'{place.parent.name}-{place.name}' if place.is_file() else place.name


def _copy_file(file: pathlib.Path, target: pathlib.Path) -> None:
  target.parent.mkdir(parents=True, exist_ok=True)
  if target.exists() and not filecmp.cmp(file, target, shallow=False):
    raise UserError(f'{target} is a copy of another file than {file}; choose another workdir or the'
                    ' sources that this run began with.')
  shutil.copyfile(file, target)


def load_sources(folders: Sequence[str | pathlib.Path], backbone_name: str,
                 backbone_hash: str) -> Sources:
  """Loads source experts of one form and stacks them.

  Experts of ProPETL, packed or not, become experts over one prototype, which all must share: one
  for each task that has masks of its own.

  Args:
    folders: expert folders of stage 1 or of ProPETL, in the order of the bank.
    backbone_name: name of the backbone in use.
    backbone_hash: its hash; experts of another backbone are refused.

  Raises:
    UserError: no source, one that is no expert of stage 1 or ProPETL or of another backbone, or
      experts of different forms or sizes or on different prototypes.
  """
  if not folders:
    raise UserError('stage 2 has no sources; set config.sources to the expert folders of stage 1.')
  loaded = [load_expert(folder) for folder in folders]
  kind = loaded[0][2].method if loaded[0][2].method == propetl.NAME else STAGE1
  for folder, (_, _, card) in zip(folders, loaded, strict=True):
    if card.method != kind:
      raise UserError(f"source {folder} is an expert of '{card.method}'; give experts of"
                      f" '{STAGE1}', or of '{propetl.NAME}' on one prototype, as config.sources.")
    check_backbone(card, backbone_name, backbone_hash)
  if kind == propetl.NAME:
    return _masked_bank([_masked_source(folder, tuned, card) for folder, (tuned, _, card)
                         in zip(folders, loaded, strict=True)])
  flats = [flatten(tuned) for tuned, _, _ in loaded]
  experts = [{path: leaf for path, leaf in flat.items() if EXPERT in path} for flat in flats]
  sizes = [{path: np.shape(leaf) for path, leaf in expert.items()} for expert in experts]
  shapes = [_shape(card, expert) for (_, _, card), expert in zip(loaded, experts, strict=True)]
  for folder, own in zip(folders, zip(sizes, shapes, strict=True), strict=True):
    if own != (sizes[0], shapes[0]):
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
  shape = dataclasses.replace(shapes[0], count=len(loaded),
                              prompt_lengths=tuple(len(prompt) for prompt in prompts))
  return Sources(tuple(card.task for _, _, card in loaded), shape, unflatten(params))


def _masked_source(folder: str | pathlib.Path, tuned: Tree, card: ExpertCard) -> MaskedSource:
  """A prototype with masks, and the tasks that have their own."""
  masked, rule = masked_of(card.plan, str(folder))
  tasks = (card.task,)
  if {'task', 'language', 'layer_task'} & set(masked.owners):
    config = card.extra.get('config', {})
    mixed = config.get('mixture', {}).get('sampling') and config.get('tasks')
    tasks = tuple(get_task(name).name for name in mixed) if mixed else tasks
    if len(tasks) != len(masked.members):
      tasks = tuple(f'{card.task}/{number}' for number in range(len(masked.members)))
  return MaskedSource(str(folder), masked, rule, pack(tuned, card.plan)[0], tasks)


def _masked_bank(sources: list[MaskedSource]) -> Sources:
  """Experts over one prototype; a single one has no gate and another name for its rule."""
  count = sum(len(source.tasks) for source in sources)
  masked, names, params = join_masks(sources, pemt.BANK if count > 1 else pemt.SINGLE)
  shape = BankShape('masked', count, 0, masked=masked)
  return Sources(names, shape, params, tuple(len(source.tasks) for source in sources))


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


def _shape(card: ExpertCard, expert: dict[str, np.ndarray]) -> BankShape:
  """The shape of a bank of one such expert, without its prompt."""
  options = card.extra['options']
  path, leaf = next((p, v) for p, v in expert.items() if p.endswith(('lora/down', 'down/kernel')))
  width = np.shape(leaf)[-1]
  if path.endswith('lora/down'):
    return BankShape('lora', 1, width, options['alpha'] / options['rank'])
  return BankShape('adapter', 1, width, activation=options['activation'])
