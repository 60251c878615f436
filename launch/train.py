"""Trains any stage, or runs several as a study; the same command resumes its workdir.

python launch/train.py --config=configs/pemt/stage1.py --workdir=DIR [--config.x.y=z ...]
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags
import ml_collections as mlc
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax.errors import UserError
from pemt_jax.sharding import processes

CONFIG = config_flags.DEFINE_config_file('config', None, 'Stage config.', lock_config=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
PROFILE = flags.DEFINE_string('profile', '', "Folder for a trace of some steps by JAX's profiler.")
PROFILE_STEPS = flags.DEFINE_string(
    'profile_steps', '10:15', 'First and last traced step of this call; the first step is 1.')

cli.define_process_flags()


def main(_: list[str]) -> None:
  """Runs the stage and prints one line per replica."""
  from pemt_jax.errors import UserError
  from pemt_jax.stages.ensembling_config import ENSEMBLING
  from pemt_jax.stages.few_shot_config import FEW_SHOT
  from pemt_jax.stages.squeezing import SQUEEZING
  from pemt_jax.stages.study_config import STUDY
  config = _traced(CONFIG.value)
  if config.get('stage') in (ENSEMBLING, FEW_SHOT, SQUEEZING, STUDY):
    if processes.count() > 1:
      raise UserError(f"Stage '{CONFIG.value.stage}' is many runs, which one process makes; leave "
                      '--coordinator_address out.')
    _several_stages(config.stage)
    return
  from pemt_jax.stages.run import run_stage
  result = run_stage(config, WORKDIR.value)
  for name, values in result.trained.results.items():
    metrics = ' '.join(f'{key}={value:.4g}' for key, value in values['final_metrics'].items())
    print(f"{name}: best step {values['best_step']}, {values['metric']} {values['best_value']}"
          f' {metrics}')
  for name, folder in result.experts.items():
    print(f'{name}: {folder}')
  _print_use(pathlib.Path(WORKDIR.value))


def _print_use(workdir: pathlib.Path) -> None:
  """Prints what the run has used: time by phase, goodput, memory, operations."""
  from pemt_jax.reports import files, used
  if processes.is_first():
    print(f'\n{used.table(files.read_stage(workdir, workdir))}')


def _traced(config: mlc.ConfigDict) -> mlc.ConfigDict:
  """The config of a stage with the trace that the flags ask for.

  Raises:
    UserError: a config of several stages, which are not traced.
  """
  if not PROFILE.value:
    return config
  if 'train' not in config:
    raise UserError(f"--profile cannot trace '{config.stage}', which runs several stages; give it"
                    ' to one of them.')
  config.train.profile, config.train.profile_steps = PROFILE.value, PROFILE_STEPS.value
  return config


def _several_stages(stage: str) -> None:
  """Runs a study, few-shot tuning, ensembling or squeezing; prints tables and the report's path."""
  from pemt_jax.reports import files, html, sections, tables
  from pemt_jax.stages import (
      ensembling, ensembling_config, few_shot, squeezing, study, study_config)
  run = {study_config.STUDY: study.run_study, squeezing.SQUEEZING: squeezing.run_squeezing,
         ensembling_config.ENSEMBLING: ensembling.run_ensembling}.get(stage, few_shot.run_few_shot)
  result = run(CONFIG.value, WORKDIR.value)
  workdir = pathlib.Path(WORKDIR.value)
  for table in sections.result_tables(files.read_stage(workdir, workdir)):
    print(f'{table.title}\n\n{tables.to_markdown(table)}')
  print(f'Report: {html.write_report(workdir).resolve()}')
  print(f'{result.seconds:.0f} s')


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  cli.run(main, processes.as_member)
