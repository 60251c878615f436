"""Writes predictions and label scores for the rows of a file.

python launch/predict.py --workdir=DIR --input=FILE --output=FILE

DIR is the folder of an expert, or of a run with one expert. FILE in: JSONL, TSV or CSV with a
column `source`, or with the fields of the expert's task. FILE out: JSONL.
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax.sharding import processes

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of an expert or of a run.', required=True)
INPUT = flags.DEFINE_string('input', None, 'Rows: .jsonl, .tsv or .csv.', required=True)
OUTPUT = flags.DEFINE_string('output', None, 'Predictions: .jsonl.', required=True)
BACKBONE = flags.DEFINE_string('backbone', None, 'Backbone in place of the trained path.')
VECTORS = flags.DEFINE_string('task_vectors', None, 'Folder with the vector of --task, which '
                              'routed layers read in place of a trained one.')
TASK = flags.DEFINE_string('task', '', 'Task of the rows, for an expert of several tasks.')
MESH = flags.DEFINE_list('mesh', [], 'Devices along axes, such as fsdp=2,tensor=4; those that are '
                         'left stand along data.')

cli.define_process_flags()


def main(_: list[str]) -> None:
  """Predicts and prints how many rows were written."""
  from pemt_jax.sharding.mesh import mesh_overrides
  from pemt_jax.stages import predict
  overrides = {'model.name': BACKBONE.value} if BACKBONE.value else {}
  if VECTORS.value:
    overrides['method.vectors'] = VECTORS.value
    if TASK.value:
      overrides['tasks'] = (TASK.value,)
  overrides |= mesh_overrides(MESH.value)
  count = predict.predict_file(pathlib.Path(WORKDIR.value), pathlib.Path(INPUT.value),
                               pathlib.Path(OUTPUT.value), overrides, TASK.value)
  print(f'{count} predictions: {OUTPUT.value}')


if __name__ == '__main__':
  cli.run(main, processes.as_member)
