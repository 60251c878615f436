"""Search for the coefficients of a merge on held-out rows, without gradients.

All candidates of a round are evaluated by one compiled program: the loss is mapped over merged
deltas. The idea of a search over coefficients of low-rank experts is that of LoraHub (Huang et al.
2023, arXiv 2307.13269), which uses an evolution strategy in place of rounds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from pemt_jax.errors import number
from pemt_jax.experts.merging.arithmetic import add_to_base, task_vectors
from pemt_jax.experts.merging.weights import weighted_sum

# (tree, batch) -> (total loss [], weight [])
LossFn = Callable[[Any, Any], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class SearchResult:
  """What a search found.

  Attributes:
    coefficients: [source] the best ones, float32.
    loss: their mean loss on the held-out rows.
    candidates: [round * candidate, source] all that were tried, in order.
    losses: [round * candidate] their mean losses.
  """

  coefficients: np.ndarray
  loss: float
  candidates: np.ndarray
  losses: np.ndarray


def first_candidates(sources: int, count: int, rng: np.random.Generator,
                     simplex: bool = True) -> np.ndarray:
  """Candidates [count, source] of the first round: equal weights, each source alone, random ones.

  Args:
    sources: number of sources.
    count: number of candidates; at least one more than sources.
    rng: draws the random ones.
    simplex: weights at least 0 with sum 1; False adds a common factor up to 2, as the scale of
      task arithmetic.

  Raises:
    UserError: too few candidates.
  """
  number('the number of candidates of the search', count, count > sources,
         f'of at least {sources + 1}, one more than there are sources')
  drawn = rng.dirichlet(np.ones(sources), count - sources - 1)
  if not simplex:
    drawn = drawn * rng.uniform(0.0, 2.0, (len(drawn), 1))
  fixed = [np.full((1, sources), 1.0 / sources), np.eye(sources)]
  return np.concatenate([*fixed, drawn]).astype(np.float32)


def next_candidates(best: np.ndarray, count: int, spread: float, rng: np.random.Generator,
                    simplex: bool = True) -> np.ndarray:
  """Candidates [count, source] around the best one, which stays among them.

  Args:
    best: [source] coefficients.
    count: number of candidates.
    spread: share of the way from the best one to a random one, in (0, 1].
    rng: draws the random ones.
    simplex: see `first_candidates`.
  """
  drawn = rng.dirichlet(np.ones(len(best)), count - 1)
  if not simplex:
    drawn = drawn * rng.uniform(0.0, 2.0, (len(drawn), 1))
  moved = best + spread * (drawn - best)
  return np.concatenate([best[None], moved]).astype(np.float32)


def make_candidate_losses(loss_fn: LossFn, chunk: int = 0) -> Callable[..., Any]:
  """Returns the compiled (vectors, base, candidates, batch) -> (totals, weights), each [candidate].

  Args:
    loss_fn: loss of one tree on one batch.
    chunk: candidates at a time; 0 takes all at once.
  """
  @jax.jit
  def losses(vectors, base, candidates, batch):
    def one(coefficients):
      return loss_fn(add_to_base(base, weighted_sum(vectors, coefficients), 1.0), batch)

    return jax.lax.map(one, candidates, batch_size=chunk or len(candidates))

  return losses


def search(stacked: Any, base: Any, losses: Callable[..., Any], batches: Iterable[Any],
           count: int = 64, rounds: int = 3, seed: int = 0, simplex: bool = True) -> SearchResult:
  """Finds coefficients c of theta_0 + sum_j c_j tau_j with the smallest mean loss.

  Every round halves the distance from the best candidate. A tie keeps the earlier candidate.

  Args:
    stacked: pytree with leaves [source, ...].
    base: theta_0, the same tree with leaves [...].
    losses: see `make_candidate_losses`; every round calls the same program.
    batches: held-out batches.
    count: candidates of a round.
    rounds: at least 1.
    seed: of the random candidates.
    simplex: see `first_candidates`.

  Raises:
    UserError: too few candidates or rounds.
  """
  number('the number of rounds of the search', rounds, rounds >= 1, 'of at least 1')
  sources = jax.tree.leaves(stacked)[0].shape[0]
  vectors, batches = task_vectors(stacked, base), list(batches)
  rng, tried, found = np.random.default_rng(seed), [], []
  candidates = first_candidates(sources, count, rng, simplex)
  for turn in range(rounds):
    run = functools.partial(losses, vectors, base, candidates)
    sums = [jax.device_get(run(batch)) for batch in batches]
    total, weight = (np.sum([pair[i] for pair in sums], axis=0) for i in (0, 1))
    tried.append(candidates)
    found.append(np.asarray(total / np.maximum(weight, 1.0), np.float64))
    everything, values = np.concatenate(tried), np.concatenate(found)
    best = int(np.nanargmin(values))
    candidates = next_candidates(everything[best], count, 0.5**(turn + 1), rng, simplex)
  return SearchResult(everything[best], float(values[best]), everything, values)
