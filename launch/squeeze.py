"""Writes the plain backbone of a task's route through routed layers; Hugging Face loads the folder.

python launch/squeeze.py --workdir=EXPERT --task=NAME --output=DIR [--task_vectors=VECTORS]

A layer of the backbone is the strongest expert of that layer on the task's route.
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the expert.', required=True)
TASK = flags.DEFINE_string('task', None, 'Task whose route counts.', required=True)
OUTPUT = flags.DEFINE_string('output', None, 'Folder to write.', required=True)
VECTORS = flags.DEFINE_string('task_vectors', '', 'Folder with the vector of a task that the '
                              'expert was not trained on.')
ROUTES = flags.DEFINE_enum('routes', 'router', ['router', 'random'], "The expert's own, or random.")
SEED = flags.DEFINE_integer('seed', 42, 'Of random routes.')


def main(_: list[str]) -> None:
  """Writes the folder and prints the expert of each layer."""
  from pemt_jax.stages.task_moe_start import StartOptions, save_squeezed
  options = StartOptions(WORKDIR.value, VECTORS.value, ROUTES.value, seed=SEED.value)
  found = save_squeezed(options, TASK.value, pathlib.Path(OUTPUT.value))
  print('experts of the layers:', ' '.join(map(str, found.routes.argmax(-1))))
  print(OUTPUT.value)


if __name__ == '__main__':
  cli.run(main)
