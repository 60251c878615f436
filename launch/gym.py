"""Builds folders of the few-shot gym out of data sets, and checks files against MD5 sums.

python launch/gym.py --output=DIR --root=DATA [--tasks=glue-rte,boolq] [--sums=LIST]
python launch/gym.py --output=DIR --build=False --sums=LIST
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax.data import gym_table
from pemt_jax.errors import UserError

OUTPUT = flags.DEFINE_string('output', None, 'Folder of the gym.', required=True)
BUILD = flags.DEFINE_bool('build', True, 'Write files; --build=False checks those that are there.')
SOURCE = flags.DEFINE_enum('source', 'local', ['local', 'hf', 'tfds'], 'Where rows come from.')
ROOT = flags.DEFINE_string('root', None, 'Folder of local rows, see docs/data.md.')
TASKS = flags.DEFINE_list('tasks', [], 'Published names; the default is a part of a split.')
PARTITION = flags.DEFINE_string('partition', gym_table.RANDOM, 'Split of the tasks.')
PART = flags.DEFINE_enum('part', 'train', gym_table.PARTS, 'Part of the split.')
SEEDS = flags.DEFINE_list('seeds', [str(seed) for seed in gym_table.SEEDS], 'Of the draws.')
PUBLISHED = flags.DEFINE_bool('published', False, 'Leave breaks inside of texts, as published.')
SUMS = flags.DEFINE_string('sums', None, 'File with an MD5 sum and a path in each line.')


def main(_: list[str]) -> int:
  """Writes and checks; a task whose rows are missing is named and left out.

  Returns:
    Exit code: 1 where a file that a sum was given for differs or is missing, else 0.
  """
  from pemt_jax.data import gym_build
  sums = gym_build.read_sums(SUMS.value) if SUMS.value else None
  titles = TASKS.value or gym_table.partition(PARTITION.value)[PART.value]
  failed, unequal = [], 0
  for title in titles if BUILD.value else ():
    try:
      written = gym_build.build_task(title, OUTPUT.value, SOURCE.value, ROOT.value,
                                     tuple(map(int, SEEDS.value)), PUBLISHED.value)
      print(f'{title}: {len(written)} files')
    except UserError as error:
      failed.append(title)
      print(f'{title}: {error}')
  if sums is not None:
    for kind, names in gym_build.check_files(OUTPUT.value, sums).items():
      shown = f": {', '.join(names[:10])}" if names and kind != 'equal' else ''
      print(f'{kind}: {len(names)}{shown}')
      unequal += len(names) * (kind in ('different', 'missing'))
  if failed:
    raise UserError(f"{len(failed)} of {len(titles)} tasks were not built: {', '.join(failed)}.")
  return int(unequal > 0)


if __name__ == '__main__':
  cli.run(main)
