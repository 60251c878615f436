"""Experts that a stage leaves: folders of the expert library."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from pemt_jax.experts.library import ExpertCard, expert_folder, save_expert
from pemt_jax.models.segments import join
from pemt_jax.models.sites import Plan
from pemt_jax.stages.build import Stage
from pemt_jax.trees import Tree


def plan_as_json(plan: Plan) -> list[dict[str, Any]]:
  """The rules of a plan as plain values."""
  return [{'name': rule.name, 'site': rule.site, 'layers': rule.layers,
           'delta': type(rule.delta).__name__, 'config': dataclasses.asdict(rule.delta)}
          for rule in plan.rules]


def save_experts(stage: Stage, tuned: Tree, constants: Tree, results: dict[str, dict[str, Any]],
                 workdir: pathlib.Path) -> dict[str, pathlib.Path]:
  """Writes one expert per replica below the workdir.

  Args:
    stage: what was trained.
    tuned: best tuned trees, leaves [replica, ...].
    constants: method state, leaves [replica, ...].
    results: replica name -> its result.
    workdir: folder of the run.

  Returns:
    Replica name -> folder of its expert.
  """
  folders = {}
  for index, replica in enumerate(stage.experiment.replicas):
    own = lambda tree, index=index: join(jax.tree.map(lambda a: np.asarray(a[index]), tree))
    spec = stage.specs[replica.name]
    folder = expert_folder(workdir, replica.name)
    save_expert(folder, own(tuned), own(constants), ExpertCard(
        name=replica.name, method=stage.method.name, plan=plan_as_json(stage.method.plan),
        backbone_id=stage.backbone.name, backbone_hash=stage.backbone.hash, task=spec.task,
        metrics=results[replica.name]['final_metrics'],
        extra={'options': stage.config.method.to_dict(), 'seed': spec.seed,
               'config': stage.config.to_dict(),
               'sources': [{'task': name, 'folder': f'../../sources/{pathlib.Path(path).name}'}
                           for name, path in _sources(stage)]}))
    folders[replica.name] = folder
  return folders


def _sources(stage: Stage) -> list[tuple[str, str]]:
  if stage.sources is None:
    return []
  return list(zip(stage.sources.names, stage.config.sources, strict=True))
