"""Cores and routed feed-forwards as stages: training, load of experts, experts opened again."""

from __future__ import annotations

import numpy as np
import pytest

from pemt_jax.reports.files import read_gates
from pemt_jax.stages.artefacts import open_expert
from pemt_jax.stages.run import run_stage
from tests.stages import small

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def trained(base, backbone):
  """Two tasks as replicas; the central cores stay."""
  config = small.config_of('switch', backbone, train__group_multipliers={'router': 2.0})
  config.method.update({'experts': 'mpo', 'count': 2, 'cores': 3, 'freeze': (1,),
                        'balance_weight': 0.01})
  return run_stage(config, base / 'switch')


def test_the_load_of_experts_is_written_for_the_report(trained, base):
  found = read_gates(base / 'switch' / 'load.npz')
  assert found.sources == ('expert 0', 'expert 1') and len(found.targets) == len(small.SOURCES)
  for load in found.stacks.values():
    np.testing.assert_allclose(load.sum(axis=-1), 1.0, rtol=1e-5)


def test_experts_move_apart_and_frozen_cores_are_not_stored(trained):
  leaves = small.leaves_of(next(iter(trained.experts.values())))
  start = 'encoder/layers/mlp/whole/switch/wi'
  assert f'{start}/core_1' not in leaves
  first, second = leaves[f'{start}/core_0'][0]
  assert np.abs(first - second).max() > 0


def assert_scores_come_again(result):
  (name, folder), *_ = result.experts.items()
  loaded = open_expert(folder)
  replica = loaded.stage.experiment().replicas[0]
  scores = loaded.stage.evaluator(loaded.tuned, loaded.stage.start.frozen, loaded.constants,
                                  (replica,), 'test')[0]
  wanted = result.trained.results[name]['final_metrics']
  np.testing.assert_allclose(scores['loss'], wanted['loss'], rtol=1e-4)


def test_an_expert_gives_its_scores_again(trained):
  assert_scores_come_again(trained)


@pytest.mark.parametrize('write', [small.write_bart, small.write_gpt2])
def test_cores_and_experts_together_run_on_other_backbones(write, tmp_path):
  config = small.config_of('top2+mpo', write(tmp_path / 'backbone'), small.SOURCES[:1], steps=1,
                           train__eval_every=1)
  config.method.top2.update({'experts': 'mpo', 'count': 3, 'cores': 3})
  config.method.mpo.update({'components': ('word_embed', 'attention'), 'cores': 3,
                            'embed_rank': 8})
  result = run_stage(config, tmp_path / 'run')
  loss, = (value['final_metrics']['loss'] for value in result.trained.results.values())
  assert np.isfinite(loss)
  assert_scores_come_again(result)
