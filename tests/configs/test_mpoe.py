"""The recipes of MPOE and HyperFormer hold the published numbers."""

from __future__ import annotations

import importlib

import pytest

from pemt_jax.data.tasks import get_task
from pemt_jax.errors import UserError
from pemt_jax.stages.config import options_of
from pemt_jax.training.config import check_train_config

EIGHT = ('rte', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'cola')
BASE = 't5-base'
# file -> (model, rate, warm-up, steps, epochs, rows per step, evaluation, text, tasks)
NUMBERS = {
    'multi_task': (BASE, 3e-5, 500, 65536, 5.0, 32, 1000, 'name_in_front', EIGHT),
    'single_task': (BASE, 2e-6, 320, 0, 1.0, 32, 250, 'name_in_front', ('cola',)),
    'single_task_large': ('t5-large', 1e-4, 320, 0, 3.0, 4, 250, 'name_in_front', ('cola',)),
    'single_task_bert': ('bert-base-uncased', 1e-5, 320, 0, 3.0, 32, 250, 'pair', ('cola',)),
    **{name: (BASE, 3e-4, 500, 65536, 5.0, 32, 1000, 'default', EIGHT)
       for name in ('adapters', 'hyperformer', 'hyperformer_pp')},
}
TEXT_TO_TEXT = tuple(name for name in NUMBERS if name != 'single_task_bert')
ADAPTERS = {'adapters': 'adapter_controller', 'hyperformer': 'hyperformer',
            'hyperformer_pp': 'hyperformer_pp'}
STAGES = ADAPTERS | {'single_task_bert': 'mpo'}
EXPERTS = {'multi_task': 4, 'single_task': 8, 'single_task_large': 3}


def load(name, argument=None):
  return importlib.import_module(f'configs.mpoe.{name}').get_config(argument)


@pytest.mark.parametrize('name', NUMBERS)
def test_a_recipe_holds_the_published_numbers(name):
  config = load(name)
  data, train = config.data, config.train
  check_train_config(train)
  assert (config.model.name, train.learning_rate, train.warmup_steps, train.steps, train.epochs,
          data.batch_size, train.eval_every, data.template) == NUMBERS[name][:-1]
  assert config.tasks == tuple(f'hyperformer/{task}' for task in NUMBERS[name][-1])
  assert config.stage == STAGES.get(name, 'switch')
  for task in config.tasks:
    get_task(task).template_named(data.template)
  assert (train.schedule, train.weight_decay, train.clip_norm, train.epsilon, config.seeds,
          data.data_seed) == ('linear', 0.0, 1.0, 1e-8, (42,), 42)
  assert (data.max_source_length, data.max_target_length) == (128, 128)
  assert train.selection_split == 'validation'


@pytest.mark.parametrize('name', TEXT_TO_TEXT)
def test_losses_mixtures_and_what_is_published_only(name):
  sound, published = load(name), load(name, 'published=1')
  for config in (sound, published):
    assert (config.train.label_smoothing, config.train.reduction) == (0.1, 'sum')
    assert config.generation.by_task
    mixture = config.mixture
    if len(config.tasks) > 1:
      assert (mixture.sampling, mixture.temperature, mixture.batches, mixture.average) == (
          'temperature', 10.0, 'drawn', 'values')
  fields = lambda config: (
      config.train.selection_split, config.data.compat_drop_last,
      config.data.compat_truncated_targets, config.generation.compat_length_in_average)
  assert fields(sound) == ('validation', False, False, False)
  assert fields(published) == ('test', True, True, True)
  assert published.mixture.seed == (0 if len(published.tasks) > 1 else None)


@pytest.mark.parametrize('name', ADAPTERS)
def test_options_of_adapters(name):
  options = options_of(load(name))
  assert (options.reduction, options.activation, options.pre_norm, options.post_norm,
          options.tune_norms, options.tune_head, options.stddev) == (
              32, 'gelu_new', False, True, True, False, 0.01)
  if name != 'adapters':
    assert (options.size, options.hidden, options.projected, options.conditional_norms,
            options.project_tasks, options.joint_norm) == (64, 128, 64, True, False, True)
  alone = load(name, 'task=mrpc,reduction=16')
  assert alone.tasks == ('hyperformer/mrpc',) and options_of(alone).reduction == 16
  assert not alone.mixture.sampling


@pytest.mark.parametrize('name', EXPERTS)
def test_forms_of_the_feed_forwards(name):
  options = options_of(load(name))
  assert (options.experts, options.count, options.rank, options.tune_backbone) == (
      'mpo', EXPERTS[name], 0, True)
  forms = {'dense': 'full', 'mpo': 'mpo', 'switch': 'switch', 'top2': 'top2', 'mpoe_top2': 'top2'}
  found = {form: load(name, f'form={form},experts=16') for form in forms}
  assert {form: config.stage for form, config in found.items()} == forms
  assert [(options_of(found[form]).experts, options_of(found[form]).count)
          for form in ('switch', 'mpoe_top2')] == [('dense', 16), ('mpo', 16)]


def test_other_numbers_of_a_single_task_and_an_unknown_form():
  config = load('single_task', 'task=rte,rate=1e-5,epochs=3')
  assert (config.tasks, config.train.learning_rate, config.train.epochs) == (
      ('hyperformer/rte',), 1e-5, 3.0)
  assert load('single_task_bert', 'form=dense').stage == 'full'
  with pytest.raises(UserError, match="argument form is 'wide'; choose one of dense, mpo, switch"):
    load('single_task', 'form=wide')
