"""The report: self-contained, complete, and honest about what is missing."""

from __future__ import annotations

import dataclasses
import json
import re
from html import parser

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.reports import files, html, sections

PNG = b'\x89PNG\r\n\x1a\n and more'


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
  (second / 'metrics.jsonl').write_text('{"step": 0, "train/loss": 1.0}\n'
                                        '{"step": 1, "train/loss": 0.5, "train/rate": 0.1}\n')
  (second / 'config.json').write_text('{"seed": 42}')
  (second / 'environment.json').write_text('{"packages": {"jax": "0.10"}}')
  (second / 'times.json').write_text('{"step": 3.0, "input": 0.5}')
  (second / 'resources.json').write_text('{"seconds": 4.0, "peak_host_bytes": 2097152}')
  (second / 'parameters.json').write_text('{"frozen_parameters": 1234}')
  gates = files.Gates(('mnli', 'qqp'), ('cb',), {'encoder': np.full((1, 2, 2), 0.5)})
  files.save_gates(second / 'gates.npz', gates, ['cb-0'])
  load = dataclasses.replace(gates, sources=('expert 0', 'expert 1'))
  files.save_gates(second / 'load.npz', load, ['cb-0'])
  files.save_correlation(second / 'correlation.npz',
                         files.Correlation(('cb',), ('mnli', 'qqp'), np.ones((1, 2))))
  np.savez(second / 'masks.npz', replicas=['cb-0'], matrices=[''], layer=['encoder 1', 'encoder 2'],
           layer_overlap=np.full((1, 1, 2, 2), 0.5), layer_density=np.full((1, 1, 2), 0.5),
           joined=np.full((1, 2, 1), 0.5), joined_rows=['encoder 1', 'encoder 2'],
           joined_columns=['cb'], expected=[0.3])
  even = np.full((1, 2, 2), 0.5)
  np.savez(second / 'routes.npz', replicas=['cb-0'], tasks=['cb'], categories=['a'], groups=['b'],
           layers=['encoder/0', 'decoder/0'], routed=[True, True], routes=even, routes_t1=even,
           temperatures=[1.0])
  return workdir


def several(workdir, count=2, seeds=3):
  """Independent runs of the same task, as one would compare them by hand."""
  for index in range(count):
    folder = workdir / f'run{index}'
    folder.mkdir()
    replicas = {f'cb-seed{seed}': {'metric': 'accuracy', 'final_metrics': {
        'accuracy': 60.0 + 5 * index + seed, 'loss': 1.0}} for seed in range(seeds)}
    (folder / 'result.json').write_text(json.dumps({'replicas': replicas}))
    (folder / 'metrics.jsonl').write_text(''.join(
        json.dumps({'step': step, 'replica': name, 'train/loss': 1 / step, 'dev/accuracy': 50.0})
        + '\n' for step in (1, 2) for name in replicas))
    (folder / 'config.json').write_text(json.dumps({'seed': 1, 'train': {'rate': 0.1 * index}}))
    (folder / 'environment.json').write_text('{"devices": 1, "device_kind": "cpu"}')
  return workdir


class Outline(parser.HTMLParser):
  """Headings, ids, links, images and their texts of a page."""

  def __init__(self, text):
    super().__init__()
    self.headings, self.ids, self.links, self.unnamed = [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    given = dict(attrs)
    if re.fullmatch(r'h\d', tag):
      self.headings.append(int(tag[1]))
    self.ids += [given['id']] if 'id' in given else []
    self.links += [given['href']] if tag == 'a' else []
    if tag == 'img' and not given.get('alt') or tag == 'svg' and not given.get('aria-label'):
      self.unnamed.append(tag)


def test_report_holds_every_part(run):
  path = html.write_report(run)
  text = path.read_text()
  assert path == run / 'report' / 'index.html'
  for part in ('75.00 ± 7.07', '&lt;prompt&gt;', 'best_step', '12.5', '&#34;seed&#34;: 42', '0.10',
               '4.0 s', '2 MiB', '1,234', 'Where the time goes', 'Mean gate weight of each source',
               'Gate weights by layer', 'Task correlation', 'Learning curves: train/loss',
               'Other metrics over all replicas'):
    assert part in text, part
  assert '<prompt>' not in text
  assert sorted(p.name for p in path.parent.iterdir()) == [
      'index.html', 'tables.json', 'tables.md', 'tables.tex']


@pytest.fixture(params=['stages', 'one run', 'several runs', 'study'])
def page(request, workdir):
  """Text of reports of every kind."""
  if request.param == 'several runs':
    several(workdir)
  elif request.param == 'study':
    _study(several(workdir))
  else:
    request.getfixturevalue('run')
  folder = workdir / 'stage2' if request.param == 'one run' else workdir
  return html.write_report(folder).read_text()


def test_a_page_needs_nothing_beside_it(page):
  assert not re.search(r'(?:src|href)="(?!data:|#)', page)
  assert not re.search(r'url\((?!#)|@import|<script|<link|<iframe', page)
  assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
  outside = set(re.findall(r'https?://[^"\s<]+', page))
  assert outside <= {'http://www.w3.org/2000/svg', 'http://www.w3.org/1999/xlink'}


def test_a_page_is_accessible(page):
  outline = Outline(page)
  assert not outline.unnamed
  assert len(outline.ids) == len(set(outline.ids))
  assert {link[1:] for link in outline.links} <= set(outline.ids)
  assert outline.headings.count(1) == 1
  content = outline.headings[outline.headings.index(1):]
  assert all(after - before <= 1 for before, after in zip(content, content[1:]))
  assert '<html lang="en">' in page and '<th scope="row">' in page


def test_missing_parts_are_named(run):
  text = html.write_report(run).read_text()
  begun, complete = (part.split('</section>')[0] for part in re.split(
      r'<h2>(?:stage1|stage2)</h2>', text)[1:])
  for part in ('result.json', 'config.json', 'environment.json', 'gates.npz', 'load.npz',
               'correlation.npz', 'masks.npz', 'routes.npz', 'times.json', 'resources.json',
               'parameters.json'):
    assert f'<li>{part}: ' in begun
  assert '<li>metrics.jsonl: holds no number yet' in begun
  assert '<li>' not in complete
  assert 'Load of experts by layer' in complete and 'expert 1' in complete


@pytest.mark.parametrize('name', ['result.json', 'metrics.jsonl', 'config.json', 'gates.npz',
                                  'environment.json', 'times.json', 'resources.json'])
def test_a_report_comes_out_without_any_one_file(run, name):
  (run / 'stage2' / name).unlink()
  assert f'<li>{name}: ' in html.write_report(run / 'stage2').read_text()


def test_tables_are_written_as_markdown_and_json(run):
  folder = html.write_report(run).parent
  assert (folder / 'tables.md').read_text().startswith(
      '## stage2: accuracy\n\n| task |             pemt |         <prompt> |\n')
  stages = [table['stage'] for table in json.loads((folder / 'tables.json').read_text())]
  assert stages == ['stage2'] * 3


def test_several_runs_are_compared(workdir):
  text = html.write_report(several(workdir)).read_text()
  assert re.findall(r'<h2>(.*)</h2>', text) == [
      'Contents', 'Final metrics', 'Learning curves', 'Runs', 'Config differences', 'Environment',
      'run0', 'run1']
  assert '<td class="best">66.00 ± 1.00<small>[63.52, 68.48]</small></td>' in text
  assert '<td>61.00 ± 1.00<small>' in text and 'train.rate' in text
  assert text.count('train/loss against the step') == 1
  assert '1 fields differ' not in text and '1 field differs, 1 is equal.' in text


def test_a_run_beside_a_folder_of_its_own_name_is_not_lost(workdir):
  folder = workdir / 'run0'
  several(folder.parent, 1)
  several(folder, 1)
  text = html.write_report(folder).read_text()
  assert '<h2>run0</h2>' in text and '<h2>run0/.</h2>' in text


def test_runs_of_other_tasks_keep_their_own_curves(workdir):
  several(workdir, 2)
  path = workdir / 'run1' / 'metrics.jsonl'
  path.write_text(path.read_text().replace('cb-', 'rte-'))
  text = html.write_report(workdir).read_text()
  assert text.count('train/loss against the step') == 2


def _study(workdir):
  (workdir / 'plot.png').write_bytes(PNG)
  (workdir / 'result.json').write_text(json.dumps({
      'records': [{'task': 'cb', 'method': 'pemt', 'value': 1.5, 'metric': metric}
                  for metric in ('accuracy', 'largest gate right')],
      'tables': [{'title': 'Controls', 'columns': ['gain'], 'caption': 'Eight seeds.',
                  'rows': [{'name': 'shuffled', 'cells': {'gain': '-0.1 [-1, 1]'}}]}],
      'figures': [{'file': 'plot.png', 'title': 'Gain by share'},
                  {'file': 'none.png', 'title': 'Nothing'}]}))
  return workdir


def test_a_study_shows_its_own_tables_and_figures(workdir):
  path = html.write_report(_study(several(workdir)))
  text = path.read_text()
  assert re.findall(r'<h2>(.*)</h2>', text)[1] == 'Results'
  for part in ('Controls', '-0.1 [-1, 1]', 'Eight seeds.', 'Largest gate right',
               'alt="Gain by share"', '<li>none.png: named by result.json and no PNG'):
    assert part in text, part
  assert text.count('src="data:image/png;base64,') == 1
  assert '## Controls\n' in (path.parent / 'tables.md').read_text()
  titles = [table['title'] for table in json.loads((path.parent / 'tables.json').read_text())]
  assert titles[:3] == ['accuracy', 'largest gate right', 'Controls']


def _tables(result):
  return sections.result_tables(files.Stage('s', result=result))


def test_numbers_of_replicas_are_grouped_by_inner_object():
  plain, test = _tables({'replicas': {
      'a': {'best_step': 7, 'done': True, 'test': {'f1': 0.5}}, 'b': {'best_step': 8}}})
  assert (plain.title, plain.rows, plain.columns) == ('replicas', ('a', 'b'), ('best_step',))
  assert (test.title, test.rows, test.columns) == ('test', ('a',), ('f1',))


def test_replicas_that_differ_by_their_seed_share_a_row():
  table, = _tables({'replicas': {'cb-seed0': {'f1': 0.5}, 'cb-seed1': {'f1': 0.7}}})
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
    _tables(result)


def test_script_prints_the_path_and_names_a_missing_folder(run, run_python):
  done = run_python('launch/report.py', f'--workdir={run}')
  assert (done.returncode, done.stdout) == (0, f'Report: {run}/report/index.html\n'), done.stderr
  wrong = run_python('launch/report.py', f'--workdir={run}/none')
  assert (wrong.returncode, wrong.stdout, wrong.stderr) == (
      2, '', f"Folder '{run}/none' given by --workdir does not exist; give the folder of a run.\n")
