"""ProPETL as a stage: a mixture of tasks under masks, its expert whole and packed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.experts import mask_analysis, packed
from pemt_jax.experts.library import load_card, load_expert
from pemt_jax.reports.files import read_masks
from pemt_jax.stages.artefacts import open_expert
from pemt_jax.stages.build import build
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


@pytest.mark.slow
def test_a_packed_prefix_has_rows_in_place_of_their_network(base, backbone):
  config = small.config_of(
      'propetl', backbone, (small.TARGET,), method__form='prefix', method__length=2,
      method__hidden=3, method__owners=('layer',), train__eval_every='never')
  folder = next(iter(run_stage(config, base / 'prefix').experts.values()))
  small_folder = packed.pack_expert(folder, base / 'packed_prefix')
  leaves = small.leaves_of(small_folder)
  assert [path for path in leaves if path.startswith('deltas/')] == ['deltas/propetl/rows']
  assert scores_of(small_folder) == pytest.approx(scores_of(folder), rel=1e-5)


@pytest.fixture(scope='module')
def banked(trained, base, backbone):
  """A target on the packed masks of both tasks; one evaluation at the start, nothing selected."""
  folder = packed.pack_expert(trained.experts['mixture'], base / 'bank' / 'both')
  config = small.config_of(
      'pemt/stage2', backbone, (small.TARGET,), sources=(str(folder),), data__few_shot=6,
      train__metric='', train__eval_every=1)
  return run_stage(config, base / 'banked', trained.stage.backbone)


def test_packed_masks_are_the_bank_of_a_second_stage(banked, trained, base):
  assert banked.stage.sources.names == small.SOURCES
  frozen = flatten(banked.stage.start.frozen)
  masks = {path: leaf for path, leaf in frozen.items() if 'pemt' in path and leaf.dtype == np.uint8}
  stored = load_card(base / 'bank' / 'both').extra['storage']['mask_entries']
  assert stored / 8 <= sum(leaf.size for leaf in masks.values()) < stored / 8 + 4 * len(masks)
  tuned = flatten(banked.stage.start.tuned_shapes())
  assert {path.split('/pemt/')[1].split('/')[0] for path in tuned if '/pemt/' in path} == {
      'gate', 'adapter'}
  start, _ = banked.stage.start(banked.trained.replicas[0])
  changed = {path for path, leaf in flatten(banked.trained.tuned).items()
             if not np.array_equal(leaf[0], flatten(start)[path])}
  assert any(path.endswith('pemt/gate/kernel') for path in changed)
  with np.load(base / 'banked' / 'gates.npz') as found:
    assert found['sources'].tolist() == list(small.SOURCES)
    np.testing.assert_allclose(found['encoder'].sum(-1), 1.0, rtol=1e-5)


def test_an_expert_of_a_masked_bank_is_opened_with_the_copy_of_its_masks(banked, base):
  folder = banked.experts[small.TARGET.replace('/', '-')]
  sources = load_card(folder).extra['sources']
  assert sources == [{'task': ','.join(small.SOURCES), 'folder': '../../sources/both'}]
  assert (base / 'banked' / 'sources' / 'both' / 'packed.safetensors').is_file()
  final = banked.trained.results[small.TARGET.replace('/', '-')]['final_metrics']
  found = scores_of(folder)
  assert found['loss'] == pytest.approx(final['loss'], rel=1e-5)


@pytest.mark.slow
def test_runs_that_train_masks_alone_share_a_prototype(base, backbone, trained):
  def run(task, **changes):
    config = small.config_of('propetl', backbone, (task,), method__owners=('layer',),
                             train__eval_every='never', train__final_split='', **changes)
    return next(iter(run_stage(config, base / task, trained.stage.backbone).experts.values()))

  def second_stage(*sources):
    config = small.config_of('pemt/stage2', backbone, (small.TARGET,),
                             sources=tuple(map(str, sources)))
    return build(config, base / 'on_masks', trained.stage.backbone)

  first = run(small.SOURCES[0])
  second = run(small.SOURCES[1], starts=(str(first),),
               train__group_multipliers={'prototype': 0.0})
  one, other = small.leaves_of(first), small.leaves_of(second)
  scores = 'encoder/propetl/layer_mlp_residual/down_kernel'
  np.testing.assert_array_equal(one['deltas/propetl/down/kernel'],
                                other['deltas/propetl/down/kernel'])
  assert not np.array_equal(one[scores], other[scores])
  assert second_stage(first, second).sources.names == small.SOURCES
  alone = second_stage(first)
  paths = flatten(alone.start.tuned_shapes())
  assert any('/mlp_residual/adapter/' in path for path in paths)
  assert not any('gate' in path for path in paths)
  assert 'deltas/propetl/down/kernel' in flatten(alone.start.frozen)
