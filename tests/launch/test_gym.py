"""Folders of the few-shot gym built and checked on the command line."""

from __future__ import annotations

import hashlib


def test_files_are_built_and_checked(command, rows, workdir):
  gym, sums = workdir / 'gym', workdir / 'sums.txt'
  options = (f'--output={gym}', f'--sums={sums}', '--tasks=glue-rte')
  sums.write_text(f"{'0' * 32}  glue-rte/glue-rte_16_13_dev.tsv\n")
  code, out, err = command('gym', *options, f'--root={rows}', '--seeds=13')
  assert (code, err) == (1, '')
  assert out.splitlines()[:3] == [
      'glue-rte: 3 files', 'equal: 0', 'different: 1: glue-rte_16_13_dev.tsv']
  files = sorted(gym.rglob('*.tsv'))
  sums.write_text(''.join(f'{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}\n'
                          for path in files))
  assert command('gym', *options, '--build=False') == (
      0, 'equal: 3\ndifferent: 0\nmissing: 0\nunlisted: 0\n', '')
  files[0].unlink()
  assert command('gym', *options, '--build=False')[0] == 1


def test_tasks_without_rows_are_named(command, workdir):
  code, out, err = command('gym', f"--output={workdir / 'gym'}", f'--root={workdir}',
                           '--tasks=glue-rte')
  assert (code, err) == (2, '1 of 1 tasks were not built: glue-rte.\n')
  assert out.startswith("glue-rte: task 'crossfit/glue-rte' has no data below ")
