"""Merges that read rows: Fisher weights of the sources, coefficients from rows of the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.experts import similarity
from pemt_jax.experts.merging import fisher
from pemt_jax.experts.merging import search as searching
from pemt_jax.models.generation import log_probability
from pemt_jax.models.segments import cut, join
from pemt_jax.stages.expert_set import ExpertSet, Source
from pemt_jax.trees import Tree

TRAIN, HELD_OUT = 'train', 'validation'


class RowMerger:
  """Compiled programs of one set of sources.

  Attributes:
    experts: the sources under their model.
  """

  def __init__(self, experts: ExpertSet, tasks: Sequence[str], options: Any):
    """Loads the rows.

    Args:
      experts: the sources under their model, built for the tasks whose rows are read.
      tasks: these: of the sources, in their order, for 'fisher'; the targets for 'search'.
      options: `merging.MergeOptions` with one of these methods.
    """
    self.experts, self._options = experts, options
    if options.method == 'fisher':
      self._fishers = self._diagonal(tasks)
      return
    self._batches = experts.batches(tasks, HELD_OUT, options.rows)
    vocab = experts.runner.model.config.vocab_size
    first = self._batches[tasks[0]][0]
    chunk = similarity.chunk_size(first, vocab, options.candidates)
    self._losses = experts.runner.placement.bound(
        searching.make_candidate_losses(self._loss, chunk))

  def _loss(self, tuned: Tree, batch: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
    # Frozen parameters travel with the batch: as a constant they would be copied into the program.
    source = tuned, batch['constants']
    return self.experts.runner.token_loss(source, batch['frozen'], batch['rows'])

  def search(self, task: str, base: Tree, chosen: np.ndarray) -> np.ndarray:
    """Coefficients [source] with the smallest loss on the target's held-out rows.

    Args:
      task: the target.
      base: theta_0.
      chosen: numbers of the sources that may be used.
    """
    options, (tuned, constants) = self._options, self.experts.runner.stacked
    first = jax.tree.map(lambda leaf: leaf[0], constants)
    own = jax.tree.map(lambda leaf: leaf[chosen], tuned)
    runner = self.experts.runner
    batches = [{'rows': runner.rows(batch), 'frozen': runner.frozen, 'constants': first}
               for batch in self._batches[task]]
    base = cut(base, self.experts.stage.start.tuned_shapes())
    found = searching.search(own, base, self._losses, batches, options.candidates, options.rounds,
                             options.seed, options.simplex)
    return found.coefficients

  def fisher_mean(self, stacked: Tree, chosen: np.ndarray) -> Tree:
    """Fisher-weighted mean of some sources, each counting alike.

    Args:
      stacked: canonical tree with leaves [source, ...] of the sources that may be used.
      chosen: their numbers.
    """
    own = jax.tree.map(lambda leaf: leaf[chosen], self._fishers)
    return fisher.fisher_mean(stacked, own, np.ones(len(chosen), np.float32))

  def _diagonal(self, tasks: Sequence[str]) -> Tree:
    """Canonical tree of diagonal Fishers [source, ...] with a mean entry of 1, in one program."""
    batches = self.experts.batches(tasks, TRAIN, self._options.rows)
    rows = [self.experts.runner.rows(batches[task][0]) for task in tasks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    keys = jax.random.split(jax.random.key(self._options.seed), len(tasks))

    @jax.jit
    def run(sources, frozen, batches, keys):
      one = lambda args: join(self._squares(args[0], frozen, args[1], args[2]))
      return jax.lax.map(one, (sources, batches, keys))

    runner = self.experts.runner
    return fisher.unit_scale(runner.call(run, runner.stacked, runner.frozen, stacked, keys))

  def _squares(self, source: Source, frozen: Tree, batch: dict[str, jax.Array],
               key: jax.Array) -> Tree:
    tuned, constants = source
    labels = batch['targets']
    if self._options.labels == 'model':
      labels = jax.random.categorical(key, self.experts.runner.logits(source, frozen, batch))

    def loss(values, example):
      row = {name: leaf[None] for name, leaf in example.items()}
      logits = self.experts.runner.logits((values, constants), frozen, row)
      return -jnp.sum(log_probability(logits, row['labels']) * row['targets_mask'])

    return fisher.squared_gradients(loss, tuned, batch | {'labels': labels})
