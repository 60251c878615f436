"""Compares methods on the same targets: one column per method, replicas for seeds."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections as mlc
import numpy as np

from pemt_jax.evaluation.postprocess import AVERAGE, score
from pemt_jax.experts import tree_files
from pemt_jax.stages.backbone import Backbone
from pemt_jax.stages.build import build
from pemt_jax.stages.run import run_stage

Record = dict[str, Any]


def frozen_column(config: mlc.ConfigDict, workdir: pathlib.Path,
                  backbone: Backbone) -> list[Record]:
  """The backbone without any delta; of tasks with label words, the most probable one counts."""
  config = copy.deepcopy(config)
  with config.unlocked():
    config.generation.labels_only = True
  stage = build(config, workdir, backbone)
  tuned, records = jax.tree.map(lambda leaf: np.asarray(leaf)[None], backbone.params), []
  for name, spec in stage.specs.items():
    (texts,), _ = stage.evaluator.predictions(tuned, {}, {}, [name], 'test')
    test = stage.store.examples(spec, 'test')
    metrics = score(test.task, texts, test.examples)
    records.append(record(spec.task, 'frozen backbone', metrics[AVERAGE], name))
  return records


def record(task: str, method: str, value: float, replica: str) -> Record:
  """One entry of `records` in result.json."""
  return {'task': task, 'method': method, 'value': float(value), 'metric': AVERAGE,
          'replica': replica}


def trained_column(title: str, config: mlc.ConfigDict, workdir: pathlib.Path,
                   backbone: Backbone) -> list[Record]:
  """Trains all targets and seeds of a config as replicas; one record per replica."""
  result = run_stage(config, workdir, backbone)
  return [record(result.stage.specs[name].task, title, values['final_metrics'][AVERAGE], name)
          for name, values in result.trained.results.items()]


def write_records(workdir: pathlib.Path, records: Sequence[Record]) -> None:
  """Writes the comparison as result.json of the whole workdir."""
  tree_files.write_json(workdir / 'result.json', {'records': list(records)})
