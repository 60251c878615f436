"""Collects scores of many runs over their seeds; writes tables.md, tables.tex and tables.json.

python launch/collect.py --runs=DIR --output=DIR [--metrics=accuracy,f1]
python launch/collect.py --few_shot --runs=DIR --output=DIR [--reference=DIR]
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax.reports import collect, few_shot, tables

RUNS = flags.DEFINE_string('runs', None, 'Folder of runs, or of <task>/<experiment>/ folders with '
                           'test_results.json.', required=True)
OUTPUT = flags.DEFINE_string('output', None, 'Folder for the tables.', required=True)
METRICS = flags.DEFINE_list('metrics', list(collect.GLUE_METRICS),
                            'Metrics of the table of all values, over which its mean goes.')
FEW_SHOT = flags.DEFINE_bool('few_shot', False, 'The runs are <task>/result.csv of few-shot '
                             'tuning; writes summary.csv, summary.md and, with a reference, '
                             'comparison.csv.')
REFERENCE = flags.DEFINE_string('reference', None, 'Few-shot runs, or their summary.csv, that the '
                                'average relative gain is relative to.')


def main(_: list[str]) -> None:
  """Writes the tables and prints the first one."""
  if FEW_SHOT.value:
    print(few_shot.write_summary(RUNS.value, OUTPUT.value, REFERENCE.value))
    print(f'Tables: {pathlib.Path(OUTPUT.value)}')
    return
  found = collect.write_tables(RUNS.value, OUTPUT.value, METRICS.value)
  print(f'{found[0].title}\n\n{tables.to_markdown(found[0], marked=True)}')
  print(f'Tables: {pathlib.Path(OUTPUT.value)}')


if __name__ == '__main__':
  cli.run(main)
