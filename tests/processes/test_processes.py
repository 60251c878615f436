"""What processes exchange, and mistakes at their start."""

from __future__ import annotations

import pytest

EXCHANGE = '-m', 'tests.processes.exchange'


def test_two_processes_share_rows_agree_and_take_turns(group, tmp_path):
  first, second = group(2, *EXCHANGE, tmp_path / 'file')
  assert first[:2] == (0, 'done\n'), first[2]
  assert second[:2] == (0, ''), second[2]  # one of them prints


@pytest.mark.slow
@pytest.mark.parametrize('count, dies', [(2, 0), (3, 2)])
def test_the_others_end_with_the_name_of_a_process_that_is_killed(group, tmp_path, count, dies):
  found = group(count, *EXCHANGE, tmp_path / 'file', f'--dies={dies}')
  assert found[dies][0] == -9
  for code, _, stderr in found[:dies] + found[dies + 1:]:
    assert (code, stderr.splitlines()[-1]) == (
        3, f'This process has lost process {dies}; see the output of that one, then start the same '
        'command again to resume.'), stderr


@pytest.mark.slow
@pytest.mark.parametrize('options, code, sentence', [
    (('--coordinator_address=localhost:1', '--process_count=2', '--process_index=1',
      '--process_timeout=2'), 3,
     'Not all processes came to the coordinator localhost:1 within 2 s; check the address and that '
     'every process runs, or raise --process_timeout.'),
    (('--coordinator_address=localhost:1', '--process_count=2', '--process_index=2'), 2,
     '--process_index is 2, which is outside 0..1; give every process a number of its own.'),
    (('--coordinator_address=localhost:1', '--process_count=two', '--process_index=0'), 2,
     "--process_count is 'two', which is no number from 0; correct it."),
    (('--coordinator_address=localhost', '--process_count=2', '--process_index=0'), 2,
     "--coordinator_address is 'localhost'; give host:port of the first process, or 'auto' on a "
     'TPU pod or under Slurm.'),
    (('--process_index=0',), 2,
     'There is a number of processes or an index without --coordinator_address; give host:port of '
     'the first process, or leave both out.'),
    (('--coordinator_address=auto',), 2, None)])
def test_mistakes_at_the_start_end_with_one_sentence(group, tmp_path, options, code, sentence):
  (found, stdout, stderr), = group(1, *EXCHANGE, tmp_path / 'file', *options, timeout=60)
  assert (found, stdout) == (code, ''), stderr
  assert len(stderr.splitlines()) == 1 and stderr == f'{sentence or stderr.strip()}\n'
