"""Commands as a user types them, and what they work on."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.stages import small
from tests.stages.fixtures import base, stage1, stage2  # pylint: disable=unused-import

REPO = pathlib.Path(__file__).resolve().parents[2]


class Commands:
  """Runs `python launch/<name>.py` with options; see `benchmarks/forking.py`."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.server = subprocess.Popen(
        [sys.executable, str(REPO / 'benchmarks' / 'forking.py')], cwd=REPO, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=str(REPO)))

  def __call__(self, name: str, *arguments: str) -> tuple[int, str, str]:
    """Returns (exit code, stdout, stderr)."""
    prints = [self.folder / part for part in ('stdout', 'stderr')]
    request = {'script': str(REPO / 'launch' / f'{name}.py'),
               'arguments': list(map(str, arguments)),
               'stdout': str(prints[0]), 'stderr': str(prints[1])}
    self.server.stdin.write(json.dumps(request) + '\n')
    self.server.stdin.flush()
    code = int(self.server.stdout.readline())
    return code, *(path.read_text() for path in prints)

  def close(self) -> None:
    """Ends the process."""
    self.server.stdin.close()
    self.server.wait(timeout=60)


@pytest.fixture(scope='session')
def command(tmp_path_factory):
  """`command('train', '--workdir=...', ...)` -> (exit code, stdout, stderr)."""
  commands = Commands(tmp_path_factory.mktemp('commands'))
  yield commands
  commands.close()


WORDS = ('ann bob cal dan eve fay gus hal ida jon kim leo runs sings sleeps eats reads walks and '
         'but then near the a big small').split()
SPLITS = {'mnli': ('train', 'validation_mismatched', 'validation_matched'),
          'qnli': ('train', 'validation'), 'rte': ('train', 'validation'),
          'cb': ('train', 'validation')}
FIELDS = {'mnli': ('glue/mnli', 'premise', 'hypothesis', 3),
          'qnli': ('glue/qnli', 'question', 'sentence', 2),
          'rte': ('glue/rte', 'sentence1', 'sentence2', 2),
          'cb': ('super_glue/cb', 'premise', 'hypothesis', 3)}


def write_rows(root: pathlib.Path, task: str, rows: int = 12) -> None:
  """Writes a few rows of every split of a task in the layout of local data."""
  folder, first, second, labels = FIELDS[task]
  (root / folder).mkdir(parents=True, exist_ok=True)
  for number, split in enumerate(SPLITS[task]):
    lines = []
    for row in range(rows):
      words = [WORDS[(7 * row + 5 * i + number) % len(WORDS)] for i in range(8)]
      lines.append(json.dumps({first: ' '.join(words[:4]), second: ' '.join(words[4:]),
                               'label': row % labels, 'idx': row}))
    (root / folder / f'{split}.jsonl').write_text('\n'.join(lines) + '\n')


@pytest.fixture(scope='session')
def rows(base):
  """Folder of local rows of four tasks."""
  root = base / 'rows'
  for task in FIELDS:
    write_rows(root, task)
  return root


@pytest.fixture(scope='session')
def backbone(base):
  """A tiny backbone that knows the words of `rows`, their labels and descriptions."""
  from pemt_jax.data.tasks import get_task
  tasks = [get_task('superglue-cb' if task == 'cb' else task) for task in FIELDS]
  texts = [' '.join(WORDS), *(task.description for task in tasks),
           *(word for task in tasks for word in task.label_words),
           'premise: hypothesis: question: sentence: sentence1: sentence2:']
  return small.write_backbone(base / 'words_backbone', texts)


CONFIG = """
import json, pathlib
from pemt_jax.stages.artefacts import config_from_json

def get_config():
  return config_from_json(json.loads(pathlib.Path(__file__).with_suffix('.json').read_text()))
"""


@pytest.fixture
def config_file(tmp_path):
  """Writes a config as a file for --config; returns its path."""

  def write(config) -> pathlib.Path:
    (tmp_path / 'config.py').write_text(CONFIG)
    (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
    return tmp_path / 'config.py'

  return write


@pytest.fixture
def overrides(backbone, rows):
  """Options that bring a config for t5-base down to a run of seconds."""
  return [f'--config.model.name={backbone}', f'--config.data.root={rows}',
          '--config.data.validation_rows=4', '--config.data.eval_batch_size=16',
          '--config.train.epochs=1', '--config.train.tensorboard=False',
          '--config.generation.max_length=4']
