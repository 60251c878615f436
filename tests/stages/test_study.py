"""A study: paired seeds, one grid of rates, controls, and what it reports."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.experts.library import load_expert
from pemt_jax.stages import study, study_summary
from pemt_jax.stages.reuse import SourceExperts, shuffle_experts
from pemt_jax.stages.study_config import (
    add_column, add_condition, set_shared, stage_configs, study_config)
from pemt_jax.trees import flatten
from tests.stages import small

OTHER = 'playground/oath'


def small_study(stage1, backbone):
  """Two columns and two controls on one target, then one of them on another."""
  config = study_config(small.stage1_config(backbone))
  config.sources = (str(stage1.trained.workdir),)
  config.seeds, config.selection_seeds = (0, 1, 2), 1
  config.learning_rates = (1e-2, 1e-1)
  config.reference = 'PEMT'
  config.relations = {small.TARGET: {small.SOURCES[0]: 1.0}}
  make = lambda stage: small.config_of(stage, backbone, (small.TARGET,))
  add_column(config, 'PEMT', make('pemt/stage2'))
  add_column(config, 'prompt', make('prompt'))
  add_column(config, 'shuffled', make('pemt/stage2'), 'shuffled', 'PEMT')
  add_column(config, 'unrelated', make('pemt/stage2'), 'unrelated', 'PEMT')
  add_condition(config, 'main', (small.TARGET, OTHER), 4, ('PEMT', 'prompt'))
  add_condition(config, 'controls', (small.TARGET,), 4, ('shuffled', 'unrelated'))
  return config


@pytest.fixture(name='done', scope='module')
def fixture_done(stage1, backbone, tmp_path_factory):
  folder = tmp_path_factory.mktemp('study')
  return study.run_study(small_study(stage1, backbone), folder), folder


@pytest.mark.slow
def test_every_column_has_every_task_and_seed_once(done):
  result, _ = done
  found = [(one.condition, one.column, one.task, one.seed) for one in result.outcomes]
  assert len(found) == len(set(found))
  for column in ('PEMT', 'prompt', study.FROZEN, study.REUSED):
    for task in (small.TARGET, OTHER):
      assert {seed for *key, seed in found if key == ['main', column, task]} == {0, 1, 2}
  assert {key[1] for key in found if key[0] == 'controls'} == {
      'shuffled', 'unrelated', study.FROZEN, study.REUSED}


@pytest.mark.slow
def test_the_rate_is_the_best_of_the_grid_on_dev_and_controls_take_it_over(done):
  result, folder = done
  rates = {(one.condition, one.column, one.task): set() for one in result.outcomes}
  for one in result.outcomes:
    rates[one.condition, one.column, one.task].add(one.rate)
  assert all(len(own) == 1 for own in rates.values())
  assert rates['controls', 'shuffled', small.TARGET] == rates['main', 'PEMT', small.TARGET]
  grid = tree_files.read_json(folder / 'main' / 'PEMT' / 'grid' / 'result.json')['replicas']
  name = small.TARGET.replace('/', '-')
  dev = {rate: grid[f'{name}-lr{rate:g}']['best_value'] for rate in (1e-2, 1e-1)}
  assert rates['main', 'PEMT', small.TARGET] == {max(dev, key=dev.get)}


@pytest.mark.slow
def test_gates_are_those_of_each_replica(done):
  result, folder = done
  # The control without related sources has one left, hence no gate.
  assert {one.column for one in result.outcomes if one.gates} == {'PEMT', 'shuffled'}
  with np.load(folder / 'main' / 'PEMT' / 'rest' / 'gates.npz') as written:
    rows = dict(zip(map(str, written['replicas']), written['encoder']))
  for one in result.outcomes:
    if (one.condition, one.column) == ('main', 'PEMT') and one.seed > 0:
      name = f"{one.task.replace('/', '-')}-seed{one.seed}"
      np.testing.assert_array_equal(one.gates['encoder'], rows[name])
      assert one.sources == small.SOURCES


@pytest.mark.slow
def test_the_summary_holds_records_tables_and_plots(done):
  result, folder = done
  summary = tree_files.read_json(folder / 'result.json')
  assert len(summary['records']) == len(result.outcomes)
  assert all((folder / figure['file']).is_file() for figure in summary['figures'])
  assert {table['title'].split(' (')[0] for table in summary['tables']} == {
      'Difference to the best other column and to the controls', 'Mean gates'}


@pytest.mark.slow
def test_the_same_study_again_trains_nothing_and_another_one_is_refused(
    done, stage1, backbone, monkeypatch):
  result, folder = done
  read = lambda outcomes: json.dumps([study._plain(one) for one in outcomes])  # NaN is 'NaN'
  with monkeypatch.context() as patch:
    patch.setattr(study, 'run_stage', None)
    again = study.run_study(small_study(stage1, backbone), folder)
  assert read(again.outcomes) == read(result.outcomes)
  config = small_study(stage1, backbone)
  config.learning_rates = (1e-2, 2e-1)
  with pytest.raises(UserError, match='holds a run with config.learning_rates'):
    study.run_study(config, folder)


def outcome(column, value, seed, condition='main', task='a'):
  return study.Outcome(condition, column, task, seed, value, value, 0.1)


def result_of(outcomes, skill=None):
  config = study_config(None)
  config.reference = 'PEMT'
  config.relations = {'a': {'s': 1.0}}
  add_condition(config, 'main', ('a',), 4, ())
  for name, bank in (('PEMT', 'trained'), ('x', 'trained'), ('y', 'trained'), ('z', 'shuffled')):
    add_column(config, name, None, bank)
  return study.StudyResult(config, list(outcomes), skill or {}, 0.0)


def test_the_gain_is_paired_and_against_the_best_mean():
  outcomes = [outcome('PEMT', 80 + s, s) for s in range(4)]
  outcomes += [outcome('x', 70 + s, s) for s in range(4)] + [outcome('y', 60, s) for s in range(4)]
  outcomes += [outcome('z', 75 + s + s % 2, s) for s in range(4)]
  best, control = study_summary.gain_rows(result_of(outcomes))
  assert (best['other'], best['difference'], best['control']) == ('x', 10.0, False)
  assert best['low'] == best['high'] == 10.0   # Every seed has the same difference.
  assert (control['other'], control['difference'], control['control']) == ('z', 4.5, True)
  assert control['low'] < 4.5 < control['high']


def test_the_true_source_leads_by_the_layers_that_hold_skill():
  quiet, loud = np.array([[0.9, 0.1]]), np.array([[0.2, 0.8]])
  own = {'gates': {'encoder': loud, 'decoder': quiet}, 'sources': ('t', 's')}
  outcomes = [dataclasses.replace(outcome('PEMT', 1.0, s, task='a@noise=0.1'), **own)
              for s in range(2)]
  skill = {'encoder': np.array([30.0]), 'decoder': np.array([-1.0])}
  plain, weighted = study_summary.gate_rows(result_of(outcomes, skill))
  assert plain['true_lead'] == 0.0 and weighted['true_lead'] == 1.0
  np.testing.assert_allclose(plain['mean'], [0.55, 0.45])
  np.testing.assert_allclose(weighted['mean'], [0.2, 0.8])


@pytest.mark.slow
def test_reused_experts_score_what_their_run_reports(stage1, backbone, workdir):
  folders = (str(stage1.trained.workdir),)
  experts = SourceExperts(folders, small.stage1_config(backbone), (small.TARGET,), workdir,
                          stage1.stage.backbone)
  assert experts.names == small.SOURCES
  for i, task in enumerate(small.SOURCES):
    name = task.replace('/', '-')
    wanted = stage1.trained.results[name]['final_metrics']['average_metrics']
    assert experts.scores(task, 'test')[i] == pytest.approx(wanted)
  assert len(experts.scores(small.TARGET, 'test')) == 2
  assert {stack: lost.shape for stack, lost in experts.skill_by_layer().items()} == {
      'encoder': (1,), 'decoder': (1,)}


@pytest.mark.slow
def test_shuffled_experts_keep_their_entries_and_lose_their_order(stage1, workdir):
  folders = (str(stage1.trained.workdir),)
  for copy, own in zip(shuffle_experts(folders, workdir), stage1.experts.values(), strict=True):
    before, after = flatten(load_expert(own)[0]), flatten(load_expert(copy)[0])
    for path, leaf in before.items():
      if '/mlp/wo/' in path:
        assert not np.array_equal(leaf, after[path])
        np.testing.assert_array_equal(np.sort(leaf.reshape(len(leaf), -1)),
                                      np.sort(after[path].reshape(len(leaf), -1)))
      else:
        np.testing.assert_array_equal(leaf, after[path])
  assert shuffle_experts(folders, workdir) == shuffle_experts(folders, workdir)


@pytest.mark.parametrize('change, sentence', [
    (lambda c: c.update(learning_rates=()),
     'the study has no grid of rates; set config.learning_rates.'),
    (lambda c: c.update(order=()),
     'the study has no condition; give config.conditions targets and columns.'),
    (lambda c: c.conditions.main.update(columns=('lora',)),
     "conditions.columns is 'lora'; choose one of PEMT, x, y, z."),
    (lambda c: c.columns.PEMT.update(bank='random'),
     "columns.bank is 'random'; choose one of trained, shuffled, unrelated."),
])
def test_user_errors_of_a_study(change, sentence, workdir):
  config = result_of(()).config
  config.learning_rates = (1e-2,)
  config.conditions.main.columns = ('PEMT',)
  with config.unlocked():
    change(config)
  with pytest.raises(UserError) as caught:
    study.run_study(config, workdir)
  assert str(caught.value) == sentence


def test_backbone_and_root_of_a_study_reach_all_stages():
  config = study_config(small.config_of('pemt/stage1', 'old'))
  add_column(config, 'a', small.config_of('prompt', 'old'))
  config.model, config.root = 'new', 'rows'
  set_shared(config)
  assert {(own.model.name, own.data.root) for own in stage_configs(config)} == {('new', 'rows')}


def test_a_control_needs_the_rates_of_an_earlier_column(stage1, backbone, workdir):
  config = small_study(stage1, backbone)
  config.order, config.frozen, config.reused = ('controls',), False, False
  with pytest.raises(UserError) as caught:
    study.run_study(config, workdir)
  assert str(caught.value) == (
      "column 'shuffled' takes the rates of 'PEMT', which has none for playground/charm yet; let"
      " 'PEMT' run in an earlier condition.")
