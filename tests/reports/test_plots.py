"""Plots: the numbers behind the pictures, and that pictures of every size come out."""

from __future__ import annotations

import numpy as np
import pytest

from pemt_jax.reports import plots
from pemt_jax.reports.files import Correlation, Gates

PNG = b'\x89PNG\r\n\x1a\n'


def _gates(replicas=3, layers=2, sources=4):
  weights = np.random.default_rng(0).dirichlet(np.ones(sources), size=(2, replicas, layers))
  names = tuple(f'source {i}' for i in range(sources))
  targets = tuple(f'target {i // 2}' for i in range(replicas))
  return Gates(names, targets, {'encoder': weights[0], 'decoder': weights[1]})


def test_target_source_matrix_is_the_mean_over_replicas_and_all_layers():
  gates = _gates()
  targets, matrix = plots.target_source_matrix(gates)
  assert targets == ('target 0', 'target 1')
  every = np.concatenate([gates.stacks['encoder'], gates.stacks['decoder']], axis=1)
  np.testing.assert_allclose(matrix[0], every[:2].mean(axis=(0, 1)), rtol=1e-12)
  np.testing.assert_allclose(matrix[1], every[2].mean(axis=0), rtol=1e-12)
  np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=1e-12)


def test_curves_are_sorted_by_metric_and_replica():
  lines = [{'step': 1, 'replica': 'a', 'loss': 3.0}, {'step': 1, 'replica': 'b', 'loss': 4.0},
           {'step': 2, 'replica': 'a', 'loss': 2, 'note': 'text', 'flag': True},
           {'step': 2, 'x': 0}]
  curves = plots.curves_of(lines)
  assert set(curves) == {'loss', 'x'} and set(curves['x']) == {''}
  np.testing.assert_array_equal(curves['loss']['a'], [[1, 3], [2, 2]])


def test_median_curve_at_every_step():
  lines = [np.array([[0, 1], [2, 5]]), np.array([[0, 3]]), np.array([[0, 2], [2, 7]])]
  steps, middle = plots.median_curve(lines)
  np.testing.assert_array_equal(steps, [0, 2])
  np.testing.assert_array_equal(middle, [2, 6])


def test_losses_are_drawn_first_gates_and_speed_last():
  names = ['train/tokens_per_second', 'train/moe_weight_0', 'train/entropy', 'validation/accuracy',
           'train/loss']
  assert plots.drawn_and_left(names) == (names[::-1], [])
  many = [f'test/score{i:02d}' for i in range(12)]
  assert plots.drawn_and_left(['train/loss', *many]) == (['train/loss', *many[:11]], many[11:])


@pytest.mark.parametrize('name, replicas', [('r', 1), ('r', 3), ('r', 12), ('r-seed', 12)])
def test_learning_curves_come_out(name, replicas):
  lines = [{'step': step, 'replica': f'{name}{i}', 'loss': 1 / (step + i + 1)}
           for step in range(3) for i in range(replicas)]
  assert plots.learning_curves(lines).startswith(PNG)


@pytest.mark.parametrize('gates', [_gates(), _gates(1, 12, 1), _gates(9, 1, 20)],
                         ids=['few', 'one source', 'many targets'])
def test_gate_maps_come_out(gates):
  assert plots.gates_by_layer(gates).startswith(PNG)
  assert plots.gates_by_target(gates).startswith(PNG)


@pytest.mark.parametrize('matrix', [np.zeros((2, 2)), np.array([[-1.0, 2.0], [np.nan, 0.5]])],
                         ids=['all zero', 'signs and a gap'])
def test_matrices_without_range_or_with_gaps_come_out(matrix):
  assert plots.correlation(Correlation(('a', 'b'), ('c', 'd'), matrix)).startswith(PNG)


def test_signed_numbers_get_a_scale_around_zero():
  assert plots._limits(np.array([-1.0, 3.0])) == ('RdBu_r', -3.0, 3.0)
  assert plots._limits(np.array([0.0, 3.0]))[1:] == (0.0, 3.0)
