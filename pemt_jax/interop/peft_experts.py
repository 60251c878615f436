"""Adapter folders of other programs (PEFT, AdapterHub) <-> experts of the library."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import numpy as np

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.experts import library
from pemt_jax.experts import tree_files
from pemt_jax.experts.library import ExpertCard
from pemt_jax.interop import adapterhub
from pemt_jax.interop import cards
from pemt_jax.interop import huggingface
from pemt_jax.interop import peft
from pemt_jax.interop import peft_plans
from pemt_jax.interop.peft_forms import BottleneckForm
from pemt_jax.interop.peft_plans import Form
from pemt_jax.methods import pemt
from pemt_jax.methods import zoo
from pemt_jax.methods.base import Method
from pemt_jax.models.sites import plan_as_json
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree

# Kind of folder -> one line for the help text.
FOLDERS = {'peft': 'adapter folder of Hugging Face PEFT (LoRA, IA3, prefix or prompt tuning)',
           'adapterhub': 'folder that save_adapter of the package adapters wrote (bottlenecks)'}
_PROMPT_MASK = 'encoder/embed/prompt/mask'


def to_expert(
    kind: str, source: str | pathlib.Path, target: str | pathlib.Path,
    backbone: str | None = None, task: str | None = None) -> list[str]:
  """Reads an adapter folder and writes an expert.

  Args:
    kind: of the folder, 'peft' or 'adapterhub'.
    source: the adapter folder.
    target: folder of the expert; its name is the expert's.
    backbone: T5 that the adapter stands on; default is what the adapter's config names.
    task: of the expert; default is the name of the source folder.

  Returns:
    [], since everything finds its place.

  Raises:
    UserError: no backbone, or whatever does not fit in the folder.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  backbone = backbone or _named_backbone(kind, source)
  config, params = huggingface.load_t5(backbone)
  if kind == 'peft':
    form, tree = peft.read(source, config)
  else:
    form, tree = adapterhub.read(source, config, _head(config, params))
  stage, options = peft_plans.stage_of(form, config, str(source))
  method = zoo.make(stage, options, config, getattr(form, 'length', 0))
  tree = _renamed(tree, form, _rule_name(method, str(source)), inward=True)
  constants = trees.unflatten({_PROMPT_MASK: np.ones(form.length, np.float32)}
                              if stage == 'prompt' else {})
  library.save_expert(target, tree, constants, ExpertCard(
      name=target.name, method=stage, plan=plan_as_json(method.plan), task=task or source.name,
      backbone_id=backbone, backbone_hash=library.backbone_hash(params),
      extra={'options': dataclasses.asdict(options), 'sources': []}))
  return []


def from_expert(
    kind: str, source: str | pathlib.Path, target: str | pathlib.Path,
    backbone: str | None = None, weights: str = '') -> list[str]:
  """Reads an expert and writes an adapter folder.

  Args:
    kind: of the folder, 'peft' or 'adapterhub'.
    source: folder of the expert.
    target: the adapter folder.
    backbone: T5 that the expert stands on; default is what its card names.
    weights: 'torch' or 'safetensors'; '' means what the other program reads by itself.

  Returns:
    Paths of arrays of the expert that the folder has no place for, such as tuned norms.

  Raises:
    UserError: another backbone, or deltas that the other program has no form for.
  """
  tuned, constants, card = library.load_expert(source)
  backbone = backbone or card.backbone_id
  config, params = huggingface.load_t5(backbone)
  library.check_backbone(card, backbone, library.backbone_hash(params))
  tuned = trees.unflatten(_without_padding(trees.flatten(tuned), trees.flatten(constants)))
  method = method_of(card, config, tuned)
  form = peft_plans.form_of(method.plan, config, str(source))
  if isinstance(form, BottleneckForm) != (kind == 'adapterhub'):
    other = 'adapterhub' if kind == 'peft' else 'peft'
    raise UserError(f"Expert '{source}' is of method '{card.method}', for which {kind} has no form;"
                    f' convert it to {other}.')
  leaves = trees.flatten(tuned)
  rule = _rule_name(method, str(source))
  own = {path: np.asarray(leaf) for path, leaf in leaves.items() if rule in path.split('/')}
  tree = _renamed(trees.unflatten(own), form, rule, inward=False)
  if kind == 'peft':
    peft.write(target, form, tree, config, backbone, weights == 'torch')
  else:
    adapterhub.write(target, form, tree, config, card.name, backbone, weights != 'safetensors')
  return [path for path in leaves if path not in own]


def method_of(card: ExpertCard, config: T5Config, tuned: Mapping[str, Any]) -> Method:
  """Builds the method of an expert again.

  Args:
    card: of the expert.
    config: of the backbone.
    tuned: its parameters, for the rows of a prompt.

  Raises:
    UserError: a method with source experts, or an unknown one.
  """
  values = card.extra.get('options', {})
  table = trees.flatten(tuned).get(peft.PROMPT_TABLE)
  rows = 0 if table is None else len(table)
  if card.method == 'pemt/stage1':
    return pemt.stage1(cards.options_of(pemt.Stage1Options, values), config, rows)
  names = zoo.names_of(card.method)
  if not names:
    raise UserError(f"Expert '{card.name}' is of method '{card.method}', for which adapter folders "
                    'have no form; convert an expert of one delta.')
  kinds = {name: zoo.ZOO[name].options for name in names}
  if len(names) == 1:
    return zoo.make(card.method, cards.options_of(kinds[names[0]], values), config, rows)
  options = {name: cards.options_of(kind, values[name]) for name, kind in kinds.items()}
  return zoo.make(card.method, options, config, rows)


def _named_backbone(kind: str, source: pathlib.Path) -> str:
  """The backbone that an adapter's config names."""
  file, key = ((peft.CONFIG, 'base_model_name_or_path') if kind == 'peft' else
               (adapterhub.CONFIG, 'model_name'))
  values = tree_files.read_json(source / file)
  found = values.get(key) if isinstance(values, Mapping) else None
  if not isinstance(found, str) or not found:
    raise UserError(f"'{source / file}' names no backbone ('{key}'); give --backbone.")
  return found


def _head(config: T5Config, params: Tree) -> np.ndarray:
  """[vocab, embed] head of the backbone."""
  if config.tied_head:
    return params['shared']['embedding']
  return params['lm_head']['kernel'].T


def _without_padding(tuned: Mapping[str, Any], constants: Mapping[str, Any]) -> dict[str, Any]:
  """Drops the rows that pad a prompt."""
  mask = constants.get(_PROMPT_MASK)
  if mask is None or peft.PROMPT_TABLE not in tuned:
    return dict(tuned)
  return {**tuned, peft.PROMPT_TABLE: np.asarray(tuned[peft.PROMPT_TABLE])[np.asarray(mask) > 0]}


def _rule_name(method: Method, place: str) -> str:
  names = {rule.name for rule in method.plan.rules}
  if len(names) != 1:
    raise UserError(f"'{place}' has deltas of several names ({', '.join(sorted(names))}); an "
                    'adapter folder holds one.')
  return names.pop()


def _renamed(tree: Tree, form: Form, rule: str, *, inward: bool) -> Tree:
  """Changes the rule's name in paths: to the expert's (`inward`), or to that of foreign tables."""
  theirs = peft_plans.RULE_NAMES[type(form)]
  old, new = (theirs, rule) if inward else (rule, theirs)
  return trees.unflatten({
      '/'.join(new if part == old else part for part in path.split('/')): leaf
      for path, leaf in trees.flatten(tree).items()})
