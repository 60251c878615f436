"""The report: self-contained, complete, and honest about what is missing."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.reports import files, html


@pytest.fixture
def run(workdir):
  """A workdir with a complete second stage and a first stage that has just begun."""
  first, second = workdir / 'stage1', workdir / 'stage2'
  first.mkdir()
  second.mkdir()
  (first / 'metrics.jsonl').write_text('')
  records = [{'task': 'cb', 'method': method, 'metric': 'accuracy', 'replica': str(seed),
              'value': 70.0 + 10 * seed} for method in ('pemt', '<prompt>') for seed in (0, 1)]
  (second / 'result.json').write_text(json.dumps({
      'records': records, 'replicas': {'cb-0': {'best_step': 7, 'test': {'loss': 0.25}}},
      'seconds': 12.5}))
  (second / 'metrics.jsonl').write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "loss": 0.5}\n')
  (second / 'config.json').write_text('{"seed": 42}')
  (second / 'environment.json').write_text('{"jax": "0.10"}')
  gates = files.Gates(('mnli', 'qqp'), ('cb',), {'encoder': np.full((1, 2, 2), 0.5)})
  files.save_gates(second / 'gates.npz', gates, ['cb-0'])
  files.save_correlation(second / 'correlation.npz',
                         files.Correlation(('cb',), ('mnli', 'qqp'), np.ones((1, 2))))
  return workdir


def test_report_holds_every_part_and_needs_nothing_beside_it(run):
  path = html.write_report(run)
  text = path.read_text()
  assert path == run / 'report' / 'index.html'
  for part in ('75.00 ± 7.07', '&lt;prompt&gt;', 'best_step', '12.5', '&#34;seed&#34;: 42',
               '&#34;jax&#34;: &#34;0.10&#34;'):
    assert part in text, part
  assert text.count('src="data:image/png;base64,') == 4
  assert not re.search(r'(?:src|href)="(?!data:|#)', text)
  assert '<prompt>' not in text
  assert sorted(p.name for p in path.parent.iterdir()) == ['index.html', 'tables.json', 'tables.md']


def test_missing_parts_are_named(run):
  text = html.write_report(run).read_text()
  first, second = text.split('id="stage-2"')
  for part in ('result.json', 'config.json', 'environment.json', 'gates.npz', 'correlation.npz'):
    assert f'<li>{part}: ' in first
  assert '<li>metrics.jsonl: holds no number yet' in first
  assert '<li>' not in second


def test_tables_are_written_as_markdown_and_json(run):
  folder = html.write_report(run).parent
  assert (folder / 'tables.md').read_text().startswith(
      '## stage2: accuracy\n\n| task |         pemt |     <prompt> |\n')
  stages = [table['stage'] for table in json.loads((folder / 'tables.json').read_text())]
  assert stages == ['stage2'] * 3


def test_numbers_of_replicas_are_grouped_by_inner_object():
  plain, test = html.result_tables({'replicas': {
      'a': {'best_step': 7, 'done': True, 'test': {'f1': 0.5}}, 'b': {'best_step': 8}}})
  assert (plain.title, plain.rows, plain.columns) == ('replicas', ('a', 'b'), ('best_step',))
  assert (test.title, test.rows, test.columns) == ('test', ('a',), ('f1',))


def test_replicas_that_differ_by_their_seed_share_a_row():
  table, = html.result_tables({'replicas': {'cb-seed0': {'f1': 0.5}, 'cb-seed1': {'f1': 0.7}}})
  assert table.rows == ('cb',)
  assert (table.cells['cb', 'f1'].mean, table.cells['cb', 'f1'].count) == (pytest.approx(0.6), 2)


def test_a_second_report_replaces_the_first(run):
  html.write_report(run)
  (run / 'stage2' / 'result.json').write_text('{"seconds": 99.5}')
  text = html.write_report(run).read_text()
  assert '99.5' in text and '75.00' not in text


@pytest.mark.parametrize('result', [{'records': [{'task': 'cb'}]}, {'records': 3},
                                    {'replicas': {'a': 1}}, {'replicas': []}])
def test_result_of_another_form_is_named(result):
  with pytest.raises(UserError, match=r"^File result\.json of stage 's' does not have the form"):
    html.result_tables(result, 's')


def test_script_prints_the_path_and_names_a_missing_folder(run, run_python):
  done = run_python('launch/report.py', f'--workdir={run}')
  assert (done.returncode, done.stdout) == (0, f'Report: {run}/report/index.html\n'), done.stderr
  wrong = run_python('launch/report.py', f'--workdir={run}/none')
  assert (wrong.returncode, wrong.stdout, wrong.stderr) == (
      2, '', f"Folder '{run}/none' given by --workdir does not exist; give the folder of a run.\n")
