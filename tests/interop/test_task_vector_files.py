"""Folders of task vectors: there and back, and every way to be wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts.task_vectors import TaskVectors, pooled, random_vectors
from pemt_jax.interop.task_vector_files import read_task_vectors, write_task_vectors


@pytest.fixture
def folder(tmp_path):
  write_task_vectors(tmp_path, random_vectors(('rte', 'boolq', 'sst2'), 4, 0.5, 0))
  return tmp_path


def test_folders_have_the_published_layout_and_come_back(folder):
  assert json.loads((folder / 'id2task.json').read_text()) == {
      '0': 'boolq', '1': 'rte', '2': 'sst2'}
  stored = np.load(folder / 'task_vecs.npy')
  assert stored.shape == (3, 4) and stored.dtype == np.float32
  found = read_task_vectors(folder)
  assert found.names == ('boolq', 'rte', 'sst2') and found.width == 4
  np.testing.assert_array_equal(found.vectors, stored)
  assert sorted(path.name for path in folder.iterdir()) == ['id2task.json', 'task_vecs.npy']


def test_random_vectors_depend_on_their_own_name_only(folder):
  few, more = read_task_vectors(folder), random_vectors(('sst2', 'mrpc', 'boolq'), 4, 0.5, 0)
  np.testing.assert_array_equal(few.chosen(('sst2', 'boolq')).vectors,
                                more.chosen(('sst2', 'boolq')).vectors)
  assert not np.allclose(more.vectors[0], more.vectors[1])
  many = random_vectors(('rte',), 4000, 0.5, 1).vectors
  assert np.std(many) == pytest.approx(0.5, rel=0.05)
  with pytest.raises(UserError, match="no task vector for 'cola', only for boolq, rte, sst2"):
    few.chosen(('rte', 'cola'))
  with pytest.raises(UserError, match='standard deviation of task vectors is 0'):
    random_vectors(('rte',), 4, 0, 0)


@pytest.mark.parametrize('names, rows, sentence', [
    ({'0': 'a'}, None, 'names 1 tasks in id2task.json and has 3 rows'),
    ({'1': 'a', '2': 'b', '3': 'c'}, None, 'does not number its tasks from 0 to 2'),
    ({'0': 'a', '1': 'a', '2': 'b'}, None, 'names "a" twice'),
    (None, np.zeros(3), 'is no matrix of floating numbers'),
    (None, np.zeros((3, 2), int), 'is no matrix of floating numbers'),
    (None, np.array([[1.0], [np.nan], [0.0]]), 'has a number that is not finite in row 1'),
    (None, np.array([['a']], object), 'is no array file'),
])
def test_wrong_folders_are_refused(folder, names, rows, sentence):
  if names is not None:
    (folder / 'id2task.json').write_text(json.dumps(names))
  if rows is not None:
    np.save(folder / 'task_vecs.npy', rows, allow_pickle=True)
  with pytest.raises(UserError, match=sentence):
    read_task_vectors(folder)


def test_a_folder_without_vectors_is_refused(tmp_path):
  with pytest.raises(UserError, match='has no task_vecs.npy; give a folder with id2task.json'):
    read_task_vectors(tmp_path)


def test_pooling():
  states = np.arange(16.0).reshape(2, 4, 2)  # the last position pads the batch to its bucket
  mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0]])
  np.testing.assert_allclose(pooled(states, mask, 'legacy'), states[:, :3].mean(1))
  np.testing.assert_allclose(pooled(states, mask, 'masked'), [[1.0, 2.0], [10.0, 11.0]])
  assert TaskVectors.of({'b': np.ones(2), 'a': np.zeros(2)}).names == ('a', 'b')
