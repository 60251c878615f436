"""Writes the HTML report of a run or of a folder of runs; docs/report.md says what it shows."""

from __future__ import annotations

import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax.reports import html

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a run, of several stages '
                              'or of several runs.', required=True)


def main(argv: list[str]) -> None:
  """Writes `<workdir>/report/index.html` and prints its path."""
  del argv
  print(f'Report: {html.write_report(WORKDIR.value)}')


if __name__ == '__main__':
  cli.run(main)
