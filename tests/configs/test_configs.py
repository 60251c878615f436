"""Every config states the numbers of its source; arXiv 2402.15082 and its scripts."""

from __future__ import annotations

import importlib
import json
import pathlib

import pytest

from configs.pemt import presets
from pemt_jax.data.tasks import get_task
from pemt_jax.errors import UserError
from pemt_jax.stages.config import for_task, options_of
from pemt_jax.stages.ensembling_config import ENSEMBLING, check_ensembling
from pemt_jax.stages.few_shot_config import FEW_SHOT, check_few_shot
from pemt_jax.stages.squeezing import SQUEEZING, check_squeezing
from pemt_jax.stages.study_config import STUDY, check_study, stage_configs
from pemt_jax.training.config import check_train_config

REPO = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = [path.relative_to(REPO) for path in sorted((REPO / 'configs').glob('*/*.py'))
           if 'def get_config' in path.read_text()]


def load(name):
  return importlib.import_module(f'configs.{name}').get_config


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_a_config_loads_is_locked_and_holds_good_values(path):
  config = importlib.import_module('.'.join(path.with_suffix('').parts)).get_config()
  assert config.is_locked
  json.loads(config.to_json())
  stages = (config,)
  if config.stage == STUDY:
    check_study(config)
    stages = stage_configs(config)
  elif config.stage == ENSEMBLING:
    check_ensembling(config)
    stages = (config.source, config.target)
  elif config.stage == FEW_SHOT:
    check_few_shot(config)
    stages = (config.tuned,)
  elif config.stage == SQUEEZING:
    check_squeezing(config)
    stages = (config.run,)
  for stage in stages:
    check_train_config(stage.train)
    options_of(stage)
    for task in stage.tasks:
      for_task(stage, get_task(task).name)


def numbers(config, task=None):
  """(learning rate, epochs, batch, evaluation batch, warm-up, length) of one task."""
  own = for_task(config, task or config.tasks[0])
  return (own.train.learning_rate, own.train.epochs, own.data.batch_size, own.data.eval_batch_size,
          own.train.warmup_steps, own.data.max_source_length)


def test_stage1_is_the_published_script():
  config = load('pemt.stage1')()
  assert config.tasks == ('mnli', 'qnli', 'qqp', 'sst2', 'squad', 'superglue-record')
  assert config.model.name == 't5-base' and config.seeds == (42,)
  for task in config.tasks:
    assert numbers(config, task) == (5e-4, 5.0, 128, 256, 500, 256)
  options = options_of(config)
  assert (options.expert, options.rank, options.alpha, options.prompt) == ('lora', 64, 64.0, True)
  adapter = load('pemt.stage1_adapter')()
  assert numbers(adapter) == (5e-4, 5.0, 128, 256, 500, 256)
  assert (options_of(adapter).expert, options_of(adapter).reduction) == ('adapter', 48)


def test_stage2_is_the_published_script():
  config = load('pemt.stage2')()
  assert (config.tasks, config.seeds) == (('superglue-cb',), (4096,))
  assert numbers(config) == (3e-4, 20.0, 32, 128, 0, 256)
  options = options_of(config)
  assert (options.reduction, options.activation, options.sparsity_weight) == (16, 'gelu_new', 0.1)
  assert (options.correlation_dropout, options.gate_temperature) == (0.1, 1.0)
  train = config.train
  assert (train.optimizer, train.schedule, train.clip_norm) == ('adamw', 'linear', 1.0)
  assert (train.beta1, train.beta2, train.epsilon, train.weight_decay) == (0.9, 0.999, 1e-8, 0.0)
  assert (train.eval_every, train.metric, train.final_split) == ('epoch', 'average_metrics', 'test')
  assert (config.generation.max_length, config.generation.num_beams) == (20, None)
  assert load('pemt.stage2')('grid=1').learning_rates == (6e-4, 1e-3, 3e-4)


@pytest.mark.parametrize('shots', [8, 16])
def test_few_shot_is_the_published_script(shots):
  config = load('pemt.stage2_few_shot')(f'k={shots}')
  assert numbers(config) == (3e-4, 20.0, shots, 128, 0, 256)
  assert (config.data.few_shot, config.data.data_seed, config.seeds) == (shots, 42, (4096,))


# Batch, epochs, length that the authors set for single tasks.
STAGE2 = {'cola': (100, 20, 256), 'rte': (64, 20, 256), 'superglue-cb': (32, 20, 256),
          'superglue-wsc-fixed': (32, 20, 256), 'mrpc': (100, 20, 256), 'stsb': (100, 20, 256),
          'superglue-wic': (100, 20, 256), 'superglue-boolq': (64, 20, 256),
          'superglue-multirc': (64, 10, 348), 'nq': (32, 5, 512), 'newsqa': (32, 5, 512),
          'searchqa': (32, 5, 512), 'hotpotqa': (32, 5, 512), 'paws': (100, 20, 256)}
STAGE1 = {'superglue-multirc': (64, 10, 348), 'superglue-boolq': (128, 20, 256),
          'superglue-wic': (128, 20, 256), 'superglue-cb': (32, 20, 256),
          'superglue-wsc-fixed': (32, 20, 256), 'nq': (64, 5, 512), 'newsqa': (64, 5, 512),
          'hotpotqa': (64, 5, 512), 'searchqa': (64, 5, 512), 'paws': (128, 20, 256),
          'scitail': (128, 20, 256), 'winogrande': (128, 20, 256), 'yelp_polarity': (100, 5, 256)}


@pytest.mark.parametrize('stage, table, rate', [
    ('pemt.stage1', STAGE1, 5e-4), ('pemt.stage2', STAGE2, 3e-4)], ids=['stage1', 'stage2'])
def test_presets_hold_and_print_the_numbers_of_the_authors(stage, table, rate):
  for task, (batch, epochs, length) in table.items():
    config = load(stage)(f'task={task}' + (',preset=1' if stage == 'pemt.stage2' else ''))
    found = numbers(config)
    assert (found[0], *found[1:3], found[4], found[5]) == (rate, epochs, batch, 0, length), task
    printed = str(for_task(config, task))
    assert f'batch_size: {batch}\n' in printed and f'max_source_length: {length}\n' in printed
    assert f'epochs: {float(epochs)}\n' in printed


def test_a_preset_is_asked_for():
  assert numbers(load('pemt.stage2')('task=superglue-multirc')) == (3e-4, 20.0, 32, 128, 0, 256)


def test_all_sources_of_the_study_in_one_config():
  config = load('pemt.stage1')('pool=1')
  assert config.tasks == presets.POOL
  assert numbers(config, 'mnli') == (5e-4, 5.0, 128, 256, 500, 256)
  for task, (batch, epochs, length) in STAGE1.items():
    assert numbers(config, task) == (5e-4, epochs, batch, 256, 0, length)


@pytest.mark.parametrize('count', presets.POOL_COUNTS)
def test_source_count_study_leaves_the_target_out(count):
  config = load('pemt.source_count')(f'task=superglue-cb,count={count},library=lib')
  pool = [name for name in presets.POOL if name != 'superglue-cb']
  assert config.sources == tuple(f'lib/{name}' for name in pool[:count])
  assert len(presets.POOL) == 19 and presets.POOL_COUNTS == (18, 16, 14)
  assert load('pemt.source_count')().sources[0] == 'runs/pemt/stage1/experts/mnli'


@pytest.mark.parametrize('name, argument', [
    ('pemt.stage1', 'tsk=rte'), ('pemt.stage2', 'k=4'), ('pemt.stage2_few_shot', 'k=many'),
    ('real_data.stage2', 'shots=4')])
def test_a_wrong_argument_is_an_error(name, argument):
  with pytest.raises(UserError, match=f"config argument '{argument}' is"):
    load(name)(argument)
