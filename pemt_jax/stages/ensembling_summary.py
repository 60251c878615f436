"""Tables, plots and JSON of a weight-ensembling run."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pemt_jax.experts import tree_files
from pemt_jax.experts.merging.weights import leave_one_out
from pemt_jax.experts.similarity import METRICS
from pemt_jax.reports import transfer
from pemt_jax.stages.ensembling import EnsemblingResult, Scores


def write(result: EnsemblingResult, workdir: pathlib.Path) -> None:
  """Writes result.json (for the report) and ensembling.json below the workdir."""
  ranks = [rank_row(result, name) for name in result.config.metrics]
  records = [
      {'task': task, 'method': start, 'value': float(value), 'metric': f'test score, {protocol}',
       'replica': f'{task}-seed{one.seed}'}
      for one in result.seeds for (protocol, start), row in one.scores.items()
      for task, value in zip(one.targets, row, strict=True)]
  tree_files.write_json(workdir / 'result.json', {
      'records': records, 'tables': [_rank_table(ranks)], 'figures': [],
      'seconds': result.seconds})
  tree_files.write_json(workdir / 'ensembling.json', {
      'metrics': ranks, 'records': records, 'seconds': result.seconds,
      'similarity': [{'seed': one.seed, 'targets': one.targets, 'sources': one.sources,
                      'gain': one.gain.tolist(),
                      **{name: table.tolist() for name, table in one.similarity.items()}}
                     for one in result.seeds]})


def rank_row(result: EnsemblingResult, metric: str) -> dict[str, Any]:
  """How well a metric finds related sources and predicts gains, over seeds and targets.

  Returns:
    `first`: share of pairs (target, seed) whose most similar source is one that the target needs;
    `reciprocal_rank`: mean of 1 / rank of the best such source; None where no relation is known.
    `by_target`: the share by target. `spearman`, `best_found` and `regret` as in
    `reports.transfer.Agreement`, means over seeds.
  """
  ranks: dict[str, list[int]] = {}
  for one in result.seeds:
    for task, rank in _true_ranks(result, one, metric):
      ranks.setdefault(task, []).append(rank)
  flat = np.array([rank for found in ranks.values() for rank in found], float)
  agreements = [transfer.agreement(one.similarity[metric], one.gain, METRICS[metric].sign,
                                   leave_one_out(one.targets, one.sources))
                for one in result.seeds]
  mean = lambda field: float(np.mean([getattr(found, field) for found in agreements]))
  return {
      'metric': metric, 'pairs': len(flat),
      'first': float(np.mean(flat == 1)) if len(flat) else None,
      'reciprocal_rank': float(np.mean(1 / flat)) if len(flat) else None,
      'by_target': {task: float(np.mean(np.array(found) == 1)) for task, found in ranks.items()},
      'spearman': mean('spearman'), 'best_found': mean('best_found'), 'regret': mean('regret')}


def _true_ranks(result: EnsemblingResult, one: Scores, metric: str) -> list[tuple[str, int]]:
  """(target, rank of the best source that it needs) for targets of known relations."""
  found = []
  for task, row in zip(one.targets, one.similarity[metric], strict=True):
    needed = dict(result.config.relations.get(task, {}))
    others = [i for i, source in enumerate(one.sources) if source != task]
    order = sorted(others, key=lambda i, row=row: -METRICS[metric].sign * row[i])
    places = [order.index(i) + 1 for i in others if one.sources[i] in needed]
    if places:
      found.append((task, min(places)))
  return found


def _rank_table(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Table of metrics as the report shows it."""
  targets = list(dict.fromkeys(task for row in ranks for task in row['by_target']))
  short = [task.rpartition('/')[2] for task in targets]
  lines = []
  for row in ranks:
    share = lambda value: '-' if value is None else f'{100 * value:.0f} %'
    cells = {name: share(row['by_target'].get(task))
             for name, task in zip(short, targets, strict=True)}
    cells |= {'first': share(row['first']), 'Spearman': f"{row['spearman']:.2f}",
              'best found': share(row['best_found']), 'regret': f"{row['regret']:.1f}"}
    lines.append({'name': row['metric'], 'cells': cells})
  return {'title': 'Do similarities find related sources and predict gains?', 'corner': 'metric',
          'columns': [*short, 'first', 'Spearman', 'best found', 'regret'], 'rows': lines,
          'caption': 'By target and over all ("first"): share of seeds in which the most similar '
          'source is one that the target needs. Spearman, best found and regret compare similarity '
          'with the gain of tuning from each source over tuning from random values.'}
