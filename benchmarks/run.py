"""Measures speed and memory and writes every sample with hardware and versions to a JSON file.

python benchmarks/run.py --suite=train_step [--output=results/benchmarks/train_step.json]

The suites `train_step` and `decoding` need PyTorch and PEFT: requirements-bench.txt.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

from absl import flags

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from benchmarks import machine, suites
from pemt_jax import cli
from pemt_jax.errors import UserError, number

SUITE = flags.DEFINE_enum('suite', None, sorted(suites.SUITES), 'What to measure.', required=True)
OUTPUT = flags.DEFINE_string(
    'output', None, 'JSON file; the default is results/benchmarks/<suite>.json.')
MODELS = flags.DEFINE_list(
    'models', None, 'Published sizes or folders; the default is that of the suite.')
ROUNDS = flags.DEFINE_integer('rounds', 0, 'Measured turns of each program; 0: the default.')
LAYERS = flags.DEFINE_enum(
    'layers', 'default', ['default', 'scan', 'unrolled'],
    "How the library's side runs its layers; 'default' is what a config does.")
SOURCES = flags.DEFINE_integer('sources', 32, 'Sources, and targets, of the suite similarity.')
WEIGHTS = flags.DEFINE_string(
    'weights', str(REPO / '.cache' / 'benchmarks'), 'Folder for random weights.')


def main(_: list[str]) -> None:
  """Runs a suite."""
  from pemt_jax.models.t5_config import PUBLISHED
  suite, models, rounds = suites.SUITES[SUITE.value]
  number('--rounds', ROUNDS.value, ROUNDS.value >= 0, 'of at least 0')
  number('--sources', SOURCES.value, SOURCES.value >= 1, 'of at least 1')
  for model in MODELS.value or ():
    if model not in PUBLISHED and not pathlib.Path(model).is_dir():
      raise UserError(f"--models names '{model}', which is no published size and no folder; "
                      'correct it.')
  plan = suites.Plan(tuple(MODELS.value or models), ROUNDS.value or rounds,
                     pathlib.Path(WEIGHTS.value),
                     {'default': None, 'scan': True, 'unrolled': False}[LAYERS.value],
                     SOURCES.value)
  output = pathlib.Path(OUTPUT.value or REPO / 'results' / 'benchmarks' / f'{SUITE.value}.json')
  found = {'suite': SUITE.value,
           'command': ' '.join(['python', 'benchmarks/run.py', *sys.argv[1:]]),
           'machine': machine.describe(), 'rounds': plan.rounds, 'load_before': machine.load(),
           'results': []}
  output.parent.mkdir(parents=True, exist_ok=True)
  start = time.time()
  for result in suite(plan):  # Written after each one, so that an interrupted run leaves some.
    found['results'].append(result)
    found |= {'load_after': machine.load(), 'seconds': round(time.time() - start, 1)}
    output.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
  print(output)


if __name__ == '__main__':
  cli.run(main)
