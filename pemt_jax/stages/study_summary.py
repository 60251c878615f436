"""Tables, plots and JSON of a study."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pemt_jax.experts import tree_files
from pemt_jax.reports import intervals, significance
from pemt_jax.stages.study import Outcome, StudyResult
from pemt_jax.stages.study_config import base_task, ordered

Values = dict[tuple[str, str, str], dict[int, float]]   # condition, column, task -> seed -> value


def write(result: StudyResult, workdir: pathlib.Path) -> None:
  """Writes result.json (records, tables, figures), study.json and plots/ below the workdir."""
  (workdir / 'plots').mkdir(exist_ok=True)
  gains, found = gain_rows(result), gate_rows(result)
  figures = _figures(result, gains, workdir)
  several = len(result.config.order) > 1
  records = [{'task': one.task, 'method': one.column, 'value': one.value,
              'metric': f'test score, {one.condition}' if several else 'test score',
              'replica': f'{base_task(one.task)}-seed{one.seed}'} for one in result.outcomes]
  tree_files.write_json(workdir / 'result.json', {
      'records': records, 'tables': [_gain_table(gains), *_gate_tables(found)],
      'figures': figures, 'seconds': result.seconds})
  tree_files.write_json(workdir / 'study.json', {
      'gains': gains, 'gates': found,
      'skill_by_layer': {stack: list(map(float, lost)) for stack, lost in result.skill.items()},
      'rates': _rates(result.outcomes), 'seconds': result.seconds})


def values_of(outcomes: Iterable[Outcome]) -> Values:
  """Test scores by condition, column and task."""
  found: Values = {}
  for one in outcomes:
    found.setdefault((one.condition, one.column, one.task), {})[one.seed] = one.value
  return found


def gain_rows(result: StudyResult) -> list[dict[str, Any]]:
  """The reference column against the other column with the best mean test score, by target.

  Columns with a bank that is not 'trained' or with another's rates are controls and no rivals. The
  difference is paired over seeds; the interval is that of Student's t at 95 %.
  """
  config, rows, values = result.config, [], values_of(result.outcomes)
  controls = {name for name, column in config.columns.items()
              if column.rates_of or column.bank != 'trained'}
  for (condition, column, task), own in values.items():
    if column != config.reference:
      continue
    rivals = {other: found for (where, other, what), found in values.items()
              if (where, what) == (condition, task) and other not in {column, *controls}}
    shots = config.conditions[condition].few_shot
    against = {other: found for (where, other, what), found in values.items()
               if other in controls and what == task and config.conditions[where].few_shot == shots}
    if rivals:
      best = max(rivals, key=lambda name, rivals=rivals: statistics.fmean(rivals[name].values()))
      against = {best: rivals[best], **against}
    rows += [_gain_row(condition, task, own, (other, found), other in controls)
             for other, found in against.items()]
  return rows


def _gain_row(condition: str, task: str, own: Mapping[int, float],
              other: tuple[str, Mapping[int, float]], control: bool) -> dict[str, Any]:
  """One comparison; None where fewer than three seeds give no interval."""
  name, values = other
  found = significance.paired(own, values)
  low, high = (found and found.interval) or (None, None)
  return {'condition': condition, 'task': task, 'reference': statistics.fmean(own.values()),
          'other': name, 'control': control, 'other_mean': statistics.fmean(values.values()),
          'difference': found.difference if found else None, 'low': low, 'high': high,
          'seeds': found.count if found else 0}


def gate_rows(result: StudyResult) -> list[dict[str, Any]]:
  """Mean gates of each column with a mixture, by target, and how often the true sources lead.

  Two means over layers: plain, and weighted by `skill_by_layer` (negative losses count as 0),
  since a gate says nothing about skills in a layer that holds none.
  """
  groups: dict[tuple[str, str, str], list[Outcome]] = {}
  for one in filter(lambda one: one.gates, result.outcomes):
    groups.setdefault((one.condition, one.column, one.task), []).append(one)
  rows = []
  for (condition, column, task), own in groups.items():
    truth = dict(result.config.relations.get(base_task(task), {}))
    for kind in ('plain', 'weighted') if result.skill else ('plain',):
      means = np.stack([_mean_gate(one.gates, result.skill if kind == 'weighted' else None)
                        for one in own])
      sources = own[0].sources
      lead = [{sources[i] for i in np.argsort(-row)[:len(truth)]} == set(truth) for row in means]
      rows.append({
          'condition': condition, 'column': column, 'task': task, 'mean_over_layers': kind,
          'sources': list(sources), 'mean': means.mean(0).tolist(),
          'largest': float(means.max(1).mean()), 'true_sources': truth, 'seeds': len(own),
          'true_lead': float(np.mean(lead)) if truth and set(truth) <= set(sources) else None})
  return rows


def _mean_gate(gates: Mapping[str, np.ndarray],
               skill: Mapping[str, np.ndarray] | None) -> np.ndarray:
  """[source] mean over the layers of both stacks."""
  stacked = np.concatenate([gates[stack] for stack in gates])
  weight = np.ones(len(stacked))
  if skill is not None:
    weight = np.maximum(np.concatenate([skill[stack] for stack in gates]), 0.0)
  return weight @ stacked / max(weight.sum(), 1e-9)


def _rates(outcomes: Sequence[Outcome]) -> dict[str, float]:
  return {f'{one.column}/{base_task(one.task)}': one.rate for one in outcomes
          if one.rate is not None}


def _gain_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Table of differences as the report shows it."""
  lines = []
  for row in rows:
    interval = '-' if row['low'] is None else f"{row['low']:+.1f} to {row['high']:+.1f}"
    lines.append({'name': f"{row['condition']}: {row['task']}", 'cells': {
        'against': row['other'] + (' (control)' if row['control'] else ''),
        'own score': f"{row['reference']:.1f}", 'its score': f"{row['other_mean']:.1f}",
        'difference': '-' if row['difference'] is None else f"{row['difference']:+.1f}",
        '95 % interval': interval}})
  return {'title': 'Difference to the best other column and to the controls', 'corner': 'target',
          'columns': ['against', 'own score', 'its score', 'difference', '95 % interval'],
          'rows': lines, 'caption': 'Test scores, paired over seeds. The best other column is the '
          'one with the highest mean test score.'}


def _gate_tables(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """One table per way of averaging over layers."""
  tables = []
  for kind in dict.fromkeys(row['mean_over_layers'] for row in rows):
    own = [row for row in rows if row['mean_over_layers'] == kind]
    names = list(dict.fromkeys(name for row in own for name in row['sources']))
    lines = []
    for row in own:
      gates = dict(zip(row['sources'], row['mean'], strict=True))
      cells = {_short(name): f'{gates[name]:.2f}' for name in names if name in gates}
      cells['true lead'] = '-' if row['true_lead'] is None else f"{100 * row['true_lead']:.0f} %"
      lines.append({'name': f"{row['condition']}, {row['column']}: {row['task']}", 'cells': cells})
    tables.append({'title': f'Mean gates ({kind} mean over layers)', 'corner': 'target',
                   'columns': [*map(_short, names), 'true lead'], 'rows': lines,
                   'caption': 'Mean over layers, test rows and seeds; "true lead" is the share of '
                   'seeds in which the sources that the target needs have the largest gates.'})
  return tables


def _short(name: str) -> str:
  return name.rpartition('/')[2]


def _figures(result: StudyResult, gains: Sequence[Mapping[str, Any]],
             workdir: pathlib.Path) -> list[dict[str, str]]:
  """Writes the plots; returns their files and titles."""
  figures = []
  for condition in ordered(result.config):
    own = {key[1:]: tuple(found.values()) for key, found in values_of(result.outcomes).items()
           if key[0] == condition}
    file = f'plots/scores_{condition}.png'
    intervals.save_bars(own, workdir / file, 'test score')
    figures.append({'file': file, 'title': f'Test scores, {condition}: mean and 95 % interval'})
  with_interval = [row for row in gains if row['low'] is not None]
  if with_interval:
    intervals.save_intervals(
        {f"{row['condition']}: {_short(row['task'])} − {row['other']}":
         (row['difference'], row['low'], row['high']) for row in with_interval},
        workdir / 'plots/gains.png', f'difference of {result.config.reference} in points')
    figures.append({'file': 'plots/gains.png', 'title': 'Differences and their 95 % intervals'})
  return figures
