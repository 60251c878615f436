"""A study: methods on the same targets, paired seeds, one grid of rates, and controls."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections as mlc
import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.evaluation.postprocess import AVERAGE
from pemt_jax.experts import tree_files
from pemt_jax.stages import columns
from pemt_jax.stages.analysis import mean_gates
from pemt_jax.stages.backbone import Backbone, load_backbone
from pemt_jax.stages.config import base_config
from pemt_jax.stages.reuse import SourceExperts, shuffle_experts
from pemt_jax.stages.run import run_stage
from pemt_jax.stages.sources import find_sources
from pemt_jax.stages.study_config import (
    base_task, check_study, ordered, related, set_shared)
from pemt_jax.training import lock, records

FROZEN, REUSED = 'frozen backbone', 'reused source'
OUTCOMES = 'outcomes.json'  # of one training, for the same command again


@dataclasses.dataclass(frozen=True)
class Outcome:
  """One replica's figures.

  Attributes:
    condition: name.
    column: name.
    task: target, options included.
    seed: of the replica.
    value: average test metric of the best step.
    dev: average dev metric of the best step.
    rate: peak learning rate; None where nothing is trained.
    gates: stack -> [layer, source] mean gates on the test rows; {} without a mixture.
    sources: names of the bank's experts.
  """

  condition: str
  column: str
  task: str
  seed: int
  value: float
  dev: float
  rate: float | None = None
  gates: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  sources: tuple[str, ...] = ()


@dataclasses.dataclass
class StudyResult:
  """What a study found.

  Attributes:
    config: of the study.
    outcomes: all replicas.
    skill: stack -> [layer] see `SourceExperts.skill_by_layer`; {} where it was not measured.
    seconds: wall-clock time.
  """

  config: mlc.ConfigDict
  outcomes: list[Outcome]
  skill: dict[str, np.ndarray]
  seconds: float


def run_study(config: mlc.ConfigDict, workdir: str | pathlib.Path) -> StudyResult:
  """Runs a study; the same command goes on where it was stopped, stage by stage.

  Args:
    config: see `study_config`.
    workdir: one folder per stage below it; `result.json`, tables and plots of the whole.

  Raises:
    UserError: see `check_study` and `run_stage`; or a column takes the rates of one that has none.
  """
  from pemt_jax.stages import study_summary
  check_study(config)
  set_shared(config)
  study = _Study(config, records.check_workdir(workdir))
  with lock.locked(study.workdir):
    result = study.run()
    study_summary.write(result, study.workdir)
  return result


class _Study:
  """The way through a study."""

  def __init__(self, config: mlc.ConfigDict, workdir: pathlib.Path):
    self.config, self.workdir = config, workdir
    self.backbone: Backbone = load_backbone(config.stage1, config.stage1.seeds[0])
    self.rates: dict[tuple[str, str], float] = {}
    self.outcomes: list[Outcome] = []
    self.folders: tuple[str, ...] = ()

  def run(self) -> StudyResult:
    began, config = time.monotonic(), self.config
    self.folders = tuple(config.sources)
    if not self.folders:
      print('sources', flush=True)
      run_stage(config.stage1, self.workdir / 'sources', self.backbone)
      self.folders = (str(self.workdir / 'sources'),)
    tasks = dict.fromkeys(task for c in ordered(config).values() for task in c.tasks)
    skill = self._without_training(tuple(tasks))
    for name, condition in ordered(config).items():
      for column in condition.columns:
        print(f'{name}: {column}', flush=True)
        self._column(name, column)
    return StudyResult(config, self.outcomes, skill, time.monotonic() - began)

  def _without_training(self, tasks: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns that train nothing, and what the experts hold in each layer."""
    skill: dict[str, np.ndarray] = {}
    values: dict[tuple[str, str], tuple[float, float]] = {}
    if self.config.reused:
      experts = SourceExperts(self.folders, self.config.stage1, tasks, self.workdir / 'reused',
                              self.backbone)
      for task in tasks:
        dev, test = (experts.scores(task, split) for split in ('validation', 'test'))
        best = int(np.argmax(dev))
        values[task, REUSED] = test[best], dev[best]
      skill = experts.skill_by_layer()
    if self.config.frozen:
      full = next(iter(self.config.columns.values())).config
      for entry in columns.frozen_column(_as_frozen(full, tasks), self.workdir / 'frozen',
                                         self.backbone):
        values[entry['task'], FROZEN] = entry['value'], np.nan
    for name, condition in ordered(self.config).items():
      self.outcomes += [Outcome(name, column, task, seed, *found)
                        for (task, column), found in values.items() if task in condition.tasks
                        for seed in self.config.seeds]
    return skill

  def _column(self, condition: str, name: str) -> None:
    """One column under one condition: choose rates where there is none yet, then all seeds."""
    column, fields = self.config.columns[name], self.config.conditions[condition]
    place, seeds = self.workdir / condition / name, self.config.seeds
    owner = column.rates_of or name
    new = [task for task in fields.tasks if (owner, base_task(task)) not in self.rates]
    first = self.config.selection_seeds if new else 0
    found = []
    if new and column.rates_of:
      raise UserError(f"column '{name}' takes the rates of '{owner}', which has none for"
                      f" {', '.join(new)} yet; let '{owner}' run in an earlier condition.")
    if new:
      found = self._train((condition, name), new, seeds[:first], place / 'grid',
                          self.config.learning_rates)
      self._choose(owner, found)
      found = [one for one in found if one.rate == self.rates[owner, base_task(one.task)]]
    old = [task for task in fields.tasks if task not in new]
    for tasks, left, folder in ((old, seeds[:first], 'first'),
                                (fields.tasks, seeds[first:], 'rest')):
      if tasks and left:
        found += self._train((condition, name), tasks, left, place / folder, ())
    self.outcomes += found

  def _choose(self, owner: str, found: Sequence[Outcome]) -> None:
    """Takes for each target the rate with the best mean dev score; the smaller one of equals."""
    for task in dict.fromkeys(one.task for one in found):
      score = {rate: np.mean([one.dev for one in found if (one.task, one.rate) == (task, rate)])
               for rate in sorted(self.config.learning_rates)}
      self.rates[owner, base_task(task)] = max(score, key=score.get)

  def _train(self, place: tuple[str, str], tasks: Sequence[str], seeds: Sequence[int],
             folder: pathlib.Path, rates: Sequence[float]) -> list[Outcome]:
    """Trains tasks x seeds x rates in one program; without rates each task has its chosen one."""
    condition, name = place
    column = self.config.columns[name]
    config = copy.deepcopy(column.config)
    chosen = {task: self.rates.get((column.rates_of or name, base_task(task))) for task in tasks}
    with config.unlocked():
      config.tasks, config.seeds, config.learning_rates = tuple(tasks), tuple(seeds), tuple(rates)
      for task in () if rates else tasks:
        own = config.per_task.get(task, mlc.ConfigDict())
        config.per_task[task] = mlc.ConfigDict(
            {**own.to_dict(), 'train': {'learning_rate': chosen[task]}})
      config.data.few_shot = self.config.conditions[condition].few_shot or None
      config.few_shot_by_seed = config.data.few_shot is not None
      steps = self.config.conditions[condition].steps
      if steps:
        config.train.steps, config.train.eval_every = steps, max(steps // 2, 1)
      if config.stage == 'pemt/stage2':
        config.sources = self._bank(column.bank, tasks)
    known = _read(folder / OUTCOMES, config)
    if known is not None:
      return known
    result = run_stage(config, folder, self.backbone)
    stage, outcomes = result.stage, []
    for replica, values in result.trained.results.items():
      spec = stage.specs[replica]
      outcomes.append(Outcome(
          condition, name, spec.task, spec.seed, values['final_metrics'][AVERAGE],
          values['best_value'], spec.learning_rate or chosen[spec.task],
          mean_gates(stage, replica), stage.sources.names if stage.sources else ()))
    tree_files.write_json(folder / OUTCOMES, {
        'config': records.resolved(config), 'outcomes': [_plain(one) for one in outcomes]})
    return outcomes

  def _bank(self, bank: str, tasks: Sequence[str]) -> tuple[str, ...]:
    """Folders of the source experts of a column."""
    if bank == 'shuffled':
      return shuffle_experts(self.folders, self.workdir / 'shuffled')
    if bank == 'trained':
      return self.folders
    needed = related(self.config.relations, tasks)
    return tuple(str(folder) for folder in find_sources(self.folders)
                 if not any(folder.name == task.replace('/', '-') for task in needed))


def _plain(outcome: Outcome) -> dict[str, Any]:
  """An outcome as JSON values."""
  gates = {stack: gates.tolist() for stack, gates in outcome.gates.items()}
  return dataclasses.asdict(dataclasses.replace(outcome, gates=gates))


def _read(path: pathlib.Path, config: mlc.ConfigDict) -> list[Outcome] | None:
  """What a finished training under this config found; None where there is none."""
  if not path.is_file():
    return None
  held = tree_files.read_json(path)
  if held['config'] != records.resolved(config):
    return None  # `run_stage` knows which fields may change and refuses the others.
  return [Outcome(**one | {
      'gates': {stack: np.asarray(gates, np.float32) for stack, gates in one['gates'].items()},
      'sources': tuple(one['sources'])}) for one in held['outcomes']]


def _as_frozen(column: mlc.ConfigDict, tasks: Sequence[str]) -> mlc.ConfigDict:
  """A config that loads tasks on the backbone without any delta."""
  config = base_config('full')
  with config.unlocked():
    for part in ('model', 'data', 'per_task'):
      config[part] = copy.deepcopy(column[part])
    config.tasks, config.data.few_shot = tuple(tasks), None
  return config
