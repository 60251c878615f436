"""Vectors from neighbour counts: pairs are counted as stated, words of one topic stand together."""

from __future__ import annotations

import numpy as np

from pemt_jax.data import cooccurrence


def topics(rows=400, seed=0):
  """Rows of ids 0..9 or of ids 10..19; id 20 never occurs."""
  draws = np.random.default_rng(seed)
  return draws.integers(0, 10, (rows, 12)) + 10 * draws.integers(0, 2, (rows, 1))


def test_pairs_count_by_distance_and_stay_in_their_row():
  counts = cooccurrence.neighbour_counts(np.array([[0, 1, 2], [3, 3, 0]]), 4).toarray()
  np.testing.assert_array_equal(
      counts, [[0, 1, .5, 1.5], [1, 0, 1, 0], [.5, 1, 0, 0], [1.5, 0, 0, 2]])


def test_information_is_positive_symmetric_and_zero_where_pairs_are_chance():
  found = cooccurrence.positive_information(
      cooccurrence.neighbour_counts(topics(), 21)).toarray()
  np.testing.assert_allclose(found, found.T)
  assert found.min() >= 0 and found[:10, 10:].max() == 0 and found[:10, :10].mean() > 0.5


def test_words_of_one_topic_have_like_vectors():
  vectors = cooccurrence.token_vectors(topics(), 21, 6)
  assert vectors.shape == (21, 6) and vectors.dtype == np.float32
  directions = vectors[:20, :5] / np.linalg.norm(vectors[:20, :5], axis=1, keepdims=True)
  alike = directions @ directions.T
  assert alike[:10, :10].mean() > 0.4 > alike[:10, 10:].mean() + 0.4
  np.testing.assert_array_equal(vectors, cooccurrence.token_vectors(topics(), 21, 6))


def test_the_last_entry_orders_by_frequency():
  chunks = np.concatenate([topics(), np.zeros((400, 12), np.int64)])
  vectors = cooccurrence.token_vectors(chunks, 21, 6)
  assert vectors[:20, 5].argmax() == 0
