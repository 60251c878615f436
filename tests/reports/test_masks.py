"""Masks in the report: the file that is read, the tree of tasks, the blocks of the page."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.reports import files, html, masks

TASKS = ('glue/rte', 'glue/mrpc', 'glue/qqp')
LAYERS = ('encoder 1', 'encoder 2', 'decoder 1')
# The first two tasks are near to each other.
OVERLAP = np.array([[1.0, 0.6, 0.2], [0.6, 1.0, 0.25], [0.2, 0.25, 1.0]])


def content(replicas=2):
  """Arrays of a file with tasks and layers, all replicas around the same overlaps."""
  noise = 0.02 * np.arange(replicas)[:, None, None, None]
  overlap = np.broadcast_to(OVERLAP, (replicas, 3, 3, 3)) + noise - noise.mean()
  return {'replicas': np.array([f'mixture-seed{i}' for i in range(replicas)]),
          'matrices': np.array(['', 'propetl/down_kernel', 'propetl/up_kernel']),
          'task': np.array(TASKS), 'layer': np.array(LAYERS),
          'task_overlap': overlap, 'layer_overlap': overlap, 'task_layer_overlap': overlap,
          'task_density': np.full((replicas, 3, 3), 0.3),
          'layer_density': np.full((replicas, 3, 3), 0.3),
          'joined': np.full((replicas, 3, 3), 0.51), 'joined_rows': np.array(LAYERS),
          'joined_columns': np.array(TASKS), 'expected': np.full(replicas, 0.176)}


def words(text):
  return [e.text for e in ElementTree.fromstring(text).iter() if e.tag.endswith('}text')]


def test_the_file_is_read_as_the_mean_over_replicas(workdir):
  np.savez(workdir / 'masks.npz', **content())
  found = files.read_masks(workdir / 'masks.npz')
  np.testing.assert_allclose(found.overlaps['task'][0], OVERLAP)
  assert found.members == {'task': TASKS, 'layer': LAYERS}
  assert found.joined.rows == LAYERS and found.expected == pytest.approx(0.176)


@pytest.mark.parametrize('change, sentence', [
    ({'task_overlap': None}, "lacks the array 'task_overlap'"),
    ({'joined': None}, "lacks the array 'joined'"),
    ({'layer_density': np.ones((2, 3))}, "Array 'layer_density' .* must have \\[2, 3, 3\\]")])
def test_a_wrong_file_ends_with_a_sentence(workdir, change, sentence):
  arrays = {name: value for name, value in (content() | change).items() if value is not None}
  np.savez(workdir / 'masks.npz', **arrays)
  with pytest.raises(UserError, match=sentence):
    files.read_masks(workdir / 'masks.npz')


def test_the_tree_joins_what_overlaps_most_first():
  links = masks.tree_of(OVERLAP)
  assert set(links[0, :2]) == {0, 1}
  np.testing.assert_allclose(links[:, 2], [0.4, (0.8 + 0.75) / 2])
  assert {'rte', 'mrpc', 'qqp'} <= set(words(masks.draw_tree(OVERLAP, ('rte', 'mrpc', 'qqp'),
                                                             0.2, 'Tree')))


def test_the_page_shows_overlaps_tree_and_density(workdir):
  (workdir / 'result.json').write_text('{}')
  (workdir / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 1.0}\n')
  np.savez(workdir / 'masks.npz', **content())
  stage = files.read_workdir(workdir)[0]
  shown = {block.title: block for block in masks.blocks(stage.masks)}
  assert list(shown)[:4] == ['Masks', 'Overlap of masks of tasks', 'Tree of tasks',
                             'Overlap of masks of layers']
  table = shown['Masks'].content
  assert table.head[:4] == ('matrix', 'task masks', 'density of task masks',
                            'overlap of task masks')
  assert [entry.text for entry in table.rows[0]] == ['all', '3', '0.300', '0.350', '3', '0.300',
                                                     '0.350']
  assert '0.60' in words(shown['Overlap of masks of tasks'].content)
  assert shown['Overlap of masks of tasks: propetl/up_kernel'].folded
  page = html.write_report(workdir).read_text()
  assert all(title in page for title in shown)


def test_masks_of_layers_alone_have_no_tree(workdir):
  names = ('task', 'task_overlap', 'task_density', 'task_layer_overlap')
  arrays = {name: value for name, value in content(1).items() if name not in names}
  np.savez(workdir / 'masks.npz', **arrays)
  shown = masks.blocks(files.read_masks(workdir / 'masks.npz'))
  assert [block.title for block in shown if not block.folded] == [
      'Masks', 'Overlap of masks of layers']
