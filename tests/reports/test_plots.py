"""Pictures of gates, correlations and seconds: their numbers, and that every size comes out."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from pemt_jax.reports import pictures, plots
from pemt_jax.reports.files import Correlation, Gates


def _gates(replicas=3, layers=2, sources=4):
  weights = np.random.default_rng(0).dirichlet(np.ones(sources), size=(2, replicas, layers))
  names = tuple(f'source {i}' for i in range(sources))
  targets = tuple(f'target {i // 2}' for i in range(replicas))
  return Gates(names, targets, {'encoder': weights[0], 'decoder': weights[1]})


def _words(text):
  return [e.text for e in ElementTree.fromstring(text).iter() if e.tag.endswith('}text')]


def test_gate_table_is_the_mean_over_layers_with_the_spread_over_replicas():
  gates = _gates()
  table = plots.gate_table(gates)
  assert (table.rows, table.columns) == (('target 0', 'target 1'), gates.sources)
  each = np.concatenate([gates.stacks['encoder'], gates.stacks['decoder']], axis=1).mean(axis=1)
  cell = table.cells['target 0', 'source 1']
  assert (cell.mean, cell.count) == (pytest.approx(each[:2, 1].mean()), 2)
  assert cell.spread == pytest.approx(np.std(each[:2, 1], ddof=1))
  assert table.cells['target 1', 'source 1'].spread is None


@pytest.mark.parametrize('gates', [_gates(), _gates(1, 12, 1), _gates(9, 1, 20), _gates(30, 24, 9)],
                         ids=['few', 'one source', 'many targets', 'large'])
def test_gate_maps_come_out(gates):
  words = _words(plots.gates_by_layer(gates))
  assert words.count('encoder') == words.count('decoder') == len(set(gates.targets))
  assert set(gates.sources) <= set(words)


def test_gate_map_of_one_stack():
  gates = Gates(('a', 'b'), ('t',), {'encoder': np.array([[[0.25, 0.75]]])})
  words = _words(plots.gates_by_layer(gates))
  assert '0.25' in words and '0.75' in words and 'decoder' not in words


def test_names_lose_the_folder_that_they_share():
  assert plots.short_names(['playground/omen', 'playground/tide']) == ('omen', 'tide')
  assert plots.short_names(['a/x', 'b/x', 'c']) == ('a/x', 'b/x', 'c')
  assert plots.short_names(['mnli']) == ('mnli',)


def test_correlation_is_averaged_over_seeds_without_the_replica_itself():
  names = ('cb-seed0', 'cb-seed1', 'rte')
  matrix = np.array([[1.0, 0.4, 0.1], [0.4, 1.0, 0.3], [0.1, 0.3, 1.0]])
  rows, columns, joined = plots.grouped_correlation(Correlation(names, names, matrix))
  assert rows == columns == ('cb', 'rte')
  np.testing.assert_allclose(joined, [[0.4, 0.2], [0.2, 1.0]])


@pytest.mark.parametrize('matrix', [np.zeros((2, 2)), np.array([[-1.0, 2.0], [np.nan, 0.5]]),
                                    np.full((2, 2), np.nan)],
                         ids=['all zero', 'signs and a gap', 'nothing'])
def test_matrices_without_range_or_with_gaps_come_out(matrix):
  words = _words(plots.correlation(Correlation(('a', 'b'), ('c', 'd'), matrix)))
  assert {'a', 'b', 'c', 'd'} <= set(words)


def test_signed_numbers_get_a_scale_around_zero():
  assert plots._limits(np.array([-1.0, 3.0])) == ('RdBu_r', -3.0, 3.0)
  assert plots._limits(np.array([0.0, 3.0]))[1:] == (0.0, 3.0)
  assert plots.narrow_limits(np.array([0.8, 0.81]))[1] == pytest.approx(0.56)


def test_bars_show_every_phase():
  words = _words(plots.time_bars({'a': {'step': 400.0, 'input': 3.0}, 'b': {'new phase': 2.0}}))
  assert {'a', 'b', 'step', 'input', 'new phase', 'minutes'} <= set(words)


def test_pictures_take_their_ink_from_the_page_and_share_no_id():
  first, second = (plots.time_bars({'a': {'step': seconds}}) for seconds in (1.0, 2.0))
  assert 'currentColor' in first and pictures.INK not in first and 'var(--grid)' in first
  ids = [set(re.findall(r' id="([^"]+)"', text)) for text in (first, second)]
  assert ids[0] and not ids[0] & ids[1]
  for text, own in zip((first, second), ids):
    assert set(re.findall(r'href="#([^"]+)|url\(#([^)]+)\)', text)) <= {
        pair for name in own for pair in ((name, ''), ('', name))}
  assert first == plots.time_bars({'a': {'step': 1.0}})
