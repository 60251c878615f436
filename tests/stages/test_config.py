"""Configs of stages: differences of single tasks, arguments of config files, JSON and back."""

from __future__ import annotations

import json

import ml_collections as mlc
import pytest

from pemt_jax.data.datasets import load_task
from pemt_jax.errors import UserError
from pemt_jax.methods import pemt
from pemt_jax.stages.artefacts import config_from_json
from pemt_jax.stages.config import (
    base_config, data_config, for_task, options_of, parse_argument, stage_names)
from pemt_jax.stages.rows import replica_specs


def with_differences(tasks=('rte', 'superglue-cb'), **differences):
  config = base_config('pemt/stage1')
  config.tasks = tasks
  with config.per_task.unlocked():
    for name, values in differences.items():
      config.per_task[name] = mlc.ConfigDict(values)
  return config


def test_differences_reach_their_task_and_no_other():
  config = with_differences(**{
      'rte': {'data': {'batch_size': 7, 'few_shot': 3}, 'train': {'epochs': 2, 'warmup_steps': 9}},
      'super_glue-cb': {'data': {'max_source_length': 64}}})
  rte, cb = (spec.config for spec in replica_specs(config))
  assert (rte.data.batch_size, rte.data.few_shot, rte.train.epochs) == (7, 3, 2.0)
  assert (cb.data.batch_size, cb.data.few_shot, cb.train.epochs) == (32, None, 5.0)
  assert (rte.data.max_source_length, cb.data.max_source_length) == (256, 64)
  assert config.data.batch_size == 32 and config.train.warmup_steps == 0


def test_a_task_with_a_program_of_its_own_may_be_evaluated_differently():
  differences = {'rte': {'train': {'eval_every': 25, 'patience': 2}}}
  alone = for_task(with_differences(('rte',), **differences), 'rte')
  assert (alone.train.eval_every, alone.train.patience) == (25, 2)
  alone.train.eval_every = 'never'   # the field still takes a word as well as a number
  alone.train.eval_every = 5
  apart = with_differences(**differences)
  apart.together = 'task'
  assert for_task(apart, 'rte').train.eval_every == 25
  assert for_task(apart, 'superglue-cb').train.eval_every == 'epoch'


@pytest.mark.parametrize('differences, sentence', [
    ({'data': {'batchsize': 7}},
     "per_task.rte changes 'data.batchsize', which is no config field; correct it."),
    ({'batch_size': 7}, "per_task.rte changes 'batch_size', which is no config field; correct it."),
    ({'train': {'eval_every': 25}},
     "per_task.rte changes 'train.eval_every', which all replicas of a program share; set "
     'config.together=task or give the task a config of its own.'),
    ({'method': {'rank': 4}}, "per_task.rte changes 'method.rank', which all tasks of a config "
     'share; only data and train may differ.'),
    ({'data': {'batch_size': 'big'}},
     "per_task.rte sets 'data.batch_size' to 'big', which is no int; correct it."),
], ids=lambda value: '' if isinstance(value, str) else next(iter(value)))
def test_a_difference_that_cannot_be_is_an_error(differences, sentence):
  with pytest.raises(UserError) as error:
    replica_specs(with_differences(rte=differences))
  assert str(error.value) == sentence


def test_differences_of_an_unknown_task_are_an_error():
  with pytest.raises(UserError, match="there is no task 'rtee'"):
    replica_specs(with_differences(rtee={'data': {'batch_size': 7}}))


@pytest.mark.parametrize('text, expected', [
    (None, ('rte', 8, 0.5)), ('', ('rte', 8, 0.5)), ('k=4', ('rte', 4, 0.5)),
    ('task=cb,k=16,rate=1', ('cb', 16, 1.0))])
def test_arguments_of_a_config_file(text, expected):
  found = parse_argument(text, task='rte', k=8, rate=0.5)
  assert tuple(found.values()) == expected


@pytest.mark.parametrize('text, sentence', [
    ('shots=4', "config argument 'shots=4' is unknown; give task, k as name=value, separated by "
     'commas.'),
    ('cb', "config argument 'cb' is unknown; give task, k as name=value, separated by commas."),
    ('task', "config argument 'task' is unknown; give task, k as name=value, separated by commas."),
    ('k=few', "config argument 'k=few' is no int; correct it.")])
def test_a_wrong_argument_is_an_error(text, sentence):
  with pytest.raises(UserError) as error:
    parse_argument(text, task='rte', k=8)
  assert str(error.value) == sentence


@pytest.mark.parametrize('stage', (*stage_names(), 'adapter+lora'))
def test_a_config_survives_json(stage):
  config = with_differences(rte={'data': {'batch_size': 7}, 'train': {'epochs': 2.0}})
  config.stage = stage
  with config.unlocked():
    config.method, config.prompt = base_config(stage).method, base_config(stage).prompt
    config.data.files.train = 'rows.tsv'
    config.train.row_axes = (('.*/up', 1),)
  config.data.few_shot = 4
  config.train.eval_every = 50
  again = config_from_json(json.loads(json.dumps(config.to_dict())))
  assert again.to_dict() == config.to_dict()
  assert again.is_locked and options_of(again) == options_of(config)
  again.train.eval_every = 'epoch'   # fields keep their kinds
  again.data.few_shot = None


def test_options_of_a_method_come_from_its_config():
  config = base_config('pemt/stage2')
  assert options_of(config) == pemt.Stage2Options()
  config.method.decoder_layers = ()
  config.method.tune_gate = False
  assert options_of(config) == pemt.Stage2Options(decoder_layers=(), tune_gate=False)


def test_files_of_rows_reach_the_data():
  config = base_config('adapter')
  assert data_config(config).files == {}
  config.data.files.train = 'rows.tsv'
  config.data.split_names.test = 'validation'
  found = data_config(config)
  assert found.files == {'train': 'rows.tsv'} and found.split_names == {'test': 'validation'}


def test_few_shot_rows_differ_between_seeds_only_where_asked():
  config = base_config('adapter')
  config.tasks = ('playground/charm',)
  config.data.source = 'playground'
  config.data.few_shot = 2
  config.seeds = (0, 1)

  def rows():
    return [load_task(spec.task, 'train', data_config(spec.config, spec.seed)).examples
            for spec in replica_specs(config)]

  first, second = rows()
  assert first == second and len(first) == 4
  config.few_shot_by_seed = True
  first, second = rows()
  assert first != second and len(first) == len(second) == 4


@pytest.mark.parametrize('tasks, sentence', [
    ((), 'the config names no task; set config.tasks to task names.'),
    (('rte', 'glue-rte'), 'config.tasks names a task twice: rte, rte; list each once.'),
    (('rte,superglue-cb',), "config.tasks holds 'rte,superglue-cb' as one task; write "
     '--config.tasks="(\'rte\', \'superglue-cb\')" for several.'),
])
def test_wrong_tasks_are_an_error(tasks, sentence):
  config = base_config('adapter')
  config.tasks = tasks
  with pytest.raises(UserError) as error:
    replica_specs(config)
  assert str(error.value) == sentence


def test_an_unknown_stage_is_an_error():
  with pytest.raises(UserError) as error:
    base_config('pemt/stage3')
  sentence = str(error.value)
  assert sentence.startswith("stage 'pemt/stage3' is unknown; choose one of pemt/stage1, ")
  assert "joined by '+', of adapter, lora, " in sentence


def test_names_of_replicas_carry_only_what_differs():
  config = base_config('adapter')
  config.tasks = ('rte', 'playground/charm')
  assert [spec.name for spec in replica_specs(config)] == ['rte', 'playground-charm']
  config.tasks, config.seeds, config.learning_rates = ('rte',), (1, 2), (1e-3, 3e-4)
  assert [spec.name for spec in replica_specs(config)] == [
      'rte-seed1-lr0.001', 'rte-seed1-lr0.0003', 'rte-seed2-lr0.001', 'rte-seed2-lr0.0003']


def test_cards_of_earlier_versions_say_whether_layers_are_recomputed():
  read = lambda remat: config_from_json({'stage': 'lora', 'model': {'remat': remat}}).model.remat
  assert [read(False), read(True), read('dots')] == ['none', 'full', 'dots']
