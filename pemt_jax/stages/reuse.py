"""Source experts as they are: on other tasks, with layers exchanged, or with shuffled weights."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import ml_collections as mlc
import numpy as np

from pemt_jax.data import pipeline
from pemt_jax.evaluation.postprocess import AVERAGE, score
from pemt_jax.experts import tree_files
from pemt_jax.experts.library import expert_folder, load_expert, save_expert
from pemt_jax.models.segments import cut
from pemt_jax.stages.backbone import Backbone
from pemt_jax.stages.build import Stage, build
from pemt_jax.stages.rows import ReplicaSpec
from pemt_jax.stages.sources import PROMPT, find_sources
from pemt_jax.trees import Tree, flatten, unflatten

_EXPERT = '/mlp/wo/'


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
    trees = [_padded(tuned, constants, None if length is None else length.shape[0])
             for tuned, constants, _ in loaded]
    stack = lambda *leaves: np.stack(leaves)
    self._tuned = jax.tree.map(stack, *(cut(tuned, shapes) for tuned, _ in trees))
    self._constants = jax.tree.map(stack, *(constants for _, constants in trees))

  def scores(self, task: str, split: str, tuned: Tree | None = None) -> list[float]:
    """Average metric of every expert on one task, in the order of `names`.

    Args:
      task: a task that the experts were built for.
      split: of its rows.
      tuned: trees in place of the experts', leaves [expert, ...].
    """
    spec, store, count = self._specs[task], self.stage.store, len(self.names)
    texts: list[dict[int, np.ndarray]] = [{} for _ in range(count)]
    for batch in store.eval_batches(spec, split):
      out, _ = self.stage.evaluator.predict(
          self._tuned if tuned is None else tuned, self.stage.start.frozen, self._constants,
          pipeline.stack_batches([batch] * count))
      for own, tokens in zip(texts, np.asarray(out), strict=True):
        own |= {int(example): tokens[row] for row, example in enumerate(batch['example_ids'])
                if example >= 0}
    return [self._score(spec, split, own) for own in texts]

  def _score(self, spec: ReplicaSpec, split: str, tokens: dict[int, np.ndarray]) -> float:
    data = self.stage.store.examples(spec, split)
    texts = self.stage.store.tokenizer.decode_batch([tokens[i] for i in range(len(tokens))])
    return score(data.task, texts, data.examples)[AVERAGE]

  def skill_by_layer(self, split: str = 'validation') -> dict[str, np.ndarray]:
    """Points that the experts lose on their own tasks when one layer comes from another expert.

    Mean over the experts and over their exchange partners (the next and the one after next).

    Returns:
      stack -> [layer].
    """
    own = [self.scores(task, split)[i] for i, task in enumerate(self.names)]
    found = {}
    for stack in ('encoder', 'decoder'):
      paths = [path for path in flatten(self._tuned) if path.startswith(stack) and _EXPERT in path]
      depth = np.shape(flatten(self._tuned)[paths[0]])[1]
      found[stack] = np.array([
          np.mean([self._lost(paths, layer, shift, own, split) for shift in (1, 2)])
          for layer in range(depth)])
    return found

  def _lost(self, paths, layer, shift, own, split) -> float:
    flat = dict(flatten(self._tuned))
    for path in paths:
      leaf = np.array(flat[path])
      leaf[:, layer] = np.roll(leaf[:, layer], shift, axis=0)
      flat[path] = leaf
    exchanged = unflatten(flat)
    now = [self.scores(task, split, exchanged)[i] for i, task in enumerate(self.names)]
    return float(np.mean(np.subtract(own, now)))


def _padded(tuned: Tree, constants: Tree, length: int | None) -> tuple[Tree, Tree]:
  """Pads a prompt on the left to `length` rows."""
  flat, state = dict(flatten(tuned)), dict(flatten(constants))
  if length is not None:
    table = flat[f'{PROMPT}/table']
    room = length - len(table)
    flat[f'{PROMPT}/table'] = np.pad(table, ((room, 0), (0, 0)))
    state[f'{PROMPT}/mask'] = (np.arange(length) >= room).astype(np.float32)
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
      flat = {path: _permuted(leaf, rng) if _EXPERT in path else leaf
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
