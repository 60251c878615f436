"""Folders of the gym made out of rows, and their check."""

from __future__ import annotations

import hashlib
import json

import pytest

from pemt_jax.data import gym_build, gym_files, gym_table
from pemt_jax.data.datasets import DataConfig, load_task
from pemt_jax.errors import UserError


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """(rows, gym) folders: a task with labels, and one with several answers and a break inside."""
  root, output = tmp_path_factory.mktemp('rows'), tmp_path_factory.mktemp('gym')
  sst2 = [{'sentence': f's{i}', 'label': i % 2} for i in range(100)]
  quoref = [{'question': f'q{i}', 'context': 'a\nb', 'answers': {'text': [f'x{i}', 'y\tz']}}
            for i in range(80)]
  for folder, rows in (('glue/sst2', sst2), ('quoref', quoref)):
    (root / folder).mkdir(parents=True)
    for split in ('train', 'validation'):
      own = rows if split == 'train' else rows[:5]
      (root / folder / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, own)))
  for title in ('glue-sst2', 'quoref'):
    written = gym_build.build_task(title, output, 'local', str(root))
    assert len(written) == 15 and all(path.is_file() for path in written)
  return root, output


def test_files_hold_the_draws_of_the_gym(built):
  root, output = built
  for title, shots in (('glue-sst2', 16), ('quoref', 32)):
    assert gym_files.prefixes(output / title, title) == tuple(
        sorted(f'{title}_{shots}_{seed}' for seed in gym_table.SEEDS))
  read = lambda task, split, **more: [e.source for e in load_task(
      f'crossfit/{task}', split, DataConfig(template='plain', **more)).examples]
  drawn = dict(root=str(root), few_shot=32, few_shot_per_class=16, few_shot_seed=87)
  stored = dict(source='crossfit', root=str(output), few_shot_seed=87)
  for task, sizes in (('glue-sst2', (32, 32, 5)), ('quoref', (32, 32, 5))):
    for split, size in zip(('train', 'validation', 'test'), sizes, strict=True):
      rows = read(task, split, **stored)
      assert len(rows) == size
      assert rows == [' '.join(text.split()) for text in read(task, split, **drawn)]


def test_breaks_become_blanks_and_answers_columns(built):
  _, output = built
  line = (output / 'quoref' / 'quoref_32_13_test.tsv').read_text().splitlines()[0]
  assert line == 'question: q0 context: a b\tx0\ty z'


def test_files_are_compared_with_sums(built, tmp_path):
  _, output = built
  names = [f'glue-sst2_16_13_{part}.tsv' for part in ('train', 'dev')]
  sums = [hashlib.md5((output / 'glue-sst2' / name).read_bytes()).hexdigest() for name in names]
  rows = [(sums[0], names[0]), ('0' * 32, names[1]), ('1' * 32, 'boolq_16_13_dev.tsv')]
  (tmp_path / 'lines.txt').write_text(''.join(f'{own}  data/x/{name}\n' for own, name in rows))
  (tmp_path / 'object.json').write_text(json.dumps({f'x/{name}': own for own, name in rows}))
  for file in ('lines.txt', 'object.json'):
    found = gym_build.check_files(output, gym_build.read_sums(tmp_path / file))
    assert (found['equal'], found['different']) == ([names[0]], [names[1]])
    assert found['missing'] == ['boolq_16_13_dev.tsv'] and len(found['unlisted']) == 28


def test_mistakes_are_named(tmp_path):
  with pytest.raises(UserError, match='there is no list of sums'):
    gym_build.read_sums(tmp_path / 'none')
  (tmp_path / 'empty').write_text('nothing\n')
  with pytest.raises(UserError, match='holds no MD5 sum'):
    gym_build.read_sums(tmp_path / 'empty')
  with pytest.raises(UserError, match="there is no task 'crossfit/none'"):
    gym_build.build_task('none', tmp_path, 'local', str(tmp_path))
