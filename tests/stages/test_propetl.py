"""ProPETL as a stage: a mixture of tasks under masks, its expert whole and packed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.experts import mask_analysis, packed
from pemt_jax.experts.library import load_card, load_expert
from pemt_jax.reports.files import read_masks
from pemt_jax.stages.artefacts import open_expert
from pemt_jax.stages.run import run_stage
from pemt_jax.trees import flatten
from tests.stages import small


@pytest.fixture(scope='module')
def trained(base, backbone):
  """Two tasks, each batch of one of them; the first step moves scores only."""
  config = small.config_of(
      'propetl', backbone, mixture__sampling='temperature', mixture__batches='drawn',
      train__first_group='scores', train__group_multipliers={'scores': 10.0},
      train__reduction='sum', train__label_smoothing=0.1, train__eval_every=1)
  return run_stage(config, base / 'propetl')


def test_masks_follow_the_tasks_of_the_mixture(trained):
  leaves = small.leaves_of(trained.experts['mixture'])
  assert leaves['deltas/propetl/task/down_kernel'].shape[0] == len(small.SOURCES)
  delta = trained.stage.method.plan.rules[0].delta
  assert delta.one_task and delta.members == ((0, 0), (1, 0))
  metrics = trained.trained.results['mixture']['final_metrics']
  assert all(np.isfinite(metrics[f'{task}/loss']) for task in small.SOURCES)


def test_groups_have_rates_of_their_own_in_the_metrics(trained, base):
  lines = [json.loads(line) for path in (base / 'propetl').rglob('metrics.jsonl')
           for line in path.read_text().splitlines()]
  first = next(line for line in lines if 'train/learning_rate_scores' in line)
  assert {'train/learning_rate_scores', 'train/learning_rate_prototype'} <= set(first)


def test_overlaps_of_the_masks_are_written_for_the_report(trained, base):
  found = read_masks(base / 'propetl' / 'masks.npz')
  assert found.members == {'task': small.SOURCES, 'layer': ('encoder 1', 'decoder 1')}
  tuned, _, card = load_expert(trained.experts['mixture'])
  tasks = mask_analysis.masks_of(tuned, card.plan, 'task', small.SOURCES)
  np.testing.assert_allclose(found.overlaps['task'][0], mask_analysis.overlap(tasks))
  assert found.joined.columns == small.SOURCES and found.joined.matrix.min() > 0.3


def scores_of(folder):
  """Scores of an expert on the test split."""
  loaded = open_expert(folder)
  replica = loaded.stage.experiment().replicas[0]
  return loaded.stage.evaluator(loaded.tuned, loaded.stage.start.frozen, loaded.constants,
                                (replica,), 'test')[0]


def test_a_packed_expert_scores_as_the_expert_did(trained, base):
  folder = trained.experts['mixture']
  small_folder = packed.pack_expert(folder, base / 'packed')
  assert scores_of(small_folder) == pytest.approx(scores_of(folder), rel=1e-6)
  storage = load_card(small_folder).extra['storage']
  size = (small_folder / 'packed.safetensors').stat().st_size
  assert storage['bytes'] <= size <= storage['bytes'] + 3000
  leaves = flatten(load_expert(small_folder)[0])
  task = packed.read_task(small_folder / 'packed.safetensors', 1)
  for path, mask in task.items():
    np.testing.assert_array_equal(mask, leaves[path][1])


def test_a_packed_prefix_has_rows_in_place_of_their_network(base, backbone):
  config = small.config_of(
      'propetl', backbone, (small.TARGET,), method__form='prefix', method__length=2,
      method__hidden=3, method__owners=('layer',), train__eval_every='never')
  folder = next(iter(run_stage(config, base / 'prefix').experts.values()))
  small_folder = packed.pack_expert(folder, base / 'packed_prefix')
  leaves = small.leaves_of(small_folder)
  assert [path for path in leaves if path.startswith('deltas/')] == ['deltas/propetl/rows']
  assert scores_of(small_folder) == pytest.approx(scores_of(folder), rel=1e-5)
