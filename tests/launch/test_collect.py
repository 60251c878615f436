"""Scores of many runs collected on the command line."""

from __future__ import annotations

import json


def test_tables_are_written_and_printed(command, workdir):
  for seed in (1, 2):
    folder = workdir / 'runs' / 'rte' / f'lora-seed{seed}'
    folder.mkdir(parents=True)
    (folder / 'test_results.json').write_text(json.dumps({'eval_accuracy': 0.5 + seed / 10}))
  code, out, err = command('collect', f"--runs={workdir / 'runs'}", f"--output={workdir / 'out'}")
  assert (code, err) == (0, '')
  assert '| rte accuracy | 65.00 ± 7.07 |' in out
  assert sorted(path.name for path in (workdir / 'out').iterdir()) == [
      'tables.json', 'tables.md', 'tables.tex']
  assert r'$65.00_{\pm 7.07}$' in (workdir / 'out' / 'tables.tex').read_text()


def test_an_absent_folder_is_one_sentence(command, workdir):
  assert command('collect', '--runs=/none', f"--output={workdir / 'out'}") == (
      2, '', "Folder '/none' given by --runs does not exist; give the folder of a run.\n")
  assert not (workdir / 'out').exists()
