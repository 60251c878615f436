"""Weight ensembling from sources to tuned targets, step by step below one workdir.

| folder below the workdir | step |
|---|---|
| `sources` | one expert per source task on all rows |
| `seed<n>/random` | few-shot tuning of every target from random values |
| `seed<n>/moved` | some updates of every source on every target, one program |
| `seed<n>/similarity` | every metric for every pair |
| `seed<n>/merges/<name>` | one expert per target without that target's own |
| `seed<n>/tuned` | few-shot tuning of every target from every merge, one program |
"""

from __future__ import annotations

import copy
import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections as mlc
import numpy as np

from pemt_jax.data.tasks import get_task
from pemt_jax.evaluation.postprocess import AVERAGE as SCORE
from pemt_jax.experts.library import load_expert
from pemt_jax.experts.similarity import METRICS
from pemt_jax.stages import similarity
from pemt_jax.stages.backbone import Backbone, load_backbone
from pemt_jax.stages.ensembling_config import check_ensembling, set_shared
from pemt_jax.stages.expert_set import ExpertSet, LoadedSource, file_name, load_sources
from pemt_jax.stages.merging import MergeOptions, merge_experts
from pemt_jax.stages.run import StageResult, run_stage
from pemt_jax.stages.similarity import References
from pemt_jax.stages.similarity_rows import SimilarityOptions
from pemt_jax.stages.starts import start_folder
from pemt_jax.training import lock, records

RANDOM = 'random start'
SINGLE = 'best single source'
ZERO_SHOT, FEW_SHOT = 'zero-shot', 'few-shot'
TEST = 'test'


@dataclasses.dataclass(frozen=True)
class Scores:
  """What one seed found.

  Attributes:
    seed: of the few-shot rows.
    targets: canonical names.
    sources: canonical names of the source tasks.
    similarity: metric -> [target, source].
    gain: [target, source] test score after some updates from a source, less that from random.
    scores: (protocol, start) -> [target] test scores.
  """

  seed: int
  targets: tuple[str, ...]
  sources: tuple[str, ...]
  similarity: Mapping[str, np.ndarray]
  gain: np.ndarray
  scores: Mapping[tuple[str, str], np.ndarray]


@dataclasses.dataclass
class EnsemblingResult:
  """What a run found: its config, one entry per seed, wall-clock seconds."""

  config: mlc.ConfigDict
  seeds: list[Scores]
  seconds: float


def run_ensembling(config: mlc.ConfigDict, workdir: str | pathlib.Path) -> EnsemblingResult:
  """Runs all steps; the same command goes on where it was stopped.

  Args:
    config: see `ensembling_config`.
    workdir: see the table of this module; `result.json`, tables and plots of the whole.

  Raises:
    UserError: see `check_ensembling` and the steps.
  """
  check_ensembling(config)
  set_shared(config)
  workdir = records.check_workdir(workdir)
  backbone = load_backbone(config.source, config.source.seeds[0])
  with lock.locked(workdir):
    return _run(config, workdir, backbone)


def _run(config: mlc.ConfigDict, workdir: pathlib.Path, backbone: Backbone) -> EnsemblingResult:
  """All steps in a workdir that is this run's own."""
  from pemt_jax.stages import ensembling_summary
  began = time.monotonic()
  folders = tuple(config.sources)
  if not folders:
    print('sources', flush=True)
    run_stage(config.source, workdir / 'sources', backbone)
    folders = (str(workdir / 'sources'),)
  found = []
  for seed in config.seeds:
    print(f'seed {seed}', flush=True)
    found.append(_Seed(config, workdir / f'seed{seed}', folders, backbone, seed).run())
  result = EnsemblingResult(config, found, time.monotonic() - began)
  ensembling_summary.write(result, workdir)
  return result


class _Seed:
  """The steps of one seed."""

  def __init__(self, config: mlc.ConfigDict, place: pathlib.Path, folders: tuple[str, ...],
               backbone: Backbone, seed: int):
    self.config, self.place, self.seed, self.backbone = config, place, seed, backbone
    self.folders, self.sources = folders, load_sources(folders)
    self.tasks = tuple(get_task(name).name for name in config.target.tasks)

  def run(self) -> Scores:
    random = self._tune('random')
    starts = tuple(str(source.folder) for source in self.sources)
    moved = self._tune('moved', starts, self.config.intermediate_steps)
    names = [source.folder.name for source in self.sources]
    after = np.array([[_test(moved, task, name) for name in names] for task in self.tasks])
    base = np.array([_test(random, task) for task in self.tasks])
    tables = self._similarity(random)
    merges = {name: self._merge(name) for name in self.config.merges}
    tuned = self._tune('tuned', tuple(map(str, merges.values())))
    scores = {(FEW_SHOT, RANDOM): base, (FEW_SHOT, SINGLE): self._single(moved, after, names)}
    for name in merges:
      scores[FEW_SHOT, name] = np.array(
          [_test(tuned, task, name if len(merges) > 1 else '') for task in self.tasks])
    scores |= {(ZERO_SHOT, name): row for name, row in self._zero_shot(merges).items()}
    return Scores(self.seed, self.tasks, tuple(s.card.task for s in self.sources),
                  {name: table.values for name, table in tables.items()},
                  after - base[:, None], scores)

  def _target(self) -> mlc.ConfigDict:
    """The target's config with this seed's rows."""
    config = copy.deepcopy(self.config.target)
    with config.unlocked():
      config.seeds = (self.seed,)
      config.few_shot_by_seed = config.data.few_shot is not None
      if config.few_shot_by_seed:  # Read by steps that know no replica.
        config.data.few_shot_seed = self.seed
    return config

  def _tune(self, name: str, starts: tuple[str, ...] = (), steps: int = 0) -> StageResult:
    """Tunes every target from every start in one program."""
    config = self._target()
    with config.unlocked():
      config.starts = starts
      if steps:
        config.train.steps, config.train.eval_every = steps, self.config.intermediate_every
    return run_stage(config, self.place / name, self.backbone)

  def _similarity(self, random: StageResult) -> dict[str, Any]:
    options = SimilarityOptions(tuple(self.config.metrics), self.config.batch_size)
    references = References(tuple(map(str, random.experts.values())), str(self.place / 'moved'),
                            str(self.place / 'moved'))
    return similarity.measure(self.folders, self.tasks, options, references,
                              self.place / 'similarity', self._target())

  def _merge(self, name: str) -> pathlib.Path:
    """Merges by a metric's similarity or by a method; Performance merges the moved sources."""
    place = self.place / 'merges' / name
    options = MergeOptions(method=name, scale=self.config.scale, seed=self.seed)
    if name in METRICS:
      options = MergeOptions(
          method='similarity', metric=name, similarity=str(self.place / 'similarity'),
          temperature=self.config.temperatures.get(name, 0.0),
          moved=str(self.place / 'moved') if name == 'performance' else '')
    merge_experts(self.folders, self.tasks, options, place, self._target())
    return place

  def _single(self, moved: StageResult, after: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Test score from the source with the best dev score, by target."""
    dev = [[moved.trained.results[_replica(task, name)]['best_value'] for name in names]
           for task in self.tasks]
    return after[np.arange(len(after)), np.argmax(dev, axis=1)]

  def _zero_shot(self, merges: Mapping[str, pathlib.Path]) -> dict[str, np.ndarray]:
    """Test scores of the merges as they are: merge -> [target]."""
    loaded = {task: [self._merged(name, place, task) for name, place in merges.items()]
              for task in self.tasks}
    experts = ExpertSet(loaded[self.tasks[0]], self.tasks, self.place / 'zero_shot',
                        self._target(), backbone=self.backbone)
    rows = [similarity.scores_of(experts, experts.trees_of(own), task, TEST)
            for task, own in loaded.items()]
    return dict(zip(merges, np.array(rows).T, strict=True))

  @staticmethod
  def _merged(name: str, place: pathlib.Path, task: str) -> LoadedSource:
    """The merge of a name for a task."""
    folder = start_folder(str(place), task)
    return LoadedSource(name, folder, *load_expert(folder))


def _replica(task: str, start: str = '') -> str:
  return file_name(task) + (f'-from-{start}' if start else '')


def _test(result: StageResult, task: str, start: str = '') -> float:
  return result.trained.results[_replica(task, start)]['final_metrics'][SCORE]
