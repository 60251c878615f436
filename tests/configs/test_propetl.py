"""The recipes of ProPETL on T5 hold the published numbers."""

from __future__ import annotations

import importlib

import pytest

from pemt_jax.data.tasks import get_task
from pemt_jax.errors import UserError
from pemt_jax.stages.config import options_of
from pemt_jax.training.config import check_train_config

# file, argument -> (model, rate, rows per step, microbatches, steps, evaluation, tokens, decay)
BASE, XL = 't5-base', 't5-3b'
NUMBERS = {
    ('glue', 'form=finetune'): (BASE, 3e-4, 128, 1, 20000, 2000, 128, 128, 0.0),
    ('glue', 'form=adapter'): (BASE, 3e-4, 128, 1, 20000, 2000, 128, 128, 0.0),
    ('glue', None): (BASE, 3e-4, 128, 1, 20000, 2000, 128, 128, 0.0),
    ('glue', 'reduction=16'): (BASE, 3e-4, 128, 1, 20000, 2000, 128, 128, 0.0),
    ('glue_xlarge', 'form=finetune'): (XL, 3e-4, 128, 64, 20000, 2000, 128, 128, 0.0),
    ('glue_xlarge', 'form=adapter'): (XL, 3e-4, 128, 4, 20000, 2000, 128, 128, 0.0),
    ('glue_xlarge', None): (XL, 3e-4, 128, 4, 20000, 2000, 128, 128, 0.0),
    ('ro_en', 'form=finetune'): (BASE, 3e-4, 64, 1, 20000, 1000, 64, 32, 0.01),
    ('ro_en', 'form=adapter'): (BASE, 3e-4, 64, 1, 60000, 5000, 64, 32, 0.01),
    ('ro_en', None): (BASE, 3e-4, 64, 1, 60000, 5000, 64, 32, 0.01),
    ('xsum', 'form=finetune'): (BASE, 1e-4, 64, 2, 100000, 5000, 512, 64, 0.01),
    ('xsum', 'form=adapter'): (BASE, 1e-4, 32, 1, 100000, 5000, 512, 64, 0.01),
    ('xsum', None): (BASE, 1e-4, 32, 1, 100000, 5000, 512, 64, 0.01),
}
# file, argument -> (reduction, density, owners, place)
OPTIONS = {
    ('glue', 'form=adapter'): (12, 1.0, (), 'layer'),
    ('glue', None): (12, 0.3, ('task', 'layer'), 'model'),
    ('glue', 'reduction=16'): (16, 0.3, ('task', 'layer'), 'model'),
    ('glue_xlarge', 'form=adapter'): (128, 1.0, (), 'layer'),
    ('glue_xlarge', None): (128, 0.3, ('task', 'layer'), 'model'),
    ('ro_en', 'form=adapter'): (8, 1.0, (), 'layer'),
    ('ro_en', None): (1, 0.5, ('layer',), 'model'),
    ('xsum', 'form=adapter'): (8, 1.0, (), 'layer'),
    ('xsum', None): (1, 0.5, ('layer',), 'model'),
}


def load(name, *arguments):
  argument = ','.join(filter(None, arguments))
  return importlib.import_module(f'configs.propetl.{name}').get_config(argument or None)


@pytest.mark.parametrize('case', NUMBERS, ids=str)
def test_a_recipe_holds_the_published_numbers(case):
  for published in (0, 1):
    config = load(*case, f'published={published}')
    data, train = config.data, config.train
    check_train_config(train)
    assert (config.model.name, train.learning_rate, data.batch_size, train.accumulate, train.steps,
            train.eval_every, data.max_source_length, data.max_target_length,
            train.weight_decay) == NUMBERS[case]
    assert (train.warmup_steps, train.label_smoothing, train.schedule) == (500, 0.1, 'linear')
    assert all(get_task(task).name == task for task in config.tasks)


@pytest.mark.parametrize('case', OPTIONS, ids=str)
def test_the_options_of_a_recipe(case):
  config = load(*case)
  options = options_of(config)
  assert (options.reduction, options.density, options.masked_by, options.place) == OPTIONS[case]
  assert (options.activation, options.combine, options.form) == ('gelu_new', 'or', 'adapter')
  ratio = 10.0 if options.masked_by else 1.0
  assert dict(config.train.group_multipliers).get('scores', 1.0) == ratio


def test_tasks_and_what_is_published_only():
  sound, published = load('glue'), load('glue', 'published=1')
  assert [task.removeprefix('propetl/') for task in sound.tasks] == [
      'rte', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'cola']
  for config in (sound, published):
    mixture = config.mixture
    assert (mixture.sampling, mixture.temperature, mixture.batches) == ('temperature', 10, 'drawn')
  fields = lambda config: (
      config.train.reduction, options_of(config).first_layer, config.train.first_group,
      config.train.counters, config.train.metric, config.data.compat_splits, config.mixture.seed)
  assert fields(sound) == ('mean', None, '', 'always', 'average_metrics', False, None)
  assert fields(published) == ('sum', 7, 'scores', 'from_first_gradient', '', True, 0)
  assert options_of(load('glue', 'form=adapter', 'published=1')).masked_by == ('layer_task',)


def test_precision_rows_of_validation_and_the_task_in_the_text():
  assert [load('glue_xlarge', form).model.dtype for form in (None, 'form=adapter')] == [
      'float32', 'bfloat16']
  assert [load(name).data.max_validation_rows for name in ('ro_en', 'xsum')] == [None, 1024]
  assert load('ro_en', 'form=finetune').data.max_validation_rows == 256
  assert load('glue', 'form=finetune').data.template == 'name_in_front'


def test_an_unknown_form_is_refused():
  with pytest.raises(UserError, match="form is 'prefix'; choose one of propetl, adapter, finetune"):
    load('glue', 'form=prefix')
