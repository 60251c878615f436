"""Looks into routed layers: routes of tasks, pictures, features they go with, disabled experts.

python launch/routes.py --workdir=DIR --action=heatmap --output=DIR

DIR is the folder of a run, or of one expert. See docs/task_moe.md for what each action writes.
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a run or of an expert.', required=True)
ACTION = flags.DEFINE_enum('action', None, [
    'routes', 'heatmap', 'animation', 'correlate', 'disable'], 'What is done.', required=True)
OUTPUT = flags.DEFINE_string('output', None, 'Folder for what is written.', required=True)
REPLICA = flags.DEFINE_string('replica', '', 'Replica of the run; the default is the first one.')
ORDER = flags.DEFINE_enum('order', 'clusters', ['clusters', 'ontology'], 'Of tasks in pictures.')
WHICH = flags.DEFINE_enum('which', 'now', ['now', 'at_one'],
                          "Routes at the run's temperature, or at 1.")
SECONDS = flags.DEFINE_float('seconds', 0.2, 'That an animation shows each step.')
SPLIT = flags.DEFINE_enum('split', 'validation', ['train', 'validation', 'test'],
                          'Split that is scored, and whose rows tell features.')
ROWS = flags.DEFINE_bool('rows', True, 'Read features of tasks from their rows too.')
METRIC = flags.DEFINE_string('metric', 'average_metrics', 'That gets worse without experts.')
LEAST = flags.DEFINE_integer('least_tasks', 1, 'Tasks that must have a feature, and lack it.')
EXPERTS = flags.DEFINE_list('experts', ['*'], 'Experts to disable, such as encoder/0/2; each alone,'
                            ' those joined by + together; * and ? match any.')
ROOT = flags.DEFINE_string('data_root', None, 'Folder of local rows in place of the trained one.')
BACKBONE = flags.DEFINE_string('backbone', None, 'Backbone in place of the trained path.')
TASKS = flags.DEFINE_list('tasks', [], 'Tasks in place of those that an expert was trained on.')
VECTORS = flags.DEFINE_string('task_vectors', None, 'Folder of task vectors in place of its own.')
MAX_ROWS = flags.DEFINE_integer('max_rows', 0, 'Most rows of a split that are read; 0 takes all.')


def main(_: list[str]) -> None:
  """Does what the action says and prints it."""
  from pemt_jax.stages import route_analysis
  overrides = {key: value for key, value in (
      ('data.root', ROOT.value), ('model.name', BACKBONE.value), ('tasks', tuple(TASKS.value)),
      ('method.vectors', VECTORS.value),
      (f'data.max_{SPLIT.value}_rows', MAX_ROWS.value)) if value}
  options = route_analysis.RouteOptions(
      REPLICA.value, ORDER.value, WHICH.value, SECONDS.value, SPLIT.value, ROWS.value,
      LEAST.value, tuple(EXPERTS.value), METRIC.value, overrides)
  output = pathlib.Path(OUTPUT.value)
  write = route_analysis.WRITERS[ACTION.value]
  for line in write(pathlib.Path(WORKDIR.value), output, options):
    print(line)
  print(output)


if __name__ == '__main__':
  cli.run(main)
