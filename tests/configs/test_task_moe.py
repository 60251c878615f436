"""Configs of the few-shot gym: the published numbers, the tasks of a split."""

from __future__ import annotations

import pytest

from configs.real_data import task_moe as small
from configs.task_moe import few_shot, maml, multi_task, stage1, stage2
from pemt_jax.data import gym_table
from pemt_jax.errors import UserError
from pemt_jax.stages.config import options_of
from pemt_jax.stages.few_shot_config import check_few_shot, titles_of
from pemt_jax.stages.rows import mixing_of, replica_specs


def test_the_grid_is_the_published_one():
  config = few_shot.get_config()
  assert (config.learning_rates, config.batch_sizes) == ((1e-5, 2e-5, 5e-5), (2, 4, 8))
  assert config.samples == (100, 13, 21, 42, 87)
  assert titles_of(config) == gym_table.partition('random')['test']
  train = config.tuned.train
  assert (train.steps, train.warmup_steps, train.eval_every) == (1000, 100, 100)
  assert (train.clip_norm, train.weight_decay, train.label_smoothing, train.reduction) == (
      0.1, 0.01, 0.1, 'sum')
  generation = config.tuned.generation
  assert (generation.num_beams, generation.max_length) == (4, 64)
  other = few_shot.get_config('partition=train_non_nli_test_nli,part=dev,model=t5-small')
  assert titles_of(other) == gym_table.partition('train_non_nli_test_nli')['dev']


def test_multi_task_runs_mix_the_rows_of_all_tasks():
  config = multi_task.get_config()
  spec, = replica_specs(config)
  assert len(spec.parts) == 120 and spec.tasks[0] == 'crossfit/acronym_identification'
  assert config.train.warmup_steps == int(0.06 * config.train.steps)
  assert mixing_of(config).batches == 'mixed'


def test_a_batch_of_meta_learning_has_four_episodes():
  config = maml.get_config()
  assert config.data.batch_size == 4 * 2 * 16 == 4 * 2 * config.method.rows
  assert (mixing_of(config).batches, mixing_of(config).episodes) == ('episodes', 4)
  assert (config.method.inner_rate, config.train.learning_rate) == (3e-5, 1e-5)


def test_both_stages_of_routed_layers_are_the_published_ones():
  first, second = stage1.get_config(), stage2.get_config()
  assert first.train.group_multipliers.to_dict() == {'router': 100.0, 'task_vectors': 1000.0}
  assert second.train.group_multipliers.to_dict() == {'router': 0.0}
  for config, steps in ((first, 30_000), (second, 60_000)):
    train = config.train
    assert (train.steps, train.warmup_steps, train.learning_rate) == (steps, steps * 6 // 100, 1e-5)
    assert (config.data.batch_size, train.accumulate, train.accumulation) == (32, 2, 'sum')
    assert (train.clip_norm, train.weight_decay, train.reduction, train.label_smoothing) == (
        0.1, 0.01, 'sum', 0.1)
    spec, = replica_specs(config)
    assert len(spec.parts) == 120 and not config.data.train_on_validation
    options_of(config)
  assert (first.train.eval_every, second.train.eval_every, second.train.eval_after) == (
      750, 3000, 15_000)
  method = second.method
  assert (method.mode, method.initial_temperature, method.minimum_temperature,
          method.anneal_rate) == ('softmax', 300.0, 1.0, 1e-4)
  for routes, hard in (('average', False), ('task_random', True), ('instance_random', True)):
    config = stage1.get_config(f'routes={routes},start_id=-1')
    assert config.method.hard_prediction == hard and config.generation.start_id is None
    assert not config.train.group_multipliers


def test_all_runs_on_a_small_bart_see_the_same_rows():
  parts = gym_table.partition('random')
  assert len(small.SEEN) == 24 and set(small.SEEN) < set(parts['train'])
  assert len(small.UNSEEN) == 4 and not set(small.UNSEEN) & set(parts['train'])
  first = small.get_config()
  for argument in ('stage=2', 'stage=multi_task', 'routes=average', 'routes=task_random'):
    config = small.get_config(argument)
    options_of(config)
    assert config.tasks == first.tasks
    for part in ('data', 'trainable', 'mixture'):
      assert config[part] == first[part], (argument, part)
    assert config.generation.start_id is None and config.generation.num_beams == 1
    for name in ('steps', 'learning_rate', 'warmup_steps', 'eval_every', 'clip_norm'):
      assert config.train[name] == first.train[name], (argument, name)
  with pytest.raises(UserError, match="'vectors=V' would replace the vectors that the first stage"):
    small.get_config('stage=2,vectors=V')
  grid = small.get_config('stage=few_shot')
  check_few_shot(grid)
  assert titles_of(grid) == small.UNSEEN
  assert len(small.get_config('stage=vectors').tasks) == 28
