"""Makes vectors of the tasks of a config: id2task.json and task_vecs.npy.

python launch/task_vectors.py --config=FILE --kind=random|text|fine_tuned_text|fisher --output=DIR
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli

CONFIG = config_flags.DEFINE_config_file('config', None, 'Stage config.', lock_config=True)
KIND = flags.DEFINE_string(
    'kind', None, 'random, text, fine_tuned_text, fisher: docs/task_vectors.md.', required=True)
OUTPUT = flags.DEFINE_string('output', None, 'Folder for the vectors.', required=True)
POOLING = flags.DEFINE_enum('pooling', 'masked', ['masked', 'legacy'], 'Positions of a mean.')
READ = flags.DEFINE_enum('read', 'all', ['all', 'first'], 'Positions of fine_tuned_text.')
WIDTH = flags.DEFINE_integer('width', 128, 'Of random and Fisher vectors; 0: no reduction.')
SCALE = flags.DEFINE_enum('scale', 'unit', ['unit', 'none'], 'Of Fisher vectors.')
STDDEV = flags.DEFINE_float('stddev', 1.0, 'Of the numbers of random vectors.')
BATCH = flags.DEFINE_integer('batch_size', 8, 'Rows per batch.')
SEED = flags.DEFINE_integer('seed', 0, 'Of random vectors.')


def main(_: list[str]) -> None:
  """Writes the folder and prints what is in it."""
  from pemt_jax.stages.task_vectors import VectorOptions, make_task_vectors
  options = VectorOptions(KIND.value, POOLING.value, READ.value, WIDTH.value, SCALE.value,
                          STDDEV.value, BATCH.value, SEED.value)
  vectors = make_task_vectors(CONFIG.value, options, OUTPUT.value)
  print(f'{len(vectors.names)} tasks, {vectors.width} numbers each: {OUTPUT.value}')


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  cli.run(main)
