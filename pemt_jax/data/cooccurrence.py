"""Token vectors from counts of neighbours: a start for the embedding of a model trained on little.

Positive pointwise mutual information of neighbouring ids, the ids of the context smoothed by the
power 0.75, and its leading eigenvectors (Levy, Goldberg and Dagan 2015).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import eigsh

_WINDOW = 5
_SMOOTHING = 0.75
_LEAST = 5  # Rarer ids keep their random row.
_FREQUENCY_SCALE = 1.5


def neighbour_counts(chunks: np.ndarray, vocab_size: int) -> sparse.csr_matrix:
  """Counts pairs of ids at most five places apart, a pair at distance d as 1 / d.

  Args:
    chunks: [row, length] ids; no pair crosses rows.
    vocab_size: number of ids.

  Returns:
    [vocab, vocab] symmetric.
  """
  total = sparse.csr_matrix((vocab_size, vocab_size), dtype=np.float32)
  for distance in range(1, min(_WINDOW, chunks.shape[1] - 1) + 1):
    left, right = chunks[:, :-distance].ravel(), chunks[:, distance:].ravel()
    shares = np.full(left.shape, 1 / distance, np.float32)
    pairs = sparse.coo_matrix((shares, (left, right)), shape=total.shape).tocsr()
    total = total + pairs + pairs.T
  return total


def positive_information(counts: sparse.spmatrix) -> sparse.csr_matrix:
  """Log of how much more often a pair occurs than by chance; at least 0, symmetric."""
  counts = counts.tocoo()
  totals = np.asarray(counts.sum(axis=1)).ravel()
  context = totals**_SMOOTHING / (totals**_SMOOTHING).sum()
  values = np.log(counts.data / totals[counts.row] / context[counts.col])
  kept = values > 0
  places = (counts.row[kept], counts.col[kept])
  found = sparse.csr_matrix((values[kept].astype(np.float32), places), shape=counts.shape)
  return (found + found.T) / 2


def token_vectors(chunks: np.ndarray, vocab_size: int, width: int, rows: int = 64_000,
                  seed: int = 0) -> np.ndarray:
  """Makes one vector per id, entries of size about 1, the last one the id's log frequency.

  Args:
    chunks: [row, length] ids.
    vocab_size: number of ids.
    width: of a vector, below the number of ids.
    rows: rows that are counted at most, drawn at random.
    seed: of the draw, of the vectors of rare ids and of the eigenvalue search.

  Returns:
    [vocab, width] float32.
  """
  draws = np.random.default_rng(seed)
  chosen = chunks[np.sort(draws.permutation(len(chunks))[:rows])]
  frequency = np.bincount(chosen.ravel(), minlength=vocab_size)
  common = frequency >= _LEAST
  information = positive_information(neighbour_counts(chosen, vocab_size))
  values, vectors = eigsh(information, k=width - 1, which='LA', tol=1e-2,
                          v0=draws.standard_normal(vocab_size).astype(np.float32))
  vectors = vectors * np.sqrt(np.maximum(values, 0))
  vectors = vectors - vectors[common].mean(axis=0)
  sizes = np.sqrt(np.mean(vectors**2, axis=1, keepdims=True))
  logs = np.log(frequency + 0.5)
  logs = (logs - logs[common].mean()) / max(logs[common].std(), 1e-6)
  whole = np.concatenate([vectors / np.maximum(sizes, 1e-6), _FREQUENCY_SCALE * logs[:, None]], 1)
  return np.where(common[:, None], whole, draws.standard_normal(whole.shape)).astype(np.float32)
