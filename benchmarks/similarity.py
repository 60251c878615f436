"""Similarity of many sources to many targets: all sources in one program, or one pair at a time."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks.options import Options, batch_of
from benchmarks.timing import timed
from configs.pemt.presets import SOURCES
from pemt_jax.experts.library import ExpertCard, expert_folder, load_expert, save_expert
from pemt_jax.models.segments import cut
from pemt_jax.models.sites import plan_as_json
from pemt_jax.stages.build import Stage, build
from pemt_jax.stages.config import base_config
from pemt_jax.stages.expert_set import Runner, Source, stack_trees
from pemt_jax.stages.similarity_rows import Measurer, SimilarityOptions
from pemt_jax.training.experiment import make_replica

_CAP = 1  # batches of a target


def stage_of(options: Options, workdir: pathlib.Path) -> Stage:
  """A stage with one adapter after each sub-layer, the main form of weight ensembling."""
  config = base_config('adapter')
  config.tasks = SOURCES[:1]
  config.model.name, config.model.tokenizer = options.folder, 'playground'
  if options.scan_layers is not None:
    config.model.scan_layers = options.scan_layers
  return build(config, workdir)


def sources_of(stage: Stage, count: int) -> list[Source]:
  """Deltas of random numbers, each of its own."""
  spec, = stage.specs.values()
  tuned, constants = stage.start(make_replica(spec.name, spec.config.train, 1, seed=spec.seed))
  rng = np.random.default_rng(0)
  noisy = lambda leaf: leaf + 0.02 * rng.standard_normal(leaf.shape, dtype=np.float32)
  return [(jax.tree.map(noisy, tuned), constants) for _ in range(count)]


class _Similarity:
  """What both sides share; a step measures all targets."""

  def __init__(self, options: Options):
    start = time.perf_counter()
    self._options, self._folder = options, tempfile.TemporaryDirectory()
    self._stage = stage_of(options, pathlib.Path(self._folder.name))
    vocab = self._stage.backbone.config.vocab_size
    self._batches = []
    for target in range(options.replicas):
      ids = batch_of(options, vocab, target)
      self._batches.append({**ids, **{f'{name}_mask': np.ones(value.shape, np.float32)
                                      for name, value in ids.items()}})
    self._sources = sources_of(self._stage, options.replicas)
    self._measurer = self._make()
    built = time.perf_counter()
    self.first_loss = float(self._row(self._batches[0])[0])
    self.phases = {'build': built - start, 'first_step': time.perf_counter() - built}

  def _runner(self, sources: list[Source]) -> Runner:
    stacked = jax.device_put(stack_trees(sources))
    return Runner(self._stage.model, self._stage.start.frozen, stacked)

  def _measure(self, batch: dict[str, Any]) -> np.ndarray:
    name = self._options.metric
    caps = {'grand': _CAP, 'grand_by_block': _CAP, 'grand_by_layer': _CAP}
    return np.asarray(self._measurer.measure([batch], None, caps)[name])

  def _measurer_of(self, sources: list[Source]) -> Measurer:
    return Measurer(self._runner(sources), SimilarityOptions((self._options.metric,)),
                    self._batches[0])

  def run(self, count: int = 1) -> dict[str, list[Any]]:
    """Measures every target under every source; the values are matrices, see `timing.timed`."""
    return timed(lambda: [self._row(batch).tolist() for batch in self._batches], count)


class Together(_Similarity):
  """All sources in one program."""

  def _make(self) -> Measurer:
    return self._measurer_of(self._sources)

  def _row(self, batch: dict[str, Any]) -> np.ndarray:
    return self._measure(batch)


class Pairs(_Similarity):
  """One pair at a time; program and deltas stay in memory."""

  def _make(self) -> Measurer:
    self._runners = [self._runner([source]) for source in self._sources]
    return self._measurer_of(self._sources[:1])

  def _row(self, batch: dict[str, Any]) -> np.ndarray:
    found = []
    for i in range(len(self._sources)):
      self._measurer.runner = self._take(i)
      found.append(self._measure(batch)[0])
    return np.array(found)

  def _take(self, i: int) -> Runner:
    return self._runners[i]


class Reloaded(Pairs):
  """One pair at a time; every pair reads its expert from its folder, as the original does."""

  def _make(self) -> Measurer:
    stage, place = self._stage, pathlib.Path(self._folder.name)
    self._folders = [expert_folder(place, str(i)) for i in range(len(self._sources))]
    for folder, (tuned, constants) in zip(self._folders, self._sources, strict=True):
      save_expert(folder, tuned, constants, ExpertCard(
          folder.name, stage.method.name, plan_as_json(stage.method.plan), stage.backbone.name,
          stage.backbone.hash, SOURCES[0]))
    return self._measurer_of(self._sources[:1])

  def _take(self, i: int) -> Runner:
    tuned, constants, _ = load_expert(self._folders[i])
    own = cut(tuned, self._stage.start.tuned_shapes()), constants
    return dataclasses.replace(self._measurer.runner, stacked=jax.device_put(stack_trees([own])))
