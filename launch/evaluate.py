"""Scores trained experts on a split.

python launch/evaluate.py --workdir=DIR [--split=test]

DIR is the folder of a run (all of its experts are scored) or of one expert.
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax.sharding import processes

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a run or of an expert.', required=True)
SPLIT = flags.DEFINE_enum('split', 'test', ['train', 'validation', 'test'], 'Split to score.')
ROOT = flags.DEFINE_string('data_root', None, 'Folder of local rows in place of the trained one.')
BACKBONE = flags.DEFINE_string('backbone', None, 'Backbone in place of the trained path.')
TASKS = flags.DEFINE_list('tasks', [], 'Tasks to score an expert of several tasks on in place of '
                          'its own; those it was not trained on need --task_vectors.')
VECTORS = flags.DEFINE_string('task_vectors', None, 'Folder of task vectors that routed layers '
                              'read in place of the trained ones.')
MESH = flags.DEFINE_list('mesh', [], 'Devices along axes, such as fsdp=2,tensor=4; those that are '
                         'left stand along data.')

cli.define_process_flags()


def main(_: list[str]) -> None:
  """Scores every expert and writes `evaluation.<split>.json` into the folder."""
  from pemt_jax.experts import tree_files
  from pemt_jax.sharding.mesh import mesh_overrides
  from pemt_jax.stages import predict
  overrides = {key: value for key, value in (('data.root', ROOT.value),
                                             ('model.name', BACKBONE.value),
                                             ('tasks', tuple(TASKS.value)),
                                             ('method.vectors', VECTORS.value)) if value}
  overrides |= mesh_overrides(MESH.value)
  workdir = pathlib.Path(WORKDIR.value)
  results = predict.evaluate_experts(workdir, SPLIT.value, overrides)
  for name, metrics in results.items():
    print(name, ' '.join(f'{key}={value:.4f}' for key, value in metrics.items()))
  target = workdir / f'evaluation.{SPLIT.value}.json'
  if processes.is_first():
    tree_files.write_json(target, {'split': SPLIT.value, 'experts': results})
  print(target)


if __name__ == '__main__':
  cli.run(main, processes.as_member)
