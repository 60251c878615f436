"""Compares methods on the same targets: one column per method, replicas for seeds."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections as mlc
import numpy as np

from pemt_jax.data.tasks import get_task
from pemt_jax.evaluation.postprocess import AVERAGE, score
from pemt_jax.experts import tree_files
from pemt_jax.stages.backbone import Backbone
from pemt_jax.stages.build import build
from pemt_jax.stages.labels import make_label_scorer, score_rows
from pemt_jax.stages.run import run_stage

Record = dict[str, Any]


def frozen_column(config: mlc.ConfigDict, workdir: pathlib.Path,
                  backbone: Backbone) -> list[Record]:
  """The backbone without any delta; the label with the highest score is the prediction."""
  stage = build(config, workdir, backbone)
  records = []
  for name, spec in stage.specs.items():
    task = get_task(spec.task)
    scorer = make_label_scorer(stage.model, stage.method, backbone.tokenizer, task.label_words)
    trees = (backbone.params, {}, {})
    scores = score_rows(scorer, trees, stage.store.eval_batches(spec, 'test'))
    texts = [task.label_words[index] for index in np.argmax(scores, axis=-1)]
    metrics = score(task, texts, stage.store.examples(spec, 'test').examples)
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
