"""Results of few-shot tuning: one table per task and sample, their summary, the relative gain.

A folder of a task holds `result.csv`: one row for each prefix (sample), rate and batch size, scores
as fractions; the row of the best one of a sample has the prefix `<prefix>_best`. Folders may be
called `singletask-<task>`. The forms are those of CrossFit (Ye et al. 2021, arXiv 2104.08835) and
of task-level mixtures of experts (Ye et al. 2022, arXiv 2205.12701).
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import pandas as pd

from pemt_jax.errors import UserError

RESULT = 'result.csv'
COLUMNS = ('prefix', 'lr', 'bsz', 'dev_performance', 'test_performance')
BEST = '_best'
MEAN, SPREAD = 'mean', 'std'
_FOLDER = 'singletask-'
_DEV, _TEST = COLUMNS[3:]


def result_table(rows: Sequence[Sequence[object]]) -> pd.DataFrame:
  """Returns the table of a task with a best row behind the rows of each sample.

  Args:
    rows: values of `COLUMNS`, sample by sample; dev scores may be NaN.
  """
  table = pd.DataFrame(rows, columns=list(COLUMNS))
  parts = []
  for _, own in table.groupby('prefix', sort=False):
    chosen = own[_DEV].fillna(-1.0).to_numpy().argmax()  # The first one of equals.
    best = own.iloc[[chosen]].assign(prefix=lambda row: row['prefix'] + BEST)
    parts += [own, best]
  return pd.concat(parts, ignore_index=True) if parts else table


def best_rows(table: pd.DataFrame) -> pd.DataFrame:
  """Returns the best row of each sample, under the sample's prefix."""
  best = table[table['prefix'].str.endswith(BEST)]
  return best.assign(prefix=best['prefix'].str.removesuffix(BEST))


def summary_of(results: dict[str, pd.DataFrame]) -> pd.DataFrame:
  """Returns best rows of all tasks; behind each task its mean, its spread and an empty row.

  Args:
    results: task -> its table.

  Returns:
    Columns task, entry, dev_performance, test_performance; `std` is that of a population.
  """
  rows: list[list[object]] = []
  for task, table in results.items():
    best = best_rows(table)
    rows += [[task, *row] for row in best[['prefix', _DEV, _TEST]].itertuples(index=False)]
    scores = best[[_DEV, _TEST]].to_numpy(float)
    rows += [[task, MEAN, *scores.mean(0).tolist()], [task, SPREAD, *scores.std(0).tolist()],
             [None] * 4]
  return pd.DataFrame(rows, columns=['task', 'entry', _DEV, _TEST])


def read_results(folder: str | pathlib.Path) -> dict[str, pd.DataFrame]:
  """Reads the tables of all tasks below a folder: task -> table, in sorted order of the folders.

  Raises:
    UserError: no table there, or one with other columns.
  """
  found = {}
  for path in sorted(pathlib.Path(folder).glob(f'*/{RESULT}')):
    table = pd.read_csv(path)
    if tuple(table.columns) != COLUMNS:
      raise UserError(f"'{path}' has the columns {', '.join(map(str, table.columns))}; it needs "
                      f"{', '.join(COLUMNS)}.")
    found[path.parent.name.removeprefix(_FOLDER)] = table
  if not found:
    raise UserError(f"there is no <task>/{RESULT} below '{folder}'; give the folder of a few-shot "
                    'run.')
  return found


def read_summary(path: str | pathlib.Path) -> pd.DataFrame:
  """Reads a summary.

  Raises:
    UserError: no such file, or no summary.
  """
  if not pathlib.Path(path).is_file():
    raise UserError(f"there is no summary '{path}'; write one with launch/collect.py --few_shot.")
  table = pd.read_csv(path)
  if not {'task', 'entry', _TEST} <= set(table.columns):
    raise UserError(f"'{path}' has no columns task, entry and {_TEST}; give a summary of few-shot "
                    'runs.')
  return table


def relative_gain(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, float]:
  """Compares two summaries on the tasks that both have.

  Args:
    first: what the gain is relative to.
    second: what gains.

  Returns:
    Columns task, test_performance_1, test_performance_2, diff, rg = diff / test_performance_1; and
    the average relative gain (ARG), a fraction. Behind a first score of 0 the gain is undefined and
    does not enter the average.

  Raises:
    UserError: they share no task.
  """
  means = [table[table['entry'] == MEAN][['task', _TEST]] for table in (first, second)]
  both = means[0].merge(means[1], on='task', suffixes=('_1', '_2'))
  if both.empty:
    raise UserError('the summaries share no task; give those of runs on the same tasks.')
  both['diff'] = both[f'{_TEST}_2'] - both[f'{_TEST}_1']
  reference = both[f'{_TEST}_1']
  both['rg'] = both['diff'] / reference.where(reference != 0)
  return both, float(both['rg'].mean())


def write_summary(folder: str | pathlib.Path, output: str | pathlib.Path,
                  reference: str | pathlib.Path | None = None) -> str:
  """Writes summary.csv of the runs below a folder, and comparison.csv with a reference.

  Args:
    folder: see `read_results`.
    output: folder, made where it is not there.
    reference: folder of few-shot runs, or a summary, that the gain is relative to.

  Returns:
    What it found, as a Markdown table of means over samples and the average relative gain.

  Raises:
    UserError: see `read_results`, `read_summary` and `relative_gain`.
  """
  summary, output = summary_of(read_results(folder)), pathlib.Path(output)
  compared, gain = None, 0.0
  if reference is not None:
    place = pathlib.Path(reference)
    other = summary_of(read_results(place)) if place.is_dir() else read_summary(place)
    compared, gain = relative_gain(other, summary)
  output.mkdir(parents=True, exist_ok=True)
  summary.to_csv(output / 'summary.csv')
  lines = ['| task | dev | test | spread of test |', '|---|---|---|---|']
  for task, own in summary.dropna(subset=['task']).groupby('task', sort=False):
    mean, spread = (own[own['entry'] == entry].iloc[0] for entry in (MEAN, SPREAD))
    lines.append(f'| {task} | {mean[_DEV]:.4f} | {mean[_TEST]:.4f} | {spread[_TEST]:.4f} |')
  if compared is not None:
    compared.to_csv(output / 'comparison.csv')
    count = int(compared['rg'].notna().sum())
    lines += ['', f'Average relative gain over {count} tasks: {100.0 * gain:+.2f} %']
  text = '\n'.join(lines) + '\n'
  (output / 'summary.md').write_text(text, encoding='utf-8')
  return text
