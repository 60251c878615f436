"""Runs a stage: build, train (in one program or several), write experts."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections as mlc
import numpy as np

from pemt_jax.experts import tree_files
from pemt_jax.methods.language_modelling import NAME
from pemt_jax.sharding import processes
from pemt_jax.stages import analysis, span_corruption
from pemt_jax.stages.artefacts import save_experts
from pemt_jax.stages.backbone import Backbone
from pemt_jax.stages.build import Stage, build
from pemt_jax.stages.rows import ReplicaSpec, programs_of
from pemt_jax.stages.sources import COPIES, copy_sources
from pemt_jax.training import lock, records
from pemt_jax.training.config import check_train_config
from pemt_jax.training.experiment import Experiment
from pemt_jax.training.loop import TrainResult, train


@dataclasses.dataclass
class StageResult:
  """What a stage leaves.

  Attributes:
    stage: the built stage; None after span corruption.
    trained: best trees and results.
    experts: replica name -> expert folder (the backbone's folder after pretraining).
  """

  stage: Stage | None
  trained: TrainResult
  experts: dict[str, pathlib.Path]


def run_stage(config: mlc.ConfigDict, workdir: str | pathlib.Path,
              backbone: Backbone | None = None) -> StageResult:
  """Runs a stage to its end, or resumes what the workdir holds.

  Args:
    config: see `stages.config.base_config`.
    workdir: everything is written below it.
    backbone: a backbone that is loaded already.

  Raises:
    UserError: see `build` and `training.loop.train`.
  """
  workdir, began = records.check_workdir(workdir), time.monotonic()
  check_train_config(config.train)
  if config.stage == 'span_corruption':
    work = functools.partial(_pretrain, *span_corruption.build(config, workdir, backbone))
  else:
    stage = build(config, workdir, backbone)
    work = functools.partial(_train, stage, stage.experiment())
  with lock.locked(workdir):  # Mistakes in the config and in rows have shown before.
    result = work(config, workdir)
    analysis.write_resources(workdir, time.monotonic() - began)
    processes.wait('end of the stage')
  return result


def _train(stage: Stage, experiment: Experiment, config: mlc.ConfigDict,
           workdir: pathlib.Path) -> StageResult:
  """Trains all replicas of a stage, writes what it tells and its experts."""
  if processes.is_first():
    copy_sources(stage.source_folders, workdir / COPIES)
  programs = programs_of(config, stage.specs.values())
  if len(programs) == 1:
    trained = train(experiment, stage.config, workdir)
  else:
    trained = _one_by_one(stage, programs, experiment, workdir)
  analysis.write(stage, trained, workdir)
  if config.stage == NAME:
    folders = {'backbone': workdir / 'backbone'}
    span_corruption.save_backbone(trained.tuned, stage.backbone, config, folders['backbone'])
  else:
    folders = save_experts(stage, trained.tuned, trained.constants, trained.results, workdir)
  return StageResult(stage, trained, folders)


def _one_by_one(stage: Stage, programs: Mapping[str, Sequence[ReplicaSpec]],
                experiment: Experiment, workdir: pathlib.Path) -> TrainResult:
  """Trains one program after the other, each in a folder of its own; joins their results."""
  parts, place = [], workdir / 'replicas'
  records.write_config(records.open_workdir(workdir), stage.config, resumes=place.exists())
  replicas = {replica.name: replica for replica in experiment.replicas}
  for name, specs in programs.items():
    own = dataclasses.replace(experiment, replicas=tuple(replicas[spec.name] for spec in specs))
    parts.append(train(own, specs[0].config, place / name))
  joined: dict[str, Any] = {}
  for part in parts:
    joined |= part.results
  if processes.is_first():
    tree_files.write_json(workdir / 'result.json', {'replicas': joined})
  stack = lambda *leaves: np.concatenate(leaves)
  return TrainResult(
      experiment.replicas, jax.tree.map(stack, *(part.tuned for part in parts)),
      jax.tree.map(stack, *(part.constants for part in parts)), joined, workdir)


def _pretrain(experiment: Experiment, backbone: Backbone, config: mlc.ConfigDict,
              workdir: pathlib.Path) -> StageResult:
  """Trains a backbone and writes it."""
  trained = train(experiment, config, workdir)
  folder = workdir / 'backbone'
  span_corruption.save_backbone(trained.tuned, backbone, config, folder)
  return StageResult(None, trained, {'backbone': folder})
