"""Trains any stage of any method; the same command with the same workdir resumes.

python launch/train.py --config=configs/pemt/stage1.py --workdir=DIR [--config.x.y=z ...]
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli

CONFIG = config_flags.DEFINE_config_file('config', None, 'Stage config.', lock_config=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)


def main(_: list[str]) -> None:
  """Runs the stage and prints one line per replica."""
  from pemt_jax.stages.run import run_stage
  result = run_stage(CONFIG.value, WORKDIR.value)
  for name, values in result.trained.results.items():
    metrics = ' '.join(f'{key}={value:.4g}' for key, value in values['final_metrics'].items())
    print(f"{name}: best step {values['best_step']}, {values['metric']} {values['best_value']}"
          f' {metrics}')
  for name, folder in result.experts.items():
    print(f'{name}: {folder}')


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  cli.run(main)
