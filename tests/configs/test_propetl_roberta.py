"""The recipes of ProPETL on RoBERTa hold the published numbers."""

from __future__ import annotations

import pytest

from configs.propetl.roberta_glue import ROWS, get_config
from pemt_jax.data.tasks import get_task
from pemt_jax.errors import UserError
from pemt_jax.methods import zoo
from pemt_jax.models.roberta_config import PUBLISHED
from pemt_jax.stages.config import data_config, options_of

# form -> (density, rate of the scores)
FORMS = {'adapter': (0.5, 3e-3), 'lora': (0.1, 3e-2), 'prefix': (0.1, 1e-4)}


@pytest.mark.parametrize('form', FORMS)
def test_a_recipe_holds_the_published_numbers(form):
  config = get_config(f'task=mnli,form={form}')
  train, options = config.train, options_of(config)
  density, rate = FORMS[form]
  assert options.density == density
  assert train.learning_rate * train.group_multipliers.scores == pytest.approx(rate)
  assert (train.learning_rate, train.weight_decay, config.data.batch_size,
          config.data.max_source_length) == (1e-4, 0.1, 128, 128)
  assert (train.epochs, train.warmup_steps) == (10.0, 3061)
  assert (config.seeds, config.model.name) == ((42, 43, 44), 'roberta-base')
  assert (options.reduction, options.rank, options.alpha, options.length) == (12, 32, 48.0, 64)
  method = zoo.make('propetl', options, PUBLISHED['roberta-base'], 0)
  assert {group for _, group in method.tuned} == {'scores', 'prototype', 'head', 'frozen'}


def test_small_tasks_train_longer_and_without_masks_there_are_no_scores():
  config = get_config('task=rte,form=lora,shared=0')
  assert (config.train.epochs, config.train.warmup_steps) == (20.0, 40)
  options = options_of(config)
  assert not options.masked_by and options.place == 'layer'
  method = zoo.make('propetl', options, PUBLISHED['roberta-base'], 0)
  assert 'scores' not in {group for _, group in method.tuned}


@pytest.mark.parametrize('task', ROWS)
def test_every_task_has_rows_in_pairs_and_a_split(task):
  config = get_config(f'task={task}')
  assert get_task(config.tasks[0]).template_named('pair')
  assert data_config(config).split_rule == 'halved_or_cut'


@pytest.mark.parametrize('argument', ['task=boolq', 'form=ia3'])
def test_unknown_words_are_told(argument):
  with pytest.raises(UserError, match=argument.partition('=')[2]):
    get_config(argument)
