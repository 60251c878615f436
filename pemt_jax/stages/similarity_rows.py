"""Similarity metrics that read the rows of a target: their options and compiled programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.deltas.record import BLOCK_RULES
from pemt_jax.errors import number, one_of
from pemt_jax.experts import similarity
from pemt_jax.experts.similarity import LOGIT_METRICS, METRICS
from pemt_jax.methods.base import shift_right
from pemt_jax.models.sites import Plan
from pemt_jax.models.t5 import T5
from pemt_jax.stages.expert_set import Runner, Source
from pemt_jax.trees import Tree

ROW_METRICS = tuple(name for name, metric in METRICS.items() if metric.rows)
GRADIENT_PARTS = ('grand_by_block', 'grand_by_layer')
_EVERY = 1 << 30
_GRADIENTS = ('grand', *GRADIENT_PARTS)
_STACKS = (('encoder', 'inputs'), ('decoder', 'targets'))


@dataclasses.dataclass(frozen=True)
class SimilarityOptions:
  """How similarities are measured; the defaults are the published choices but for dropout.

  Attributes:
    metrics: names of `METRICS`, and 'grand_by_block' and 'grand_by_layer'.
    batch_size: rows per batch, at least 1.
    rows: 'published': each metric reads the batches that its entry of `METRICS` says; 'all': every
      metric reads all rows.
    normalise: 'sum' over tokens, batches or tensors (published), or their 'mean'.
    gradient_batches: most batches of GraNd; 0 takes the table of caps.
    leaves: pattern of the tuned leaves that GraNd counts.
    dropout: take GraNd's gradients under dropout, as published.
    seed: of that dropout.
    chunk: sources at a time; 0 chooses by the size of the logits.
  """

  metrics: tuple[str, ...] = ('loss',)
  batch_size: int = 50
  rows: str = 'published'
  normalise: str = 'sum'
  gradient_batches: int = 0
  leaves: str = '*'
  dropout: bool = False
  seed: int = 0
  chunk: int = 0

  def check(self) -> None:
    """Checks every field.

    Raises:
      UserError: a value that is not allowed.
    """
    for name in self.metrics:
      one_of('the similarity metric', name, (*METRICS, *GRADIENT_PARTS))
    one_of('rows', self.rows, ('published', 'all'))
    one_of('normalise', self.normalise, ('sum', 'mean'))
    number('batch_size', self.batch_size, self.batch_size >= 1, 'of at least 1')
    for field in ('gradient_batches', 'chunk'):
      number(field, getattr(self, field), getattr(self, field) >= 0, 'of at least 0')


def gradient_caps(task: str, labels: int, options: SimilarityOptions) -> dict[str, int]:
  """Most batches of a target that each metric of gradients reads.

  Args:
    task: the target.
    labels: number of its label words.
    options: how.
  """
  if options.rows == 'all':
    return dict.fromkeys(_GRADIENTS, _EVERY)
  return {name: options.gradient_batches or similarity.batch_cap(task, labels, name != 'grand')
          for name in _GRADIENTS}


class Measurer:
  """Compiled programs of all row metrics for one set of sources.

  Attributes:
    runner: the sources.
    options: how.
  """

  def __init__(self, runner: Runner, options: SimilarityOptions, batch: Mapping[str, Any]):
    """Makes the programs.

    Args:
      runner: the sources.
      options: how.
      batch: any batch; only its shape counts.
    """
    self.runner, self.options = runner, options
    count, vocab = runner.count, runner.model.config.vocab_size
    chunk = min(options.chunk or similarity.chunk_size(batch, vocab, count), count)
    self._logits = runner.placement.bound(jax.jit(runner.logits))
    self._tokens = similarity.make_logit_scores(runner.logits, chunk)
    self._squares = similarity.make_gradient_squares(self._mean_loss, chunk, options.leaves)
    self._states = runner.placement.bound(jax.jit(self._block_states))
    self._cosines = jax.jit(lambda sources, *rest: jax.lax.map(
        lambda source: self._block_cosines(source, *rest), sources, batch_size=chunk))
    model = runner.model
    self._recorder = T5(model.config, Plan((*model.plan.rules, *BLOCK_RULES)), model.compute)

  def _mean_loss(self, source, frozen, batch, key):
    total, weight = self.runner.token_loss(source, frozen, batch, key)
    return total / jnp.maximum(weight, 1.0)

  def _block_states(self, source: Source, frozen: Tree, batch: dict[str, Any]) -> dict[str, Any]:
    """stack -> [block, batch, length, embed] outputs of blocks, without prompt positions."""
    tuned, constants = source
    inputs = shift_right(batch['targets'], self._recorder.config.start_id)
    params = self.runner.expand(tuned, frozen, constants)
    _, aux = self._recorder.apply(
        {'params': params, 'constants': constants}, batch['inputs'],
        batch['inputs_mask'], inputs, batch['targets_mask'])
    found = {}
    for stack, name in _STACKS:
      states = jnp.concatenate([aux[f'{stack}/self_attention_norm/record/state'][1:],
                                aux[f'{stack}/final_norm/record/state'][None]])
      found[stack] = states[:, :, states.shape[2] - batch[name].shape[1]:]
    return found

  def _block_cosines(self, source, frozen, batch, reference):
    states = self._block_states(source, frozen, batch)
    return {stack: similarity.block_cosine(reference[stack], states[stack], batch[f'{name}_mask'])
            for stack, name in _STACKS}

  def measure(self, batches: Sequence[Mapping[str, Any]], own: Source | None,
              caps: Mapping[str, int]) -> dict[str, Any]:
    """All wanted row metrics of one target.

    Args:
      batches: its rows in order.
      own: the target's own expert, tuned from random values, without a source axis; or None.
      caps: metric of gradients -> most batches, see `gradient_caps`.

    Returns:
      metric -> [source]; parts -> {part: [source]}.
    """
    found: dict[str, Any] = {}
    if set(LOGIT_METRICS) & set(self.options.metrics):
      found |= self._predictions(batches, own)
    if set(_GRADIENTS) & set(self.options.metrics):
      found |= self._gradients(batches, caps)
    if 'block_cosine' in self.options.metrics:
      found |= self._blocks(batches, own)
    return {name: value for name, value in found.items() if name in self.options.metrics}

  def _chosen(self, name: str, batches: Sequence[Any]) -> Sequence[Any]:
    first = METRICS[name].rows == 'first' and self.options.rows == 'published'
    return batches[:1] if first else batches

  def _predictions(self, batches, own):
    wanted = [name for name in LOGIT_METRICS if name in self.options.metrics]
    most = max(len(self._chosen(name, batches)) for name in wanted)
    sums = []
    for batch in batches[:most]:
      batch = self.runner.rows(batch)
      reference = (self._logits(own, self.runner.frozen, batch) if 'kl' in wanted else None)
      sums.append(self.runner.call(self._tokens, self.runner.stacked, self.runner.frozen, batch,
                                   reference))
    found = {}
    for name in wanted:
      used = sums[:len(self._chosen(name, batches))]
      total, tokens = (np.sum([part[key] for part in used], axis=0, dtype=np.float64)
                       for key in (name, 'tokens'))
      how = 'mean' if name == 'loss' else self.options.normalise
      found[name] = similarity.normalise(total, float(tokens[0]), how)
    return found

  def logits(self, batch: Mapping[str, Any], source: Source) -> jax.Array:
    """[batch, length, vocab] of one source without a source axis."""
    return self._logits(source, self.runner.frozen, self.runner.rows(batch))

  def _gradients(self, batches, caps):
    options = self.options
    caps = {name: min(caps[name], len(batches)) for name in _GRADIENTS if name in options.metrics}
    key = jax.random.key(options.seed) if options.dropout else None
    parts = {'grand': lambda squares: {'': similarity.norm(squares)},
             'grand_by_block': similarity.norms_by_block,
             'grand_by_layer': similarity.norms_by_sublayer}
    totals: dict[str, dict[Any, np.ndarray]] = {name: {} for name in caps}
    for i, batch in enumerate(batches[:max(caps.values())]):
      own = None if key is None else jax.random.fold_in(key, i)
      squares = self.runner.call(self._squares, self.runner.stacked, self.runner.frozen,
                                 self.runner.rows(batch), own)
      for name in (name for name, cap in caps.items() if i < cap):
        for part, value in parts[name](squares).items():
          totals[name][part] = totals[name].get(part, 0.0) + value
    how = lambda name, value: similarity.normalise(value, caps[name], options.normalise)
    found = {name: {part: how(name, value) for part, value in own.items()}
             for name, own in totals.items()}
    return {name: own[''] if name == 'grand' else own for name, own in found.items()}

  def _blocks(self, batches, own):
    totals: dict[tuple[str, int], np.ndarray] = {}
    used, rows = self._chosen('block_cosine', batches), 0.0
    for batch in used:
      rows += float(np.max(batch['inputs_mask'], axis=1).sum())
      batch = self.runner.rows(batch)
      reference = self._states(own, self.runner.frozen, batch)
      found = self.runner.call(self._cosines, self.runner.stacked, self.runner.frozen, batch,
                               reference)
      for stack, _ in _STACKS:
        for block, value in enumerate(np.asarray(found[stack], np.float64).T):
          totals[stack, block] = totals.get((stack, block), 0.0) + value
    return {'block_cosine': {part: similarity.normalise(value, rows, self.options.normalise)
                             for part, value in totals.items()}}
