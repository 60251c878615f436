"""Overlap and density of masks against sets of kept entries, for every kind of owner."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

from pemt_jax.errors import UserError
from pemt_jax.experts import library, mask_analysis, packed
from pemt_jax.methods import propetl
from pemt_jax.models.sites import plan_as_json
from pemt_jax.models.t5 import T5
from pemt_jax.training.rules import split_params
from tests import tiny

TASKS = ('xnli_en', 'xnli_de', 'paws_en')
MEMBERS = ((0, 0), (0, 1), (1, 0))


def trained(**options):
  """(tuned, plan) of random scores."""
  options = {'tasks': 3, 'reduction': 2, 'density': 0.3} | options
  method = propetl.propetl(propetl.ProPETLOptions(**options), tiny.CONFIG, 0)
  model = T5(tiny.CONFIG, method.plan)
  return split_params(tiny.variables_of(model)['params'], method.tuned)[1], method.plan


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(bool, (2, 12)))
def test_jaccard_is_that_of_the_sets_of_kept_entries(masks):
  first, second = (set(np.flatnonzero(mask)) for mask in masks)
  expected = len(first & second) / len(first | second) if first | second else 1.0
  found = mask_analysis.jaccard(*masks)
  assert found == pytest.approx(expected) and found == mask_analysis.jaccard(*masks[::-1])
  assert mask_analysis.jaccard(masks[0], masks[0]) == 1.0


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(bool, (3, 12)))
def test_overlap_over_all_matrices_counts_their_entries_together(joined):
  joined[:, 8] = True
  masks = {'a': dict(zip('xyz', joined[:, :8])), 'b': dict(zip('xyz', joined[:, 8:]))}
  whole, own = mask_analysis.overlap(masks), mask_analysis.overlap(masks, matrix='b')
  for i, j in np.ndindex(3, 3):
    assert whole[i, j] == pytest.approx(mask_analysis.jaccard(joined[i], joined[j]))
    assert own[i, j] == pytest.approx(mask_analysis.jaccard(joined[i, 8:], joined[j, 8:]))


def test_members_without_a_common_matrix_have_no_overlap():
  masks = {'a': {'x': np.ones(4, bool)}, 'b': {'y': np.ones(4, bool), 'z': np.zeros(4, bool)}}
  assert np.isnan(mask_analysis.overlap(masks)[0, 1])
  assert mask_analysis.overlap(masks)[1, 2] == 0.0
  np.testing.assert_array_equal(mask_analysis.density(masks), [1.0, 1.0, 0.0])
  assert np.isnan(mask_analysis.density(masks, 'a')[1])


def test_masks_of_tasks_and_layers_keep_their_density_and_names(tmp_path):
  tuned, plan = trained()
  tasks = mask_analysis.masks_of(tuned, plan, 'task', ('a', 'b', 'c'))
  layers = mask_analysis.masks_of(tuned, plan, 'layer')
  assert set(tasks) == {'propetl/down_kernel', 'propetl/up_kernel'} == set(layers)
  assert mask_analysis.members_of(tasks) == ('a', 'b', 'c')
  depth = tiny.CONFIG.encoder_layers, tiny.CONFIG.decoder_layers
  assert set(mask_analysis.members_of(layers)) == {
      f'{stack} {i + 1}' for stack, count in zip(('encoder', 'decoder'), depth)
      for i in range(count)}
  entries = next(iter(tasks['propetl/down_kernel'].values())).size
  kept = (entries - int((1 - 0.3) * entries)) / entries
  np.testing.assert_allclose(mask_analysis.density(tasks), kept)
  card = library.ExpertCard('glue', 'propetl', plan_as_json(plan), 'tiny', 'hash', 'glue')
  packed.save_packed(tmp_path / 'expert', tuned, card, plan)
  again, _, card = library.load_expert(tmp_path / 'expert')
  same = mask_analysis.masks_of(again, card.plan, 'task', ('a', 'b', 'c'))
  for matrix, name in ((matrix, name) for matrix in tasks for name in tasks[matrix]):
    np.testing.assert_array_equal(same[matrix][name], tasks[matrix][name])


def test_languages_and_shared_tasks_have_the_name_of_what_they_share():
  tuned, plan = trained(owners=('task', 'language', 'layer'), members=MEMBERS)
  found = mask_analysis.analyse(tuned, plan, TASKS)
  assert found.members['task'] == ('xnli', 'paws_en')
  assert found.members['language'] == ('en', 'de')
  assert found.tasks == TASKS and found.joined.shape[1] == 3


@pytest.mark.parametrize('how, bounds', [('or', (0.3, 1.0)), ('and', (0.0, 0.3))])
def test_the_joined_density_is_that_of_the_joined_masks(how, bounds):
  tuned, plan = trained(combine=how)
  names, shares = mask_analysis.joined_density(tuned, plan)
  tasks, layers = (mask_analysis.masks_of(tuned, plan, owner) for owner in ('task', 'layer'))
  join = np.logical_or if how == 'or' else np.logical_and
  matrices = list(tasks)
  for i, layer in enumerate(names):
    for j, task in enumerate(mask_analysis.members_of(tasks)):
      both = [join(tasks[m][task], layers[m][layer]) for m in matrices]
      expected = np.concatenate(both).mean()
      assert shares[i, j] == pytest.approx(expected)
      assert bounds[0] <= expected <= bounds[1] + 0.05


def test_the_first_layer_may_have_the_mask_of_a_task():
  tuned, plan = trained(first_layer=2)
  layers = mask_analysis.masks_of(tuned, plan, 'layer')
  assert 'encoder 1' not in mask_analysis.members_of(layers)
  names, shares = mask_analysis.joined_density(tuned, plan)
  own = mask_analysis.density(mask_analysis.masks_of(tuned, plan, 'task'))
  assert shares[names.index('encoder 1'), 2] == pytest.approx(own[2])


def test_masks_of_a_layer_for_each_task_count_for_both():
  tuned, plan = trained(owners=('layer_task',))
  found = mask_analysis.analyse(tuned, plan)
  assert set(found.members) == {'task', 'layer'} and found.across is None
  size = {owner: next(iter(mask_analysis.masks_of(tuned, plan, owner)['propetl/down_kernel']
                           .values())).size for owner in found.members}
  layers = tiny.CONFIG.encoder_layers + tiny.CONFIG.decoder_layers
  assert size['task'] * 3 == size['layer'] * layers
  np.testing.assert_allclose(np.diagonal(found.overlaps['task'][0]), 1.0)


def test_places_of_one_prototype_in_a_layer_are_members_of_their_own():
  rng = np.random.default_rng(0)
  tuned = {'encoder': {'propetl': {f'layer_{place}': {'down': rng.normal(size=(2, 3, 4))}
                                   for place in ('mlp_residual', 'self_attention_residual')}}}
  config = {'density': 0.5, 'members': [[0, 0]], 'first_layer': None, 'how': 'or'}
  plan = [{'name': 'propetl', 'delta': 'Masked', 'config': config}]
  found = mask_analysis.analyse(tuned, plan)
  assert found.members == {'layer': tuple(f'encoder {layer} {place}' for place in (
      'mlp_residual', 'self_attention_residual') for layer in (1, 2))}
  assert found.layers == ('encoder 1', 'encoder 2')
  np.testing.assert_allclose(found.joined, 0.5)


def test_nothing_masked_has_no_analysis():
  tuned, plan = trained(owners=(), density=1.0)
  assert mask_analysis.analyse(tuned, plan) is None
  with pytest.raises(UserError, match='the owner of a mask'):
    mask_analysis.masks_of(tuned, plan, 'head')


def test_the_overlap_by_chance_is_that_of_independent_masks():
  masks = np.random.default_rng(0).random((2, 200_000)) < 0.3
  assert mask_analysis.jaccard(*masks) == pytest.approx(mask_analysis.by_chance(0.3), abs=5e-3)
