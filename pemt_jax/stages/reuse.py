"""Source experts as they are: on other tasks, with layers exchanged, or with shuffled weights."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import ml_collections as mlc
import numpy as np

from pemt_jax.evaluation.postprocess import AVERAGE, score
from pemt_jax.experts import tree_files
from pemt_jax.experts.library import expert_folder, load_expert, save_expert
from pemt_jax.models.segments import cut
from pemt_jax.stages import prompts
from pemt_jax.stages.backbone import Backbone
from pemt_jax.stages.build import Stage, build
from pemt_jax.stages.sources import EXPERT, PROMPT, find_sources
from pemt_jax.trees import Tree, flatten, unflatten


class SourceExperts:
  """All source experts of one first stage under one compiled program.

  Attributes:
    names: tasks of the experts, in the order of the bank.
    stage: the first stage, built for the experts' tasks and all tasks to be asked about.
  """

  def __init__(self, folders: Sequence[str], config: mlc.ConfigDict, tasks: Sequence[str],
               workdir: pathlib.Path, backbone: Backbone):
    """Loads the experts.

    Args:
      folders: see `find_sources`.
      config: of the first stage that made them.
      tasks: further tasks to be asked about.
      workdir: for the token cache.
      backbone: their backbone.
    """
    loaded = [load_expert(folder) for folder in find_sources(folders)]
    self.names = tuple(card.task for _, _, card in loaded)
    asked = mlc.ConfigDict(config)
    with asked.unlocked():
      asked.tasks = tuple(dict.fromkeys((*self.names, *tasks)))
      asked.seeds = config.seeds[:1]
    self.stage: Stage = build(asked, workdir, backbone)
    self._specs = {spec.task: spec for spec in self.stage.specs.values()}
    shapes = self.stage.start.tuned_shapes()
    length = flatten(shapes).get(f'{PROMPT}/table')
    trees = [padded(tuned, constants, None if length is None else length.shape[0])
             for tuned, constants, _ in loaded]
    stack = lambda *leaves: np.stack(leaves)
    self._tuned = jax.tree.map(stack, *(cut(tuned, shapes) for tuned, _ in trees))
    self._constants = jax.tree.map(stack, *(constants for _, constants in trees))

  def scores(self, task: str, split: str) -> list[float]:
    """Average metric of every expert on one of the tasks, in the order of `names`."""
    return self._scores([task] * len(self.names), split, self._tuned)

  def _scores(self, tasks: Sequence[str], split: str, tuned: Tree) -> list[float]:
    """Average metric of each expert on the task at its place, in one pass."""
    stage, specs = self.stage, [self._specs[task] for task in tasks]
    texts, _ = stage.evaluator.predictions(tuned, stage.start.frozen, self._constants,
                                           [spec.name for spec in specs], split)
    data = [stage.store.examples(spec, split) for spec in specs]
    return [score(own.task, found, own.examples)[AVERAGE]
            for own, found in zip(data, texts, strict=True)]

  def skill_by_layer(self, split: str = 'validation') -> dict[str, np.ndarray]:
    """Points that the experts lose on their own tasks when one layer comes from another expert.

    Mean over the experts and over their exchange partners (the next and the one after next).

    Returns:
      stack -> [layer].
    """
    own, found = self._scores(self.names, split, self._tuned), {}
    for stack in ('encoder', 'decoder'):
      paths = [path for path in flatten(self._tuned) if path.startswith(stack) and EXPERT in path]
      depth = np.shape(flatten(self._tuned)[paths[0]])[1]
      now = [[self._scores(self.names, split, self._exchanged(paths, layer, shift))
              for shift in (1, 2)] for layer in range(depth)]
      found[stack] = np.mean(own - np.array(now), axis=(1, 2))
    return found

  def _exchanged(self, paths: Sequence[str], layer: int, shift: int) -> Tree:
    """The experts with one layer of some leaves taken from the expert `shift` places before."""
    flat = dict(flatten(self._tuned))
    for path in paths:
      leaf = np.array(flat[path])
      leaf[:, layer] = np.roll(leaf[:, layer], shift, axis=0)
      flat[path] = leaf
    return unflatten(flat)


def padded(tuned: Tree, constants: Tree, length: int | None) -> tuple[Tree, Tree]:
  """Pads a prompt on the left to `length` rows."""
  flat, state = dict(flatten(tuned)), dict(flatten(constants))
  if length is not None:
    longer = prompts.left_pad(flat[f'{PROMPT}/table'], length)
    flat[f'{PROMPT}/table'], state[f'{PROMPT}/mask'] = map(np.asarray, longer)
  return unflatten(flat), unflatten(state)


def shuffle_experts(folders: Sequence[str], workdir: pathlib.Path,
                    seed: int = 0) -> tuple[str, ...]:
  """Writes copies of source experts whose matrices have their entries permuted, layer by layer.

  Size and distribution of the entries stay; what they say is lost. Prompts stay as they are.

  Args:
    folders: see `find_sources`.
    workdir: the copies go to `<workdir>/experts/`.
    seed: of the permutations.

  Returns:
    Folders of the copies, in the same order.
  """
  rng, written = np.random.default_rng(seed), []
  for folder in find_sources(folders):
    tuned, constants, card = load_expert(folder)
    place = expert_folder(workdir, folder.name)
    if not place.exists():
      flat = {path: _permuted(leaf, rng) if EXPERT in path else leaf
              for path, leaf in flatten(tuned).items()}
      save_expert(place, unflatten(flat), constants,
                  dataclasses.replace(card, metrics={}))
    written.append(str(place))
  tree_files.write_json(workdir / 'shuffled.json', {'of': list(map(str, folders)), 'seed': seed})
  return tuple(written)


def _permuted(leaf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Permutes all entries behind the leading [layer] axis."""
  rows = np.reshape(leaf, (len(leaf), -1))
  return np.stack([rng.permutation(row) for row in rows]).reshape(leaf.shape).astype(leaf.dtype)
