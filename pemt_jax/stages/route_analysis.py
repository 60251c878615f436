"""The analysis of routed layers: routes of experts, their correlation with features, disabling."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd

from pemt_jax.data.task_features import feature_table, ontology
from pemt_jax.errors import UserError
from pemt_jax.evaluation.postprocess import AVERAGE
from pemt_jax.experts import route_maps, tree_files
from pemt_jax.experts.library import FOLDER
from pemt_jax.interop.files import write_text
from pemt_jax.models.sites import Rule
from pemt_jax.reports import masks, route_features, routes as pictures, views
from pemt_jax.reports.plots import short_names
from pemt_jax.reports.route_files import ROUTES, Routes, read_route_steps, read_routes
from pemt_jax.reports.tables import lower_is_better
from pemt_jax.stages.artefacts import LoadedExpert, open_expert
from pemt_jax.stages.predict import expert_folders
from pemt_jax.stages.route_records import route_arrays, route_rule
from pemt_jax.training.experiment import Replica
from pemt_jax.training.records import RESULT
from pemt_jax.trees import flatten, unflatten

FULL = 'all experts'
SCORES = 'scores.json'
_JOIN = '+'


@dataclasses.dataclass(frozen=True)
class RouteOptions:
  """How routes are analysed.

  Attributes:
    replica: of the run; '' takes the first one.
    order: of tasks in pictures, one of `reports.routes.ORDERS`.
    which: routes that are drawn and correlated, one of `reports.routes.WHICH`.
    seconds: that an animation shows each step.
    split: that experts are disabled on; its rows tell features of tasks too.
    rows: whether features are also read from rows.
    least_tasks: that must have a feature, and that must lack it.
    experts: what is disabled, see `settings_of`.
    metric: that then gets worse; the average of a task's metrics, or another name such as `loss`.
    overrides: dotted config path -> value in place of the trained config's.
  """

  replica: str = ''
  order: str = 'clusters'
  which: str = 'now'
  seconds: float = 0.2
  split: str = 'validation'
  rows: bool = True
  least_tasks: int = 1
  experts: tuple[str, ...] = ('*',)
  metric: str = AVERAGE
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def open_routed(place: pathlib.Path, options: RouteOptions) -> tuple[LoadedExpert, Rule]:
  """An expert of routed layers and the rule of its copies.

  Args:
    place: folder of an expert, or of a run with it.
    options: see `RouteOptions`.

  Raises:
    UserError: no such expert, or one whose routes are no property of tasks.
  """
  folders = expert_folders(place)
  names = [folder.name for folder in folders]
  if options.replica and options.replica not in names:
    raise UserError(f"{place} has no expert '{options.replica}', only {', '.join(names)}; correct"
                    ' --replica.')
  expert = open_expert(folders[names.index(options.replica) if options.replica else 0], None,
                       dict(options.overrides))
  rule = route_rule(expert.stage.method)
  if rule is None:
    raise UserError(f"expert '{expert.card.name}' of method '{expert.card.method}' has no routes of"
                    ' tasks; give one with routed layers.')
  return expert, rule


def _arrays(expert: LoadedExpert, rule: Rule) -> dict[str, np.ndarray]:
  trees = expert.tuned, expert.stage.start.frozen, expert.constants
  return route_arrays(rule, expert.stage.specs, trees, [expert.name])


def write_routes(place: pathlib.Path, output: pathlib.Path, options: RouteOptions) -> list[str]:
  """Writes the routes of an expert: routes.npz, routes.csv and, as published, route.npy.

  `route.npy` and `route_t1.npy` are [task, layer, expert] with all layers, tasks in the order of
  the ontology, whose names `tasks.json` lists.

  Returns:
    Lines to print.
  """
  expert, rule = open_routed(place, options)
  arrays = _arrays(expert, rule)
  tree_files.write_npz(output / ROUTES, arrays)
  own = next(iter(read_routes(output / ROUTES).values()))
  order = pictures.ontology_order(own)
  for name, file in (('routes', 'route'), ('routes_t1', 'route_t1')):
    with tree_files.replacing(output / f'{file}.npy') as temporary, open(temporary, 'wb') as stream:
      np.save(stream, arrays[name][order])
  tree_files.write_json(output / 'tasks.json', [own.tasks[i] for i in order])
  index = pd.MultiIndex.from_product(
      [own.tasks, own.layers, range(own.now.shape[-1])], names=['task', 'layer', 'expert'])
  table = pd.DataFrame({'route': own.now.ravel(), 'route_t1': own.at_one.ravel()}, index)
  write_text(output / 'routes.csv', table.to_csv())
  return [f'{len(own.tasks)} tasks, {len(own.layers)} layers with {own.now.shape[-1]} experts,'
          f' temperature {own.temperature:.4g}']


def routes_of(place: pathlib.Path, options: RouteOptions,
              opened: tuple[LoadedExpert, Rule] | None = None) -> Routes:
  """Routes of the best step: those that a run has written, else those of an expert.

  Args:
    place: folder of a run, or of an expert.
    options: see `RouteOptions`; other tasks than the trained ones have routes of an expert only.
    opened: what `open_routed` gives, where that is known.

  Raises:
    UserError: see `open_routed`; no such replica.
  """
  if opened or not (place / ROUTES).is_file() or 'tasks' in options.overrides:
    arrays = _arrays(*(opened or open_routed(place, options)))
    chosen = arrays['routed'] > 0
    columns = (tuple(arrays[name].tolist()) for name in ('tasks', 'categories', 'groups'))
    return Routes(*columns, tuple(arrays['layers'][chosen].tolist()),
                  *(arrays[name][:, chosen] for name in ('routes', 'routes_t1')),
                  float(arrays['temperatures'][0]))
  return _replica(read_routes(place / ROUTES), place, options.replica)


def _replica(found: Mapping[str, Any], place: pathlib.Path, name: str) -> Any:
  if name and name not in found:
    raise UserError(f"{place} has no routes of replica '{name}', only of {', '.join(found)};"
                    ' correct --replica.')
  return found[name] if name else next(iter(found.values()))


def write_heat_map(place: pathlib.Path, output: pathlib.Path, options: RouteOptions) -> list[str]:
  """Draws the routes of the best step as routes.png and routes.svg; returns lines to print."""
  own = routes_of(place, options)
  drawn = pictures.draw_routes(own, options.order, options.which)
  write_text(output / 'routes.svg', drawn + '\n')
  _write_bytes(output / 'routes.png', pictures.routes_png(own, options.order, options.which))
  return [str(output / 'routes.png')]


def _write_bytes(path: pathlib.Path, content: bytes) -> None:
  with tree_files.replacing(path) as temporary:
    pathlib.Path(temporary).write_bytes(content)


def write_animation(place: pathlib.Path, output: pathlib.Path, options: RouteOptions) -> list[str]:
  """Draws the routes of all evaluations of a run as routes.gif; returns lines to print.

  Raises:
    UserError: the folder is no run with routes, or has no such replica.
  """
  if options.seconds <= 0:
    raise UserError(f'--seconds is {options.seconds:g}; give a time above 0.')
  found = read_route_steps([place, *sorted(place.glob('replicas/*'))])
  if not found:
    raise UserError(f'{place} has no folder routes with the routes of its evaluations; give the'
                    ' --workdir of a run that trained routed layers.')
  steps = _replica(found, place, options.replica)
  drawn = pictures.routes_gif(steps, options.order, options.which, options.seconds)
  _write_bytes(output / 'routes.gif', drawn)
  return [f"{len(steps)} steps: {output / 'routes.gif'}"]


def write_correlations(place: pathlib.Path, output: pathlib.Path,
                       options: RouteOptions) -> list[str]:
  """Correlates routes with features of tasks: correlation.csv, .json, .md and .svg, result.json.

  Returns:
    Lines to print.

  Raises:
    UserError: fewer than three tasks; see `open_routed`; rows that cannot be read.
  """
  examples, opened = None, None
  if options.rows:
    opened = open_routed(place, options)
    expert, spec = opened[0], opened[0].stage.specs[opened[0].name]
    examples = {part.task: expert.stage.store.examples(part, options.split).examples
                for part in spec.parts or (spec,)}
  own = routes_of(place, options, opened)
  if len(own.tasks) < 3:
    raise UserError(f'{place} has routes of {len(own.tasks)} tasks, whose correlation with features'
                    ' says nothing; give a run of at least three tasks.')
  names, features = feature_table(own.tasks, examples, options.least_tasks)
  weights = own.now if options.which == 'now' else own.at_one
  table = route_features.correlations(weights, own.layers, features, names)
  view = route_features.correlation_view(table)
  write_text(output / 'correlation.csv', table.to_csv(index=False))
  tree_files.write_json(output / 'correlation.json', {
      'tasks': own.tasks, 'features': {name: [own.tasks[i] for i in np.flatnonzero(column)]
                                       for name, column in zip(names, features.T, strict=True)},
      'correlations': table.replace({np.nan: None}).to_dict('records')})
  matrix = route_features.correlation_matrix(table)
  ordered = [name for name in pictures.expert_names(own) if name in matrix.columns]
  _finish(output, 'correlation', 'Routes and features of tasks', view,
          matrix[ordered])
  return [views.to_markdown(view)]


def _finish(output: pathlib.Path, stem: str, title: str, view: views.View,
            matrix: pd.DataFrame) -> None:
  """Writes a table as Markdown, its picture, and result.json for a report."""
  write_text(output / f'{stem}.md', views.to_markdown(view))
  drawn = masks.draw_matrix(matrix.to_numpy(float), list(matrix.index), list(matrix.columns), title)
  write_text(output / f'{stem}.svg', drawn + '\n')
  rows = [{'name': row[0].text, 'cells': {name: cell.text for name, cell in zip(
      view.head[1:], row[1:], strict=True)}} for row in view.rows]
  tree_files.write_json(output / RESULT, {'tables': [{
      'title': title, 'corner': view.head[0], 'columns': view.head[1:], 'caption': view.caption,
      'rows': rows}]})


def settings_of(patterns: Sequence[str], rule: Rule) -> dict[str, tuple[tuple[int, int], ...]]:
  """What is disabled together, by a name.

  Args:
    patterns: names `<stack>/<layer>/<expert>`, counted from 0, with the wild cards of `fnmatch`:
      each expert that matches is disabled alone. Names joined by `+` are disabled together.
    rule: of the copies.

  Returns:
    Name -> (layer, expert) pairs; layers count through all stacks.

  Raises:
    UserError: a pattern that no expert matches, or nothing is left of a layer.
  """
  delta = rule.delta
  known = {f'{name}/{expert}': (layer, expert)
           for layer, name in enumerate(route_maps.layer_names(delta))
           for expert in range(delta.copies) if rule.at(*_stack_and_layer(name))}
  found = {}
  for pattern in patterns:
    each = [fnmatch.filter(known, part) for part in pattern.split(_JOIN)]
    for part, names in zip(pattern.split(_JOIN), each, strict=True):
      if not names:
        raise UserError(f"--experts has '{part}', which is none of {', '.join(list(known)[:6])},"
                        ' ...; correct it.')
    if len(each) > 1:
      found[pattern] = tuple(sorted({known[name] for names in each for name in names}))
    else:
      found |= {name: (known[name],) for name in each[0]}
  for name, pairs in found.items():
    counts = np.bincount([layer for layer, _ in pairs], minlength=delta.layers)
    if counts.max() >= delta.copies:
      layer = route_maps.layer_names(delta)[int(counts.argmax())]
      raise UserError(f"--experts={name} disables all experts of layer {layer}; leave one.")
  return found


def _stack_and_layer(name: str) -> tuple[str, int]:
  stack, layer = name.split('/')
  return stack, int(layer)


def scores_without(expert: LoadedExpert, rule: Rule, pairs: tuple[tuple[int, int], ...],
                   options: RouteOptions) -> dict[str, float]:
  """Scores of the tasks of an expert with some copies disabled; all settings share a program.

  Args:
    expert: see `open_routed`.
    rule: of the copies.
    pairs: (layer, expert) of the copies.
    options: split and metric.

  Raises:
    UserError: a task does not have the metric.
  """
  flat = dict(flatten(expert.constants))
  path = f'deltas/{rule.name}/closed'
  flat[path] = jnp.maximum(flat[path], route_maps.closing(rule.delta, pairs))
  stage, replica = expert.stage, Replica(expert.name, 0, 0.0, 0, 1)
  found, = stage.evaluator(expert.tuned, stage.start.frozen, unflatten(flat), (replica,),
                           options.split)
  spec = stage.specs[expert.name]
  keys = {task: f'{task}/{options.metric}' if spec.parts else options.metric
          for task in spec.tasks}
  missing = [task for task, key in keys.items() if key not in found]
  if missing:
    raise UserError(f"task '{missing[0]}' has no metric '{options.metric}'; correct --metric.")
  return {task: float(found[key]) for task, key in keys.items()}


def write_drops(place: pathlib.Path, output: pathlib.Path, options: RouteOptions) -> list[str]:
  """Disables experts, one setting after the other: drop.csv, .md and .svg, two files of JSON.

  Scores go to `scores.json`, tables for a report to `result.json`. What `scores.json` holds of the
  same expert, split and metric is not computed again.

  Returns:
    Lines to print.

  Raises:
    UserError: routes without logits, see `settings_of`, or scores of something else in the folder.
  """
  expert, rule = open_routed(place, options)
  if rule.delta.source not in route_maps.LEARNT:
    raise UserError(f"expert '{expert.card.name}' has routes '{rule.delta.source}', of which none"
                    ' can be disabled; give an expert with a router or a table.')
  settings = {FULL: ()} | settings_of(options.experts, rule)
  folder = place if place.parent.name == FOLDER else place / FOLDER / expert.name
  about = {'expert': str(folder.resolve()), 'split': options.split, 'metric': options.metric,
           'overrides': {name: list(value) if isinstance(value, tuple) else value
                         for name, value in options.overrides.items()}}
  path = output / SCORES
  stored = tree_files.read_json(path) if path.is_file() else {**about, 'scores': {}}
  if not isinstance(stored, dict) or not isinstance(stored.get('scores'), dict):
    raise UserError(f'{path} holds no scores of routes; choose another --output.')
  if any(stored.get(name) != value for name, value in about.items()):
    raise UserError(f"{path} holds {stored.get('metric')} of {stored.get('expert')} on"
                    f" {stored.get('split')}, not what is asked for; choose another --output.")
  scores = stored['scores']
  output.mkdir(parents=True, exist_ok=True)
  for name, pairs in settings.items():
    if name not in scores:
      found = scores_without(expert, rule, pairs, options)
      scores[name] = {task: None if math.isnan(value) else value for task, value in found.items()}
      tree_files.write_json(path, {**about, 'scores': scores})
  chosen = {name: {task: math.nan if value is None else value
                   for task, value in scores[name].items()} for name in settings}
  return _write_drop_tables(output, chosen, options.metric)


def _write_drop_tables(output: pathlib.Path, scores: dict[str, dict[str, float]],
                       metric: str) -> list[str]:
  """Tables of drops by setting: categories in Markdown and the picture, tasks too in CSV."""
  categories = {task: ontology(task)[0] for task in scores[FULL]}
  table = route_features.drops(scores, FULL, categories, lower_is_better(metric))
  count = len(set(categories.values()))
  view = route_features.drop_view(table, count, metric)
  write_text(output / 'drop.csv', table.to_csv(index_label='without'))
  matrix = table.iloc[:, 1 + count:].T
  matrix.index = short_names(list(matrix.index))
  _finish(output, 'drop', 'What is lost without experts', view, matrix)
  return [views.to_markdown(view)]


WRITERS = {'routes': write_routes, 'heatmap': write_heat_map, 'animation': write_animation,
           'correlate': write_correlations, 'disable': write_drops}
