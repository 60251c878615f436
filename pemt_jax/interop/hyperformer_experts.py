"""Model folders of the HyperFormer code on T5 <-> experts of the library.

A folder has the weights of the whole model and `config.json`, as transformers write them, and
`arguments_results.json`, the arguments of the run.
"""

from __future__ import annotations

import pathlib
import re

import numpy as np

from pemt_jax.data.tasks_hyperformer import HYPERFORMER_PREFIX
from pemt_jax.errors import UserError
from pemt_jax.experts import library, tree_files
from pemt_jax.interop import cards, files, huggingface, hyperformer_names
from pemt_jax.interop.hyperformer_names import HyperformerLayout
from pemt_jax.methods import hyperformer, zoo
from pemt_jax.methods.base import FROZEN, Method
from pemt_jax.models import t5_config
from pemt_jax.trees import Tree, flatten, merge, unflatten

KIND = 'hyperformer'
ABOUT = 'model folder of the HyperFormer code (T5) with its arguments_results.json'
ARGUMENTS = 'arguments_results.json'
STAGES = (hyperformer_names.CONTROLLER, *hyperformer.SCOPES)
_CLOSE = 1e-6  # largest difference of frozen weights from those of the backbone


def _method(layout: HyperformerLayout) -> Method:
  return zoo.ZOO[layout.stage].make(layout.options, layout.config, 0)


def to_expert(source: str | pathlib.Path, target: str | pathlib.Path,
              backbone: str | None = None) -> list[str]:
  """Reads a folder of the original program and writes an expert.

  Args:
    source: folder with weights, config.json and the arguments.
    target: folder of the expert.
    backbone: T5 that it stands on; default is `model_name_or_path` of the arguments.

  Returns:
    No paths; everything has a place.

  Raises:
    UserError: no backbone, another one than that of the weights, or files that do not fit.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  flags = tree_files.read_json(source / ARGUMENTS)
  name = cards.backbone_named(flags, source / ARGUMENTS, backbone)
  config, params = huggingface.load_t5(name)
  layout = hyperformer_names.layout_from_flags(flags, config)
  method = _method(layout)
  tuned = _tuned(hyperformer_names.state_to_tree(files.read_tensors(source), layout), params,
                 method, f"'{source}' has other values of {{}} than backbone '{name}', which it has"
                 ' not trained; give --backbone with the T5 that it started from.')
  tasks = [cards.task_here(task, HYPERFORMER_PREFIX) for task in layout.tasks]
  library.save_expert(target, tuned, {}, cards.card_of(
      target.name, layout.stage, method, layout.options, tasks[0], (name, params),
      **cards.joined_tasks(tasks, 'drawn')))
  return []


def _tuned(found: Tree, params: Tree, method: Method, refusal: str) -> Tree:
  """The leaves that a method tunes; all others must be those of the backbone."""
  flat, tuned = flatten(params), {}
  for path, leaf in flatten(found).items():
    group = next(group for pattern, group in method.tuned if re.fullmatch(pattern, path))
    if group != FROZEN[1]:
      tuned[path] = leaf
    elif np.max(np.abs(leaf - flat[path])) > _CLOSE:
      raise UserError(refusal.format(path))
  return unflatten(tuned)


def from_expert(source: str | pathlib.Path, target: str | pathlib.Path,
                weights: str = '') -> list[str]:
  """Reads an expert and writes a folder of the original program.

  Args:
    source: folder of the expert.
    target: folder to write.
    weights: 'torch' or 'safetensors'; '' means torch, as the program does.

  Returns:
    No paths; everything has a place.

  Raises:
    UserError: an expert that the original program has no form for.
  """
  tuned, _, card = library.load_expert(source)
  if card.method not in STAGES:
    raise UserError(f"expert '{card.name}' is of method '{card.method}'; only {', '.join(STAGES)}"
                    ' have a form in the HyperFormer code.')
  config, params = huggingface.load_t5(card.backbone_id)
  options = cards.options_of(zoo.ZOO[card.method].options, card.extra['options'])
  tasks = cards.tasks_of(card)
  options = zoo.for_tasks(options, len(tasks), options.one_task)  # A trained one leaves them open.
  if options.members or options.count != len(tasks):
    raise UserError(f"expert '{card.name}' has {options.count} adapters for {len(tasks)} tasks; the"
                    ' HyperFormer code names an adapter by its task.')
  layout = HyperformerLayout(config, tuple(task.removeprefix(HYPERFORMER_PREFIX) for task in tasks),
                             card.method, options)
  target = pathlib.Path(target)
  huggingface.write_model(target, hyperformer_names.table_of(layout), merge(params, tuned),
                          t5_config.to_hf(config), torch_format=weights != 'safetensors')
  tree_files.write_json(target / ARGUMENTS, {
      'model_name_or_path': card.backbone_id, **hyperformer_names.flags_of(layout)})
  return []
