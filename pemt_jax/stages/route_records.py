"""Routes of tasks as files: at every evaluation of a run, and of its best step."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pemt_jax.data.task_features import ontology
from pemt_jax.experts import route_maps
from pemt_jax.experts.layer_experts import LayerExperts
from pemt_jax.experts.tree_files import write_npz
from pemt_jax.methods.base import Method
from pemt_jax.models.sites import Rule
from pemt_jax.reports.route_files import ROUTE_STEPS, ROUTES
from pemt_jax.sharding import processes
from pemt_jax.sharding.placement import fetch
from pemt_jax.stages.rows import ReplicaSpec
from pemt_jax.trees import Tree, flatten


def route_rule(method: Method) -> Rule | None:
  """The rule of layer experts whose routes are a property of tasks, or None."""
  known = (*route_maps.LEARNT, *route_maps.FIXED)
  return next((rule for rule in method.plan.rules
               if isinstance(rule.delta, LayerExperts) and rule.delta.source in known), None)


def route_arrays(rule: Rule, specs: Mapping[str, ReplicaSpec], trees: tuple[Tree, Tree, Tree],
                 names: Sequence[str]) -> dict[str, np.ndarray]:
  """What a file of routes holds, see `reports.files`.

  Args:
    rule: of `route_rule`.
    specs: replica name -> what it trains on.
    trees: (tuned, frozen, constants); the first and the last have a leading [replica] axis.
    names: [replica].
  """
  place = f'deltas/{rule.name}/'
  own = lambda tree: fetch({path.removeprefix(place): leaf for path, leaf in flatten(tree).items()
                            if path.startswith(place)})
  tuned, frozen, constants = map(own, trees)
  delta, columns = rule.delta, {name: [] for name in (
      'replicas', 'tasks', 'categories', 'groups', 'routes', 'routes_t1', 'temperatures')}
  for index, name in enumerate(names):
    at = lambda tree, index=index: {key: leaf[index] for key, leaf in tree.items()}
    model, tasks = frozen | at(tuned) | at(constants), specs[name].tasks
    now, one = jax.device_get(route_maps.task_routes(delta, model, len(tasks)))
    categories, groups = zip(*map(ontology, tasks), strict=True)
    temperature = float(model.get('temperature', 1.0))
    for key, values in zip(columns, ([name] * len(tasks), tasks, categories, groups, now, one,
                                     [temperature] * len(tasks)), strict=True):
      columns[key].extend(values)
  layers = route_maps.layer_names(delta)
  chosen = None if rule.layers is None else {f'{stack}/{layer}' for stack, layer in rule.layers}
  return {name: np.array(values) for name, values in columns.items()} | {
      'layers': np.array(layers),
      'routed': np.array([chosen is None or layer in chosen for layer in layers])}


def watcher(method: Method, specs: Mapping[str, ReplicaSpec]) -> Callable[..., None] | None:
  """What `training.experiment.Experiment.watch` calls: writes `routes/<step>.npz`; or None."""
  rule = route_rule(method)
  if rule is None:
    return None

  def watch(tuned: Tree, frozen: Tree, constants: Tree, replicas: Sequence[Any], step: int,
            workdir: pathlib.Path) -> None:
    arrays = route_arrays(rule, specs, (tuned, frozen, constants), [r.name for r in replicas])
    if processes.is_first():
      write_npz(workdir / ROUTE_STEPS / f'{step}.npz', arrays)

  return watch


def write_best(method: Method, specs: Mapping[str, ReplicaSpec], trees: tuple[Tree, Tree, Tree],
               workdir: pathlib.Path) -> None:
  """Writes `routes.npz` of the best step of each replica, where tasks have routes."""
  rule = route_rule(method)
  if rule is None:
    return
  arrays = route_arrays(rule, specs, trees, list(specs))
  if processes.is_first():
    write_npz(workdir / ROUTES, arrays)
