"""Source experts of one form, stacked, with a stage that runs them on the rows of targets."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np

from pemt_jax.data import pipeline
from pemt_jax.data.buckets import length_buckets, pad_batch
from pemt_jax.errors import UserError
from pemt_jax.experts.library import ExpertCard, check_backbone, load_expert
from pemt_jax.experts.tree_files import check_description, describe
from pemt_jax.methods.base import Expand, joined, shift_right, token_cross_entropy
from pemt_jax.models.segments import cut, join_shapes
from pemt_jax.models.t5 import T5
from pemt_jax.sharding.placement import Placement, fetch
from pemt_jax.stages.artefacts import config_of
from pemt_jax.stages.backbone import Backbone, load_backbone
from pemt_jax.stages.build import Stage, build
from pemt_jax.stages.predict import expert_folders
from pemt_jax.stages.reuse import padded
from pemt_jax.stages.rows import ReplicaSpec
from pemt_jax.stages.sources import PROMPT, find_sources
from pemt_jax.training.records import RESULT
from pemt_jax.trees import Tree, flatten

Source = tuple[Tree, Tree]


@dataclasses.dataclass(frozen=True)
class LoadedSource:
  """An expert as it is stored.

  Attributes:
    name: its task as part of a file name.
    folder: where it is.
    tuned: canonical tree.
    constants: method state.
    card: what it is.
  """

  name: str
  folder: pathlib.Path
  tuned: Tree
  constants: Tree
  card: ExpertCard


def file_name(task: str) -> str:
  """A task's name as part of a file name."""
  return task.replace('/', '-')


def all_folders(folders: Sequence[str | pathlib.Path]) -> list[pathlib.Path]:
  """Expert folders that folders of experts, runs or libraries stand for, in their order.

  Raises:
    UserError: a folder without an expert.
  """
  found: list[pathlib.Path] = []
  for folder in map(pathlib.Path, folders):
    found += find_sources([folder]) if (folder / RESULT).is_file() else expert_folders(folder)
  return found


def load_sources(folders: Sequence[str | pathlib.Path]) -> list[LoadedSource]:
  """Loads experts of one method, one per task.

  Raises:
    UserError: no expert, two of one task, experts of different methods, options or backbones, or
      experts that rest on further experts.
  """
  found = [LoadedSource(file_name(card.task), folder, tuned, constants, card)
           for folder in all_folders(folders) for tuned, constants, card in [load_expert(folder)]]
  if not found:
    raise UserError('no source is given; give folders of experts as --sources.')
  first, names = found[0], [source.name for source in found]
  for source in found:
    if names.count(source.name) > 1:
      raise UserError(f"two sources are experts of task '{source.card.task}', {source.folder} is"
                      ' one of them; give one expert per task.')
    if source.card.extra.get('sources'):
      raise UserError(f'{source.folder} rests on source experts of its own, which cannot be merged'
                      ' or compared; give experts of a first stage.')
    if _form(source.card) != _form(first.card):
      raise UserError(f"{source.folder} is an expert of '{source.card.method}' with other options"
                      f' than {first.folder}; train all sources with one config.')
    check_backbone(source.card, first.card.backbone_id, first.card.backbone_hash)
  return found


def _form(card: ExpertCard) -> tuple[Any, ...]:
  return card.method, card.plan, card.extra.get('options')


def stack_trees(sources: Sequence[Source]) -> Source:
  """Stacks trees and their state on a leading [source] axis."""
  return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *sources)


@dataclasses.dataclass(frozen=True)
class Runner:
  """A model and what it runs.

  Attributes:
    model: backbone with the plan of the sources.
    frozen: frozen parameters.
    stacked: (tuned, constants) with leaves [source, ...], in the segments of the model.
    expand: of the method.
    placement: where `frozen` and `stacked` stand.
  """

  model: T5
  frozen: Tree
  stacked: Source
  expand: Expand = joined
  placement: Placement = Placement()

  @property
  def count(self) -> int:
    """Number of sources."""
    return jax.tree.leaves(self.stacked[0])[0].shape[0]

  def logits(self, source: Source, frozen: Tree, batch: dict[str, Any],
             key: jax.Array | None = None) -> jax.Array:
    """[batch, length, vocab] teacher-forced logits of one source."""
    tuned, constants = source
    variables = {'params': self.expand(tuned, frozen, constants), 'constants': constants}
    inputs = shift_right(batch['targets'], self.model.config.start_id)
    return self.model.apply(variables, batch['inputs'], batch['inputs_mask'], inputs,
                            batch['targets_mask'], None, key)[0]

  def rows(self, batch: pipeline.Batch) -> dict[str, jax.Array]:
    """What the model reads of a batch, where it belongs."""
    return self.placement.batch(on_device(batch), lead=0)

  def call(self, program: Callable[..., Any], *args: Any) -> Any:
    """Results of a compiled program as NumPy arrays."""
    return fetch(self.placement.bound(program)(*args))

  def token_loss(self, source: Source, frozen: Tree, batch: dict[str, Any],
                 key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """(sum of -log p over the real target tokens, their number) of one source."""
    return token_cross_entropy(self.logits(source, frozen, batch, key), batch['targets'],
                               batch['targets_mask'])


class ExpertSet:
  """Sources under one model.

  Attributes:
    sources: as they are stored.
    names: of the sources.
    stage: built for the targets.
    runner: the model with the stacked sources; prompts are padded on the left to the longest one.
  """

  def __init__(self, sources: Sequence[LoadedSource], tasks: Sequence[str], workdir: pathlib.Path,
               config: mlc.ConfigDict | None = None, others: Sequence[LoadedSource] = (),
               backbone: Backbone | None = None):
    """Builds the stage.

    Args:
      sources: see `load_sources`.
      tasks: whose rows are read.
      workdir: for the token cache.
      config: in place of the config of the first source.
      others: further experts that will run under the same model, see `trees_of`.
      backbone: a backbone that is loaded already.

    Raises:
      UserError: another backbone, another method, an unknown task.
    """
    card = sources[0].card
    config = mlc.ConfigDict(config_of(card) if config is None else config)
    if config.stage != card.method:
      raise UserError(f"config.stage is '{config.stage}', but the sources are experts of"
                      f" '{card.method}'; give a config of that stage.")
    tables = [flatten(s.tuned).get(f'{PROMPT}/table') for s in (*sources, *others)]
    self._prompt = max((len(table) for table in tables if table is not None), default=None)
    with config.unlocked():
      config.tasks, config.learning_rates = tuple(tasks), ()
      config.sources, config.starts = (), ()
      config.seeds = tuple(config.seeds)[:1]
      config.prompt.length = self._prompt or 0
    backbone = backbone or load_backbone(config, config.seeds[0])
    check_backbone(card, backbone.name, backbone.hash)
    self.sources, self.names = tuple(sources), tuple(source.name for source in sources)
    self.stage: Stage = build(config, workdir, backbone)
    self.specs: dict[str, ReplicaSpec] = {s.task: s for s in self.stage.specs.values()}
    placement, (tuned, constants) = self.stage.start.placement, self.trees_of(sources)
    self.runner = Runner(self.stage.model, self.stage.start.frozen,
                         (placement.stacked(tuned, spread=False), placement.whole(constants)),
                         self.stage.method.expand, placement)

  def trees_of(self, sources: Sequence[LoadedSource]) -> Source:
    """(tuned, constants) of experts with leaves [source, ...], for the model of this set.

    Raises:
      UserError: names or shapes that are not those of the model.
    """
    shapes, found = self.stage.start.tuned_shapes(), []
    expected = describe(join_shapes(shapes))
    for source in sources:
      tuned, constants = padded(source.tuned, source.constants, self._prompt)
      check_description(describe(tuned), expected, source.folder)
      found.append((cut(tuned, shapes), constants))
    return stack_trees(found)

  def batches(self, tasks: Sequence[str], split: str, size: int) -> dict[str, list[pipeline.Batch]]:
    """Rows of each task in their order, in batches of one shape for all tasks.

    Args:
      tasks: tasks of the stage.
      split: which rows.
      size: rows per batch; the last one ends with filler rows.
    """
    data = {task: self.stage.store.tokens(self.specs[task], split) for task in tasks}
    fields = self.stage.config.data
    fit = lambda longest, limits, buckets, smallest: next(
        b for b in length_buckets(max(limits), tuple(buckets) or None, smallest) if b >= longest)
    shape = (
        size,
        fit(max(int(d.input_lengths.max()) for d in data.values()),
            [d.input_limit for d in data.values()], fields.buckets, 32),
        fit(max(int(d.target_lengths.max()) for d in data.values()),
            [d.target_limit for d in data.values()], fields.target_buckets, 8))
    return {task: [pad_batch(batch, shape) for batch in pipeline.eval_batches(
        own, size, [shape[1]], [shape[2]], sort=False)] for task, own in data.items()}


def on_device(batch: pipeline.Batch) -> dict[str, jax.Array]:
  """The arrays of a batch that a model reads."""
  return {name: jnp.asarray(batch[name])
          for name in ('inputs', 'inputs_mask', 'targets', 'targets_mask')}
