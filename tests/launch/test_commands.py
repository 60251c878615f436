"""Commands end to end: train, resume, evaluate, predict, report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pemt_jax.experts import tree_files
from tests.stages import small

NAME = small.TARGET.replace('/', '-')


def contents(folder):
  """{path: bytes} of all files below a folder."""
  return {str(path.relative_to(folder)): path.read_bytes()
          for path in sorted(folder.rglob('*')) if path.is_file()}


def printed(result):
  """What train.py prints of a run."""
  return ''.join(f"{name}: best step {values['best_step']}, {values['metric']} "
                 f"{values['best_value']} "
                 + ' '.join(f'{key}={value:.4g}' for key, value in values['final_metrics'].items())
                 + '\n' for name, values in result.items())


@pytest.mark.slow
def test_the_same_command_again_trains_nothing(command, config_file, stage2, workdir):
  shutil.copytree(stage2.trained.workdir, workdir, dirs_exist_ok=True)
  before = contents(workdir)
  code, stdout, stderr = command('train', f'--config={config_file(stage2.stage.config)}',
                                 f'--workdir={workdir}')
  assert (code, stderr) == (0, '')
  results, used = stdout.split('\n\n')
  assert results == printed(stage2.trained.results) + f"{NAME}: {workdir / 'experts' / NAME}"
  assert used.startswith('| what | used |') and '| goodput | ' in used
  after = contents(workdir)
  rewritten = ('experts/', 'environment.json', 'resources.json', 'times.json', '.lock')
  for name, text in before.items():
    assert name.startswith(rewritten) or after[name] == text, name
  small.assert_same_leaves(small.leaves_of(workdir / 'experts' / NAME),
                           small.leaves_of(stage2.experts[NAME]), 0, 0)


@pytest.mark.parametrize('place', ['', pytest.param(f'experts/{NAME}', marks=pytest.mark.slow)],
                         ids=['run', 'expert'])
def test_a_run_and_an_expert_are_evaluated(command, stage2, workdir, place):
  shutil.copytree(stage2.trained.workdir, workdir, dirs_exist_ok=True)
  final = stage2.trained.results[NAME]['final_metrics']
  code, stdout, stderr = command('evaluate', f'--workdir={workdir / place}')
  assert (code, stderr) == (0, '')
  line, file = stdout.splitlines()
  assert file == str(workdir / place / 'evaluation.test.json')
  found = tree_files.read_json(file)
  assert found['split'] == 'test'
  assert found['experts'][NAME] == pytest.approx(final, rel=1e-4, abs=1e-5)
  assert line.startswith(f"{NAME} accuracy={final['accuracy']:.4f}")


@pytest.mark.slow
def test_rows_of_a_file_are_predicted_and_a_report_is_written(command, stage2, workdir):
  (workdir / 'rows.tsv').write_text('text\tlabel\na fox .\tyes\nan owl .\t\n')
  code, stdout, stderr = command(
      'predict', f'--workdir={stage2.trained.workdir}', f"--input={workdir / 'rows.tsv'}",
      f"--output={workdir / 'out.jsonl'}")
  assert (code, stdout, stderr) == (0, f"2 predictions: {workdir / 'out.jsonl'}\n", '')
  lines = [json.loads(line) for line in (workdir / 'out.jsonl').read_text().splitlines()]
  assert [line['source'] for line in lines] == ['a fox .', 'an owl .']
  assert set(lines[0]['label_scores']) == {'no', 'yes'}
  shutil.copytree(stage2.trained.workdir, workdir / 'run')
  code, stdout, stderr = command('report', f"--workdir={workdir / 'run'}")
  assert (code, stdout, stderr) == (0, f"Report: {workdir / 'run/report/index.html'}\n", '')


def train(command, config, workdir, *options):
  """Runs train.py; returns what result.json says of the replicas."""
  code, _, stderr = command('train', f'--config=configs/pemt/{config}', f'--workdir={workdir}',
                            *options)
  assert (code, stderr) == (0, '')
  return tree_files.read_json(workdir / 'result.json')['replicas']


@pytest.mark.slow
def test_full_data_few_shot_and_number_of_sources(command, workdir, overrides):
  """The three command lines of the method, on a tiny backbone and a dozen rows a task."""
  overrides += ['--config.train.warmup_steps=0']
  found = train(command, 'stage1.py', workdir / 'stage1', *overrides,
                "--config.tasks=('mnli','qnli')", '--config.data.batch_size=4')
  assert [values['step'] for values in found.values()] == [3, 2]

  sources = f"--config.sources=('{workdir / 'stage1'}',)"
  found = train(command, 'stage2.py:task=superglue-cb,preset=1', workdir / 'full', sources,
                *overrides)
  final = found['superglue-cb']['final_metrics']
  assert final['moe_weight_0'] + final['moe_weight_1'] == pytest.approx(1)
  assert {'accuracy', 'f1_multiclass', 'average_metrics'} < set(final)

  few = train(command, 'stage2_few_shot.py:task=superglue-cb,k=2', workdir / 'few', sources,
              *overrides)
  config = tree_files.read_json(workdir / 'few' / 'config.json')
  assert (config['data']['few_shot'], config['data']['batch_size']) == (2, 2)
  assert few['superglue-cb']['step'] == 3   # two rows of each of three labels, two in a batch

  library = f"task=rte,count=2,library={workdir / 'stage1' / 'experts'}"
  train(command, f'source_count.py:{library}', workdir / 'count', *overrides)
  with np.load(workdir / 'count' / 'gates.npz') as gates:
    assert gates['sources'].tolist() == ['mnli', 'qnli'] and gates['targets'].tolist() == ['rte']


@pytest.mark.slow
def test_an_override_wins_over_a_preset(command, workdir, overrides):
  train(command, 'stage1.py:task=superglue-cb', workdir / 'run', *overrides,
        '--config.data.batch_size=3')
  config = tree_files.read_json(workdir / 'run' / 'config.json')
  assert (config['data']['batch_size'], config['train']['epochs']) == (3, 1.0)


def start(script, *options):
  environment = dict(os.environ, PYTHONPATH=os.getcwd())
  return subprocess.Popen([sys.executable, script, *map(str, options)], env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.parametrize('together', ['all', 'task'])
def test_an_interrupted_run_ends_as_if_it_had_not_been(command, config_file, backbone, workdir,
                                                       together, monkeypatch, repo_root):
  monkeypatch.chdir(repo_root)
  config = small.config_of('pemt/stage1', backbone, steps=300, together=together,
                           train__eval_every=100, train__patience=0)
  file = config_file(config)
  whole, cut = workdir / 'whole', workdir / 'cut'
  code, stdout, stderr = command('train', f'--config={file}', f'--workdir={whole}')
  assert (code, stderr) == (0, '')

  process = start('launch/train.py', f'--config={file}', f'--workdir={cut}')
  place = cut if together == 'all' else cut / 'replicas' / small.SOURCES[0].replace('/', '-')
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline and process.poll() is None:
    text = (place / 'metrics.jsonl').read_text() if (place / 'metrics.jsonl').exists() else ''
    if text.count('\n') > 20:
      break
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  _, stderr = process.communicate(timeout=120)
  assert process.returncode == 128 + signal.SIGTERM
  assert stderr.startswith('Stopped by a signal at step ')
  assert stderr.endswith(f'; {place} holds its state, and the same command goes on.\n')
  assert not (cut / 'result.json').exists()

  code, resumed, stderr = command('train', f'--config={file}', f'--workdir={cut}')
  assert (code, stderr) == (0, '')
  results = lambda text: text.split('\n\n')[0]
  assert results(resumed).replace(str(cut), str(whole)) == results(stdout)
  for folder in sorted((whole / 'experts').iterdir()):
    small.assert_same_leaves(small.leaves_of(cut / 'experts' / folder.name),
                             small.leaves_of(folder), 0, 0)
  assert losses(cut) == losses(whole)


def losses(workdir):
  """{(replica, step): loss} of all metric files of a run."""
  lines = [json.loads(line) for path in sorted(workdir.rglob('metrics.jsonl'))
           for line in path.read_text().splitlines()]
  return {(line['replica'], line['step']): line['train/loss'] for line in lines
          if 'train/loss' in line}
