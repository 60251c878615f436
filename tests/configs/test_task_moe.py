"""Configs of the few-shot gym: the published numbers, the tasks of a split."""

from __future__ import annotations

from configs.task_moe import few_shot, maml, multi_task
from pemt_jax.data import gym_table
from pemt_jax.stages.few_shot_config import titles_of
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
