"""Two-stage PEMT on the embedded playground: experts for all sources, then few-shot targets.

python launch/quickstart.py --workdir=DIR

Ends with a table of test accuracy, target x method, and an HTML report.
"""

from __future__ import annotations

import importlib
import pathlib
import sys
import time

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
# Two targets that need one source each, one that needs two, one that needs none.
TARGETS = ('playground/charm', 'playground/oath', 'playground/quest', 'playground/breath')
SOURCE_STEPS, TARGET_STEPS = 800, 105   # Two thirds of what the configs take, for a first look.
COLUMNS = {'prompt only': 'prompt', 'single adapter': 'adapter', 'PEMT': 'pemt/stage2'}


def main(_: list[str]) -> None:
  """Runs both stages and the comparison."""
  from pemt_jax.reports import html
  from pemt_jax.stages import columns
  from pemt_jax.stages.backbone import load_backbone
  from pemt_jax.stages.run import run_stage
  workdir, began = pathlib.Path(WORKDIR.value), time.monotonic()
  stage1 = importlib.import_module('configs.playground.stage1').get_config()
  stage1.train.steps, stage1.train.eval_every = SOURCE_STEPS, SOURCE_STEPS
  stage2 = importlib.import_module('configs.playground.stage2').get_config
  backbone = load_backbone(stage1)
  print(f'stage 1: {len(stage1.tasks)} sources in one program')
  sources = run_stage(stage1, workdir / 'stage1', backbone)
  for name, values in sources.trained.results.items():
    print(f"  {name}: {values['final_metrics']['accuracy']:.1f} % test accuracy")
  frozen = stage2('full')
  frozen.tasks, frozen.seeds = TARGETS, frozen.seeds[:1]
  records = columns.frozen_column(frozen, workdir / 'frozen', backbone)
  for title, method in COLUMNS.items():
    config = stage2(method)
    config.tasks, config.train.steps = TARGETS, TARGET_STEPS
    if method == 'pemt/stage2':
      config.sources = (str(workdir / 'stage1'),)
    print(f'{title}: {len(config.tasks)} targets x {len(config.seeds)} seeds in one program')
    records += columns.trained_column(title, config, workdir / method.replace('/', '_'), backbone)
  columns.write_records(workdir, records)
  report = html.write_report(workdir)
  _print_table(records)
  print(f'Report: {report.resolve()}')
  print(f'{time.monotonic() - began:.0f} s')


def _print_table(records) -> None:
  """Prints target x method, mean and spread over seeds."""
  from pemt_jax.reports import tables
  entries = [tables.Record(**entry) for entry in records]
  for table in tables.tables_of(entries):
    print(tables.to_markdown(table))


if __name__ == '__main__':
  cli.run(main)
