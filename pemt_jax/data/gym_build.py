"""Builds the folders of the few-shot gym out of rows of data sets, and checks files by their sums.

A task has five draws; each has files `<task>_<k>_<seed>_{train,dev,test}.tsv` (see `gym_files`).
"""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections.abc import Sequence

from pemt_jax import guards
from pemt_jax.data import gym, gym_files, gym_splits, gym_table
from pemt_jax.data.datasets import DataConfig, load_task
from pemt_jax.data.tasks import get_task
from pemt_jax.data.templates import Example
from pemt_jax.data.templates_gym import flat
from pemt_jax.errors import UserError

_SUM = re.compile(r'\b[0-9a-f]{32}\b')


def build_task(title: str, output: str | pathlib.Path, source: str, root: str | None,
               seeds: Sequence[int] = gym_table.SEEDS, published: bool = False
               ) -> list[pathlib.Path]:
  """Draws the rows of a task and writes their files.

  Args:
    title: published name.
    output: folder of all tasks.
    source: `data.source` of the rows of the data set: 'local', 'hf' or 'tfds'.
    root: `data.root`.
    seeds: of the draws.
    published: write texts as the original does: breaks and tabs inside a text stay, where lines of
      their own and further answers come of them, and COPA's rows without a label count.

  Returns:
    The files.

  Raises:
    UserError: an unknown task; rows that cannot be found or do not fit.
  """
  task = get_task(gym.GYM_PREFIX + title)
  entry = gym_table.entries()[title]
  named = f'published_{gym.PLAIN}'
  form = named if published and named in task.variants else gym.PLAIN

  def rows(split: str, few_shot: int | None) -> list[Example]:
    config = DataConfig(source=source, root=root, template=form, task_row_limits=False,
                        few_shot=few_shot)
    return list(load_task(task.name, split, config).examples)

  pool, test = rows('train', None), rows('test', entry.shots)
  folder, written = pathlib.Path(output) / title, []
  draws = {seed: gym_splits.draw(task, pool, entry.shots, seed) for seed in seeds}
  folder.mkdir(parents=True, exist_ok=True)
  for seed, (train, dev) in draws.items():
    for part, own in (('train', train), ('dev', dev), ('test', test)):
      written.append(folder / f'{title}_{entry.shots}_{seed}_{part}.tsv')
      gym_files.write_lines(written[-1], [_line(example, published) for example in own])
  return written


def _line(example: Example, published: bool) -> tuple[str, tuple[str, ...]]:
  how = str if published else flat
  return how(example.source), tuple(map(how, example.extra['answers']))


def read_sums(path: str | pathlib.Path) -> dict[str, str]:
  """Reads MD5 sums of files: name of the file -> sum.

  Args:
    path: a JSON object, or lines with a sum and a path in any order, as md5sum writes them.

  Raises:
    UserError: no such file, or no sum in it.
  """
  place = pathlib.Path(path)
  if not place.is_file():
    raise UserError(f"there is no list of sums '{path}'; give a file with an MD5 sum and a path in"
                    ' each line.')
  text = guards.read_text(place)
  lines = text.splitlines()
  if text.lstrip().startswith('{'):
    lines = [f'{name} {value}' for name, value in guards.read_json(place).items()]
  found = {}
  for line in lines:
    own = _SUM.search(line)
    names = re.findall(r'[\w.()+-]+\.tsv\b', line)
    if own and names:
      found[names[0]] = own.group()
  if not found:
    raise UserError(f"'{path}' holds no MD5 sum of a .tsv file; give a file with a sum and a path "
                    'in each line.')
  return found


def check_files(root: str | pathlib.Path, sums: dict[str, str]) -> dict[str, list[str]]:
  """Compares the files of a folder with sums.

  Args:
    root: folder of all tasks.
    sums: name of a file -> MD5 sum; see `read_sums`.

  Returns:
    'equal', 'different', 'missing' (listed, not there) and 'unlisted' -> names of files.
  """
  present = {path.name: path for path in sorted(pathlib.Path(root).glob('*/*.tsv'))}
  found: dict[str, list[str]] = {'equal': [], 'different': [], 'missing': [], 'unlisted': []}
  for name, wanted in sums.items():
    if name not in present:
      found['missing'].append(name)
      continue
    own = hashlib.md5(present[name].read_bytes()).hexdigest()
    found['equal' if own == wanted else 'different'].append(name)
  found['unlisted'] = [name for name in present if name not in sums]
  return found
