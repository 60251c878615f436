"""Measures how similar source experts are to target tasks; writes one table per metric.

python launch/similarity.py --sources=DIR[,DIR] --metrics=loss,el2n --output=DIR [--targets=TASKS]

With --gains it compares predicted similarity with measured gain in a transfer report.
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax.sharding import processes

SOURCES = flags.DEFINE_list('sources', [], 'Folders of experts, runs or libraries of experts.')
TARGETS = flags.DEFINE_list('targets', [], "Target tasks; the default is the sources' tasks.")
METRICS = flags.DEFINE_list('metrics', ['loss'], 'Similarity metrics, see docs/merging.md.')
OUTPUT = flags.DEFINE_string('output', None, 'Folder for the tables.', required=True)
CONFIG = config_flags.DEFINE_config_file(
    'config', None, "Stage config in place of the sources' own.", lock_config=True)
TUNED = flags.DEFINE_list('tuned', [], 'Experts tuned on the targets from random values.')
MOVED = flags.DEFINE_string('moved', '', 'Folder with <target>/experts/<source>.')
SCORES = flags.DEFINE_string('scores', '', 'Folder with tables of dev scores.')
BATCH = flags.DEFINE_integer('batch_size', 50, 'Rows per batch.')
ROWS = flags.DEFINE_enum('rows', 'published', ['published', 'all'], 'Batches that are read.')
NORMALISE = flags.DEFINE_enum('normalise', 'sum', ['sum', 'mean'], 'Sum or mean over terms.')
GRADIENTS = flags.DEFINE_integer(
    'gradient_batches', 0, 'Most batches of GraNd; 0 takes the published table.')
LEAVES = flags.DEFINE_string('leaves', '*', 'Pattern of the tuned leaves that GraNd counts.')
DROPOUT = flags.DEFINE_bool('dropout', False, "GraNd's gradients under dropout, as published.")
SEED = flags.DEFINE_integer('seed', 0, 'Of that dropout.')
CHUNK = flags.DEFINE_integer('chunk', 0, 'Sources at a time; 0 chooses by size.')
ZERO_SHOT = flags.DEFINE_bool('zero_shot', False, 'Write zero_result_dev.tsv too.')
GAINS = flags.DEFINE_string('gains', '', 'Table target, then source,gain: write a report.')

cli.define_process_flags()


def main(_: list[str]) -> None:
  """Writes the tables and prints the best source of each target."""
  from pemt_jax.errors import UserError
  from pemt_jax.stages import similarity, transfer
  from pemt_jax.stages.similarity_rows import SimilarityOptions
  output = pathlib.Path(OUTPUT.value)
  if SOURCES.value:
    options = SimilarityOptions(
        tuple(METRICS.value), BATCH.value, ROWS.value, NORMALISE.value, GRADIENTS.value,
        LEAVES.value, DROPOUT.value, SEED.value, CHUNK.value)
    references = similarity.References(tuple(TUNED.value), MOVED.value, SCORES.value)
    found = similarity.measure(SOURCES.value, TARGETS.value, options, references, output,
                               CONFIG.value, ZERO_SHOT.value)
    for name, matrix in found.items():
      print(similarity.best_lines(name, matrix))
  elif not GAINS.value:
    raise UserError('no source is given; give folders of experts as --sources.')
  if GAINS.value and processes.is_first():
    print(transfer.write_report(output, GAINS.value))
  print(output)


if __name__ == '__main__':
  cli.run(main, processes.as_member)
