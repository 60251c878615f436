"""Scores of many runs put together, and their tables as LaTeX."""

from __future__ import annotations

import json

import pytest

from pemt_jax.errors import UserError
from pemt_jax.reports import collect, latex, tables
from pemt_jax.reports.tables import Cell, Record

# Published single-task results: the mean over the eleven values of GLUE is 86.6 and 84.53.
TASKS = {'cola': ('matthews_correlation',), 'sst2': ('accuracy',), 'mrpc': ('accuracy', 'f1'),
         'qqp': ('accuracy', 'f1'), 'stsb': ('pearson', 'spearmanr'), 'mnli': ('accuracy',),
         'qnli': ('accuracy',), 'rte': ('accuracy',)}
PUBLISHED = {
    'adapter': (65.43, 94.15, 88.24, 91.41, 89.40, 86.04, 91.34, 90.95, 86.53, 92.58, 76.50),
    'lora': (61.81, 94.00, 87.42, 91.00, 88.85, 85.22, 90.48, 90.47, 85.73, 91.05, 63.79)}


@pytest.fixture
def published(tmp_path):
  """Three seeds of two methods, one point apart."""
  for sign, (method, values) in zip((1, -1), PUBLISHED.items(), strict=True):
    remaining = iter(values)
    means = {task: {metric: next(remaining) for metric in metrics}
             for task, metrics in TASKS.items()}
    for seed in (42, 43, 44):
      for task, found in means.items():
        folder = tmp_path / task / method / f'share_and_mask.sd_{seed}.arf_12'
        folder.mkdir(parents=True)
        entries = {f'eval_{name}': (value + sign * (seed - 43)) / 100
                   for name, value in found.items()}
        entries |= {'eval_loss': 0.5, 'eval_combined_score': 0.9, 'epoch': 20.0}
        (folder / 'test_results.json').write_text(json.dumps(entries))
  return tmp_path


def test_published_means_follow_from_the_files_of_each_seed(published, tmp_path):
  first, *others = collect.write_tables(published, tmp_path / 'out')
  assert len(first.rows) == 12 and first.columns == (
      'adapter/share_and_mask.arf_12', 'lora/share_and_mask.arf_12')
  for column, mean in zip(first.columns, (86.6, 84.53), strict=True):
    cell = first.cells['mean', column]
    assert round(cell.mean, 1 if mean == 86.6 else 2) == mean
    assert (cell.spread, cell.count) == (pytest.approx(1.0), 3)
  assert {table.title for table in others} == set(collect.GLUE_METRICS)
  written = json.loads((tmp_path / 'out' / 'tables.json').read_text())
  assert [table['title'] for table in written] == [table.title for table in (first, *others)]
  assert '| cola matthews_correlation |' in (tmp_path / 'out' / 'tables.md').read_text()


@pytest.mark.parametrize('name, parts', [
    ('lora-seed2', ('lora', 'seed2')), ('a/seed_7', ('a', 'seed7')), ('sd_42.r8', ('r8', 'seed42')),
    ('x.sd_42.r8', ('x.r8', 'seed42')), ('seed3', ('seed3', 'seed3')),
    ('seedless', ('seedless', ''))])
def test_seeds_in_names(name, parts):
  assert collect.without_seed(name) == parts


def _run(folder, **result):
  folder.mkdir(parents=True)
  (folder / 'result.json').write_text(json.dumps(result))


def test_runs_and_replicas_of_other_seeds_are_repetitions(tmp_path):
  for seed, values in ((1, (50.0, 60.0)), (2, (52.0, 66.0))):
    metrics = {'average_metrics': sum(values) / 2,
               'propetl/rte/accuracy': values[0], 'propetl/sst2/accuracy': values[1]}
    _run(tmp_path / f'mixed-seed{seed}', replicas={'mixture': {'final_metrics': metrics}})
  _run(tmp_path / 'lora', replicas={f'propetl-rte-seed{seed}': {
      'final_metrics': {'accuracy': 40.0 + seed}} for seed in (1, 2)})
  first, *_ = collect.write_tables(tmp_path, tmp_path / 'out')
  assert first.columns == ('lora', 'mixed')
  assert first.cells['propetl-sst2 accuracy', 'mixed'].mean == 63.0
  assert first.cells['mean', 'mixed'] == tables.cell_of([55.0, 59.0])
  assert first.cells['propetl-rte accuracy', 'lora'].count == 2


def test_written_records_keep_their_methods(tmp_path):
  rows = [{'task': 'rte', 'method': method, 'value': 1.0, 'metric': 'accuracy', 'replica': 'seed1'}
          for method in ('a', 'b')]
  _run(tmp_path / 'study', records=rows)
  assert [record.method for record in collect.collect(tmp_path)] == ['study: a', 'study: b']


def test_mistakes_are_one_sentence(tmp_path):
  with pytest.raises(UserError, match='given by --runs does not exist'):
    collect.collect(tmp_path / 'none')
  (tmp_path / 'test_results.json').write_text('{}')
  with pytest.raises(UserError, match='does not lie in <task>/<experiment>/'):
    collect.collect(tmp_path)
  _run(tmp_path / 'other' / 'run', replicas={})
  with pytest.raises(UserError, match='have no scores yet'):
    collect.collect(tmp_path / 'other')


def test_latex_shows_spread_as_index_and_the_best_in_bold():
  table, = tables.tables_of([
      Record('r_te', 'a', 60.0, 'accuracy', 's1'), Record('r_te', 'a', 62.0, 'accuracy', 's2'),
      Record('r_te', 'b & c', 51.0, 'accuracy', 's1'), Record('cb', 'a', 5.0, 'accuracy', 's1')],
      mean_row='')
  assert latex.to_latex(table) == (
      '\\begin{tabular}{lrr}\n\\toprule\n'
      'task & a & b \\& c \\\\\n\\midrule\n'
      'r\\_te & $\\mathbf{61.00_{\\pm 1.41}}$ & $51.00$ \\\\\n'
      'cb & $5.00$ & -- \\\\\n\\bottomrule\n\\end{tabular}\n')
  assert latex.to_latex(table, marked=False, flipped=True) == (
      '\\begin{tabular}{lrr}\n\\toprule\n'
      ' & r\\_te & cb \\\\\n\\midrule\n'
      'a & $61.00_{\\pm 1.41}$ & $5.00$ \\\\\n'
      'b \\& c & $51.00$ & -- \\\\\n\\bottomrule\n\\end{tabular}\n')


def test_latex_writes_special_characters_out():
  assert latex.escaped('a_b ^~ 50% {x} \\ #$&±') == (
      r'a\_b \textasciicircum{}\textasciitilde{} 50\% \{x\} \textbackslash{} \#\$\&$\pm$')
  table = tables.Table('t', ('a',), ('m',), {('a', 'm'): Cell(float('nan'), None, 1)})
  assert '$\\mathrm{nan}$' in latex.to_latex(table)
