"""Collects scores of many runs over their seeds; writes tables.md, tables.tex and tables.json.

python launch/collect.py --runs=DIR --output=DIR [--metrics=accuracy,f1]
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax.reports import collect, tables

RUNS = flags.DEFINE_string('runs', None, 'Folder of runs, or of <task>/<experiment>/ folders with '
                           'test_results.json.', required=True)
OUTPUT = flags.DEFINE_string('output', None, 'Folder for the tables.', required=True)
METRICS = flags.DEFINE_list('metrics', list(collect.GLUE_METRICS),
                            'Metrics of the table of all values, over which its mean goes.')


def main(_: list[str]) -> None:
  """Writes the tables and prints the first one."""
  found = collect.write_tables(RUNS.value, OUTPUT.value, METRICS.value)
  print(f'{found[0].title}\n\n{tables.to_markdown(found[0], marked=True)}')
  print(f'Tables: {pathlib.Path(OUTPUT.value)}')


if __name__ == '__main__':
  cli.run(main)
