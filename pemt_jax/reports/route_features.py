"""What routes go with: correlation with features of tasks, and drops without some experts."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pemt_jax.reports import views

COLUMNS = ('layer', 'expert', 'feature', 'tasks', 'r', 'p', 'q')
ALL = 'all'
_LEVEL = 0.05


def correlations(weights: np.ndarray, layers: Sequence[str], features: np.ndarray,
                 names: Sequence[str]) -> pd.DataFrame:
  """Pearson's correlation of each expert's route with each feature, over the tasks.

  Args:
    weights: routes [task, layer, expert] of at least two tasks.
    layers: [layer] names.
    features: [task, feature] booleans.
    names: [feature].

  Returns:
    `COLUMNS`, the strongest first: number of tasks that have the feature, r, its two-sided p, and
    q, which is p corrected for the false discovery rate (Benjamini and Hochberg) over the whole
    table. NaN where all tasks have the same route or the same feature.
  """
  from scipy import stats

  count, depth, experts = weights.shape
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', stats.ConstantInputWarning)
    found = stats.pearsonr(weights.reshape(count, -1, 1).astype(np.float64),
                           features[:, None].astype(np.float64), axis=0)
  rows = itertools.product(layers, range(experts), zip(names, features.sum(axis=0), strict=True))
  table = pd.DataFrame([[*row[:2], *row[2]] for row in rows], columns=list(COLUMNS[:4]))
  table['r'], table['p'] = found.statistic.ravel(), found.pvalue.ravel()
  known = table['p'].notna()
  table['q'] = np.nan
  if known.any():
    table.loc[known, 'q'] = stats.false_discovery_control(table.loc[known, 'p'])
  return table.sort_values('r', key=np.abs, ascending=False, na_position='last', kind='stable',
                           ignore_index=True)


def correlation_view(table: pd.DataFrame, rows: int = 40) -> views.View:
  """The strongest of `correlations` as a table of text."""
  texts = [[f'{row.layer}/{row.expert}', row.feature, str(row.tasks), f'{row.r:+.2f}',
            f'{row.p:.2g}', f'{row.q:.2g}'] for row in table.dropna().head(rows).itertuples()]
  below = int((table['q'] < _LEVEL).sum())
  caption = (f'Pearson correlation of the route with the feature over tasks; {below} of'
             f' {len(table)} pairs have q < {_LEVEL} (p corrected for the false discovery rate).')
  return views.plain_view(('expert', 'feature', 'tasks', 'r', 'p', 'q'), texts, caption)


def correlation_matrix(table: pd.DataFrame) -> pd.DataFrame:
  """r of `correlations`: features in rows, experts in the order of layers in columns."""
  own = table.assign(name=table['layer'] + '/' + table['expert'].astype(str))
  return own.pivot(index='feature', columns='name', values='r')


def drops(scores: Mapping[str, Mapping[str, float]], full: str,
          categories: Mapping[str, str], lower: bool = False) -> pd.DataFrame:
  """What tasks and categories of tasks lose without some experts.

  Args:
    scores: setting -> task -> score; NaN where it is not defined.
    full: the setting with all experts.
    categories: of the tasks.
    lower: whether lower scores are better.

  Returns:
    One row for each other setting; columns are `ALL`, the categories, then the tasks. The first two
    are means over the tasks whose scores are defined.
  """
  table = pd.DataFrame(scores).T
  lost = (table.loc[full] - table.drop(index=full)) * (-1 if lower else 1)
  means = {ALL: lost.mean(axis=1)}
  for category in sorted(set(categories.values())):
    own = [task for task in lost.columns if categories[task] == category]
    means[f'category {category}'] = lost[own].mean(axis=1)
  return pd.concat([pd.DataFrame(means), lost], axis=1)


def drop_view(table: pd.DataFrame, categories: int, metric: str) -> views.View:
  """Drops of all tasks and of categories as a table of text, the largest first.

  Args:
    table: of `drops`.
    categories: their number.
    metric: that gets worse.
  """
  own = table.iloc[:, :1 + categories].sort_values(ALL, ascending=False, kind='stable')
  rows = [[name, *(views.tables.MISSING if np.isnan(value) else f'{value:+.2f}' for value in row)]
          for name, row in zip(own.index, own.to_numpy(), strict=True)]
  head = [str(name).removeprefix('category ') for name in own.columns]
  return views.plain_view(('without', *head), rows,
                          f'By how much {metric} is worse without these experts, mean over tasks.')
