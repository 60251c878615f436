"""Experts as artefacts: `<workdir>/experts/<name>/{card.json, checkpoint/}`, read strictly.

The checkpoint holds two trees, `tuned` and `constants`; the card says what they belong to. An
expert with masks may have a file of bits in place of it (`experts/packed.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
from typing import Any

import numpy as np

import pemt_jax
from pemt_jax import guards
from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files

CARD = 'card.json'
CHECKPOINT = 'checkpoint'
PACKED = 'packed.safetensors'
FOLDER = 'experts'
_FORMAT = 1
_CHUNK_BYTES = 1 << 26
_KINDS = {'name': str, 'method': str, 'plan': list, 'backbone_id': str, 'backbone_hash': str,
          'task': str, 'metrics': dict, 'extra': dict, 'shapes': dict, 'versions': dict}
_PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint')


@dataclasses.dataclass
class ExpertCard:
  """What an expert is.

  Attributes:
    name: name of the expert, that of its folder.
    method: recipe that made it.
    plan: which delta is on which site, JSON-able.
    backbone_id: short name or folder of the backbone.
    backbone_hash: `backbone_hash` of its parameters.
    task: task it was trained on.
    metrics: figures of the kept step.
    extra: anything else a method needs to use the expert again, JSON-able.
    shapes: {name: {'shape', 'dtype'}} of the checkpoint; filled when saved.
    versions: {package: version}; filled when saved.
    format: version of this layout.
  """

  name: str
  method: str
  plan: Any
  backbone_id: str
  backbone_hash: str
  task: str
  metrics: dict[str, float] = dataclasses.field(default_factory=dict)
  extra: dict[str, Any] = dataclasses.field(default_factory=dict)
  shapes: tree_files.Description = dataclasses.field(default_factory=dict)
  versions: dict[str, str] = dataclasses.field(default_factory=dict)
  format: int = _FORMAT


def expert_folder(workdir: str | os.PathLike, name: str) -> pathlib.Path:
  """Returns the place of an expert below a workdir."""
  return pathlib.Path(workdir) / FOLDER / name


def list_experts(workdir: str | os.PathLike) -> list[str]:
  """Returns the names of all experts below a workdir, sorted."""
  return sorted(path.parent.name for path in (pathlib.Path(workdir) / FOLDER).glob(f'*/{CARD}')
                if not path.parent.name.startswith('.'))


def completed(card: ExpertCard, tree: Any) -> ExpertCard:
  """The card with shapes of {'tuned': tree, 'constants': tree} and versions."""
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return dataclasses.replace(card, shapes=tree_files.describe(tree),
                             versions={'pemt_jax': pemt_jax.__version__, **versions})


def save_expert(folder: str | os.PathLike, tuned: Any, constants: Any,
                card: ExpertCard) -> ExpertCard:
  """Writes an expert in one move; an expert that is there is replaced.

  Args:
    folder: folder of the expert, see `expert_folder`.
    tuned: nested dicts of arrays without a replica axis.
    constants: method state that belongs to it, may be empty.
    card: what it is; `shapes` and `versions` are filled here.

  Returns:
    The card as written.
  """
  tree = {'tuned': tuned, 'constants': constants}
  card = completed(card, tree)
  with tree_files.replacing_folder(pathlib.Path(folder)) as temporary:
    tree_files.write_tree(temporary / CHECKPOINT, tree)
    tree_files.write_json(temporary / CARD, dataclasses.asdict(card))
  return card


def load_card(folder: str | os.PathLike) -> ExpertCard:
  """Reads the card of an expert.

  Raises:
    UserError: no card, not JSON, missing, unknown or mistyped fields, another format.
  """
  path = pathlib.Path(folder) / CARD
  if not path.is_file():
    near = list_experts(path.parent.parent.parent)
    known = f" (experts there: {', '.join(near)})" if near else ''
    raise UserError(f'{path.parent} holds no expert, {CARD} is missing{known}; give the folder of '
                    'an expert.')
  fields = tree_files.read_json(path)
  names = {field.name for field in dataclasses.fields(ExpertCard)}
  wrong = sorted(names ^ set(fields)) if isinstance(fields, dict) else ['the whole card']
  if wrong:
    raise UserError(f'{path} has missing or unknown fields: {", ".join(wrong)}; it is not a card '
                    f'of format {_FORMAT}.')
  if fields['format'] != _FORMAT:
    raise UserError(f"{path} has format {fields['format']}, this version reads format {_FORMAT}; "
                    'install the version of pemt_jax that wrote it.')
  for name, kind in _KINDS.items():
    if not isinstance(fields[name], kind):
      raise UserError(f"{path} has a {type(fields[name]).__name__} as '{name}'; it must be a"
                      f' {kind.__name__}, restore it.')
  tree_files.check_form(fields['shapes'], path)
  return ExpertCard(**fields)


def load_expert(folder: str | os.PathLike, expected: Any = None) -> tuple[Any, Any, ExpertCard]:
  """Reads an expert.

  Args:
    folder: folder of the expert.
    expected: None, or {'tuned': tree, 'constants': tree} of arrays or shapes; names, shapes and
      types must be the same, both ways.

  Returns:
    (tuned, constants, card): nested dicts of NumPy arrays, and the card.

  Raises:
    UserError: no card, a damaged checkpoint, a checkpoint that is not that of its card, or names,
      shapes or types that are not expected.
  """
  folder = pathlib.Path(folder)
  card = load_card(folder)
  if (folder / PACKED).is_file():
    from pemt_jax.experts import packed  # pylint: disable=g-import-not-at-top
    tree = {'tuned': packed.read_packed(folder / PACKED), 'constants': {}}
    for shapes in filter(None, (card.shapes, expected and tree_files.describe(expected))):
      tree_files.check_description(tree_files.describe(tree), shapes, folder / PACKED)
    return tree['tuned'], {}, card
  place = folder / CHECKPOINT
  written = tree_files.read_json(place / tree_files.MANIFEST)
  tree_files.check_form(written, place / tree_files.MANIFEST)
  tree_files.check_description(written, card.shapes, place)
  tree = tree_files.read_tree(place, expected)
  return tree.get('tuned', {}), tree.get('constants', {}), card


def source_folders(folder: str | os.PathLike, card: ExpertCard) -> list[tuple[str, pathlib.Path]]:
  """Tasks and places of the source experts that a card names, relative to its folder.

  Raises:
    UserError: a place outside of the run that the expert belongs to, two folders up.
  """
  folder = pathlib.Path(folder).resolve()
  with guards.reading(folder / CARD):
    return [(source['task'], guards.inside(folder, source['folder'], folder / CARD,
                                           folder.parent.parent))
            for source in card.extra.get('sources', ())]


def check_backbone(card: ExpertCard, backbone_id: str, found_hash: str) -> None:
  """Checks that an expert was trained on this backbone; the id is for the message only.

  Raises:
    UserError: the hashes differ.
  """
  if card.backbone_hash != found_hash:
    raise UserError(f"Expert '{card.name}' is a checkpoint of another backbone: it was trained on "
                    f"'{card.backbone_id}' ({card.backbone_hash[:12]}), this run has "
                    f"'{backbone_id}' ({found_hash[:12]}); set config.model.name, or --backbone, "
                    'to its backbone.')


def backbone_hash(params: Any) -> str:
  """Returns a SHA-256 over path, shape, type and bytes of every array, in the order of paths."""
  digest = hashlib.sha256()
  for name, leaf in sorted(tree_files.named_leaves(params).items()):
    array = np.ascontiguousarray(leaf)
    digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
    raw = array.reshape(-1).view(np.uint8)
    for start in range(0, raw.size, _CHUNK_BYTES):
      digest.update(raw[start:start + _CHUNK_BYTES])
  return digest.hexdigest()
