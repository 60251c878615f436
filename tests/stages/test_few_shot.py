"""Few-shot tuning through a whole grid: draws, padded batches, the table, resuming."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from pemt_jax.data import gym_files
from pemt_jax.errors import UserError
from pemt_jax.reports import few_shot as tables
from pemt_jax.stages import few_shot
from pemt_jax.stages.few_shot_config import (
    check_few_shot, few_shot_config, gym_recipe, set_shared, titles_of)
from pemt_jax.stages.rows import RowStore, replica_specs
from pemt_jax.stages.run import run_stage
from tests.stages import small

TITLE = 'mc_taco'
SEEDS = (13, 42)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A task with two draws, and a backbone that knows its words."""
  root = tmp_path_factory.mktemp('few_shot')
  (root / TITLE).mkdir()
  for seed in SEEDS:
    for part, size in (('train', 8), ('dev', 4), ('test', 6)):
      gym_files.write_lines(root / TITLE / f'{TITLE}_16_{seed}_{part}.tsv', [
          (f'word {part} {i if part == "test" else (seed + i) % 12}', [('yes', 'no')[i % 2]])
          for i in range(size)])
  small.write_backbone(root / 'backbone', [f'[{TITLE}] word train dev test yes no',
                                           *map(str, range(12))])
  return root


def _config(root, **changes):
  tuned = gym_recipe(small.config_of('bitfit', str(root / 'backbone'), (), data__root=str(root)))
  with tuned.unlocked():
    tuned.data.max_source_length, tuned.data.max_target_length = 24, 4
    tuned.generation.max_length, tuned.generation.num_beams = 3, 1
    tuned.train.eval_every, tuned.train.best_trees = 1, 'memory'
  config = few_shot_config(tuned)
  config.tasks, config.samples = (TITLE,), SEEDS
  config.learning_rates, config.batch_sizes = (1e-2,), (2, 4)
  config.update(changes)
  return config


@pytest.fixture(scope='module')
def done(root):
  """The folder of a finished run, two draws in one program, and its result."""
  return root / 'run', few_shot.run_few_shot(_config(root), root / 'run')


def test_the_table_has_the_grid_and_the_best_cell_of_each_draw(done):
  folder, result = done
  table = pd.read_csv(folder / TITLE / tables.RESULT)
  assert tuple(table.columns) == tables.COLUMNS
  prefixes = [f'{TITLE}_16_{seed}' for seed in SEEDS]
  assert table['prefix'].tolist() == [
      name for prefix in prefixes for name in (prefix, prefix, f'{prefix}_best')]
  assert table['bsz'].tolist()[:2] == [2, 4] and set(table['lr']) == {1e-2}
  assert table['dev_performance'].between(0, 1).all()
  pd.testing.assert_frame_equal(table, result.results[TITLE])
  for prefix in prefixes:
    lines = (folder / TITLE / f'{prefix}_predictions.txt').read_text().splitlines()
    assert len(lines) == 6 and all(lines)
  records = json.loads((folder / 'result.json').read_text())['records']
  assert [record['replica'] for record in records] == [f'{TITLE}-seed0', f'{TITLE}-seed1']
  assert pd.read_csv(folder / 'summary.csv')['entry'].tolist()[2:4] == ['mean', 'std']
  assert not list(folder.rglob('checkpoints/*')) and not list(folder.rglob('experts'))


def test_a_finished_run_is_read_and_other_settings_are_refused(done, root, monkeypatch):
  folder, result = done
  monkeypatch.setattr(few_shot, 'run_stage', lambda *_: pytest.fail('it trained again'))
  again = few_shot.run_few_shot(_config(root), folder)
  pd.testing.assert_frame_equal(again.results[TITLE], result.results[TITLE])
  other = _config(root)
  other.tuned.train.steps = 3
  with pytest.raises(UserError, match='holds a run with config.train.steps = 2, this call has 3'):
    few_shot.run_few_shot(other, folder)


def test_every_draw_has_rows_of_its_own(root):
  config = few_shot.stage_config(_config(root), TITLE, SEEDS, root)
  specs = replica_specs(config)
  assert [spec.config.data.batch_size for spec in specs] == [2, 4, 2, 4]
  store = RowStore(None, root)
  texts = lambda spec, split: [e.source for e in store.examples(spec, split).examples]
  for split in ('train', 'validation', 'test'):
    assert texts(specs[0], split) == texts(specs[1], split)
    assert (texts(specs[0], split) == texts(specs[2], split)) == (split == 'test')
  assert texts(specs[0], 'test')[0] == f' [{TITLE}] word test 0'
  assert store.examples(specs[0], 'test').examples[0].target == ' yes'


@pytest.mark.slow
def test_padded_batches_change_nothing(done, root, tmp_path):
  """Cells that are trained one by one, without padding rows, have the losses of the grid."""
  config = few_shot.stage_config(_config(root), TITLE, SEEDS, tmp_path)
  config.together, config.train.eval_every, config.train.final_split = 'none', 'never', ''
  run_stage(config, tmp_path / 'alone')
  read = lambda path: {
      (line['replica'], line['step']): line['train/loss']
      for line in map(json.loads, path.read_text().splitlines()) if 'train/loss' in line}
  grid = read(done[0] / TITLE / '13_42' / 'metrics.jsonl')
  assert len(grid) == 8 and min(grid.values()) > 1
  for path in (tmp_path / 'alone' / 'replicas').glob('*/metrics.jsonl'):
    for key, value in read(path).items():
      np.testing.assert_allclose(value, grid.pop(key), rtol=1e-4)
  assert not grid


@pytest.mark.slow
def test_what_meta_learning_leaves_is_a_start(root, tmp_path):
  """Two tasks in episodes; the expert starts a grid on one of them."""
  (root / 'boolq').mkdir(exist_ok=True)
  for part in ('train', 'dev'):
    gym_files.write_lines(root / 'boolq' / f'boolq_16_13_{part}.tsv', [
        (f'word {part} {i}', [('no', 'yes')[i % 2]]) for i in range(8)])
  base = _config(root).tuned
  config = gym_recipe(small.config_of(
      'maml', base.model.name, ('crossfit/boolq', f'crossfit/{TITLE}'), data__root=str(root),
      data__prefix='*', data__train_on_validation=True, mixture__sampling='proportional',
      mixture__batches='episodes', mixture__episodes=2, method__rows=2, data__batch_size=8,
      train__eval_every='never', train__final_split='', train__metric=''))
  config.data.max_source_length, config.data.max_target_length = 24, 4
  expert = run_stage(config, tmp_path / 'maml').experts['mixture']
  lines = [json.loads(line) for line in (tmp_path / 'maml' / 'metrics.jsonl').open()]
  assert all(line['train/support_loss'] > 1 for line in lines)
  few = _config(root, samples=SEEDS[:1], batch_sizes=(2,))
  few.tuned = gym_recipe(small.config_of('full', base.model.name, (), data__root=str(root)))
  few.tuned.data, few.tuned.generation = base.data, base.generation
  few.tuned.train.learning_rate, few.learning_rates = 0.0, (0.0,)
  few.tuned.starts = (str(expert),)
  few.keep = 'experts'
  few_shot.run_few_shot(few, tmp_path / 'few')
  tuned, = (tmp_path / 'few').rglob('card.json')
  small.assert_same_leaves(small.leaves_of(tuned.parent), small.leaves_of(expert))


def test_a_task_may_have_a_start_of_its_own(root, tmp_path, monkeypatch):
  seen = []

  def prepare(config, title, folder):
    seen.append((title, folder))
    config.train.steps = 5
    return config

  monkeypatch.setattr(few_shot, 'run_stage', lambda config, *_: seen.append(config.train.steps)
                      or (_ for _ in ()).throw(UserError('enough.')))
  with pytest.raises(UserError, match='enough'):
    few_shot.run_few_shot(_config(root, replicas=2), tmp_path, prepare)
  assert seen == [(TITLE, tmp_path / TITLE), 5]


def test_tasks_come_from_a_split(root):
  config = _config(root, tasks=())
  assert len(titles_of(config)) == 20
  config = _config(root, tasks=(), part='train', skip_missing=True)
  set_shared(config)
  assert titles_of(config) == (TITLE,)
  with pytest.raises(UserError, match='no task is left to tune'):
    titles_of(_config(root, tasks=(), part='dev', skip_missing=True))


@pytest.mark.parametrize('changes, message', [
    ({'batch_sizes': ()}, 'config.batch_sizes is empty'), ({'keep': 'all'}, "config.keep is 'all'"),
    ({'replicas': 1}, 'config.replicas is 1')])
def test_wrong_values_are_named(root, changes, message):
  with pytest.raises(UserError, match=message):
    check_few_shot(_config(root, **changes))
