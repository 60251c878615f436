"""Evaluation of all replicas in one program: loss, auxiliaries and decoded predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.data import pipeline
from pemt_jax.data.buckets import FILLER
from pemt_jax.evaluation.postprocess import AVERAGE, score
from pemt_jax.methods.base import Method, shift_right, token_cross_entropy
from pemt_jax.models import generation
from pemt_jax.models import segments
from pemt_jax.models.decoding import GenerationConfig
from pemt_jax.models.t5 import T5
from pemt_jax.sharding.placement import Placement, fetch
from pemt_jax.stages.decoding import TaskPredict
from pemt_jax.stages.rows import ReplicaSpec, RowStore
from pemt_jax.trees import Tree

AXIS = 'replica'
FREE_TEXT = {'bleu', 'rouge', 'rouge_bootstrap'}  # metrics that depend on the length


def make_predict(model: T5, method: Method, options: GenerationConfig) -> Callable[..., Any]:
  """Returns the compiled (tuned, frozen, constants, batch) -> (tokens, statistics).

  All leaves but those of `frozen` have a leading [replica] axis; tokens are [replica, batch,
  max_length]. The encoder runs once for loss and decoding.
  """
  if method.prediction is not None:
    model = model.clone(plan=method.prediction)

  def predict(tuned: Tree, frozen: Tree, constants: Tree, batch: dict[str, jax.Array],
              axis: str | None):
    variables = method.variables(tuned, frozen, constants)
    apply = lambda *args, **kwargs: model.apply(variables, *args, **kwargs)
    task_ids = batch.get('task_ids')
    encoded = apply(batch['inputs'], batch['inputs_mask'], task_ids, method='encode')
    decoder_inputs = shift_right(batch['targets'], model.config.start_id)
    mask = batch['targets_mask']
    logits, aux = apply(decoder_inputs, mask, encoded, task_ids, method='decode')
    total, weight = token_cross_entropy(logits, batch['targets'], mask)
    extra, metrics = method.auxiliary(aux, encoded.rows)
    rows = batch['inputs'].shape[0]
    decoder, own = segments.for_decoding(model, variables)
    apply = lambda *args, method: decoder.apply(own, *args, method=method)
    memory, cache = apply(encoded, rows, options.max_length, task_ids, method='start_decoding')
    step = lambda tokens, position, cache: apply(tokens, position, cache, memory,
                                                 method='decode_step')
    tokens = generation.generate(step, cache, rows, options, axis)
    observed = method.observe(aux, encoded.rows)
    return tokens, metrics | observed | {'total': total, 'weight': weight, 'extra': extra}

  return over_replicas(predict)


def over_replicas(predict: Callable[..., Any]) -> Callable[..., Any]:
  """Compiles a prediction of one replica for several; a single one is not mapped.

  Args:
    predict: (tuned, frozen, constants, batch, name of the mapped axis or None) -> pytree.

  Returns:
    (tuned, frozen, constants, batch) -> pytree; all leaves but those of `frozen` have a leading
    [replica] axis.
  """
  @jax.jit
  def every(tuned, frozen, constants, batch):
    if batch['inputs'].shape[0] == 1:
      first = jax.tree.map(lambda a: a[0], (tuned, constants, batch))
      out = predict(first[0], frozen, first[1], first[2], None)
      return jax.tree.map(lambda a: jnp.asarray(a)[None], out)
    mapped = jax.vmap(lambda t, c, b: predict(t, frozen, c, b, AXIS), axis_name=AXIS)
    return mapped(tuned, constants, batch)

  return every


def filler_like(batch: pipeline.Batch) -> pipeline.Batch:
  """A batch of filler rows with the shapes of `batch`."""
  empty = {name: np.zeros_like(leaf) for name, leaf in batch.items()}
  return empty | {'example_ids': np.full_like(batch['example_ids'], FILLER)}


class Evaluator:
  """Scores replicas on a split.

  Attributes:
    predict_of: task -> compiled prediction; see `make_predict`.
    store: rows.
    specs: replica name -> what it trains on.
    placement: where arrays stand.
    texts_of: (task, rows of tokens) -> texts; the tokenizer's, unless something else is predicted.
    latest: (replica name, split) -> texts and statistics of the last evaluation.
  """

  def __init__(self, predict_of: TaskPredict | Callable[[str], Any], store: RowStore,
               specs: Mapping[str, ReplicaSpec], placement: Placement = Placement(),
               texts_of: Callable[[str, Sequence[Any]], list[str]] | None = None):
    self.predict_of = predict_of
    self.placement = placement
    self.texts_of = texts_of or (lambda task, rows: store.tokenizer.decode_batch(rows))
    self.store = store
    self.specs = specs
    self.latest: dict[tuple[str, str], tuple[list[str], list[dict[str, np.ndarray]]]] = {}

  def predictions(self, tuned: Tree, frozen: Tree, constants: Tree, names: Sequence[str],
                  split: str) -> tuple[list[list[str]], list[list[dict[str, np.ndarray]]]]:
    """Decodes a split for several replicas.

    Returns:
      For each replica the texts in the order of its examples, and the statistics of its batches.
    """
    tokens, statistics = self._decode(tuned, frozen, constants, names, split)
    return [self._texts(self.specs[name], split, rows)
            for name, rows in zip(names, tokens, strict=True)], statistics

  def _texts(self, spec, split, tokens):
    """Texts of a replica's predictions, task by task."""
    texts, start = [], 0
    for part in spec.parts or (spec,):
      stop = start + len(self.store.examples(part, split).examples)
      texts, start = texts + self.texts_of(part.task, tokens[start:stop]), stop
    return texts

  def _decode(self, tuned, frozen, constants, names, split):
    """Tokens of each replica in the order of its examples, and the statistics of its batches."""
    specs = [self.specs[name] for name in names]
    batches = [self.store.eval_batches(spec, split) for spec in specs]
    tokens: list[dict[tuple[int, int], np.ndarray]] = [{} for _ in specs]  # by (task, example)
    statistics: list[list[dict[str, np.ndarray]]] = [[] for _ in specs]
    for number in range(max(map(len, batches))):
      group = [own[number] if number < len(own) else filler_like(own[-1]) for own in batches]
      tasks = [spec.tasks[batch['task_ids'].max() if spec.parts else 0]
               for spec, batch in zip(specs, group, strict=True)]
      found = self.predict_batch(tuned, frozen, constants, tasks, group)
      for i, (batch, (out, stats)) in enumerate(zip(group, found, strict=True)):
        names_of_rows = zip(batch['task_ids'].tolist(), batch['example_ids'].tolist(), strict=True)
        tokens[i] |= {key: out[row]
                      for row, key in enumerate(names_of_rows) if key[1] != FILLER}
        if number < len(batches[i]):
          statistics[i].append(stats)
    return [[own[key] for key in sorted(own)] for own in tokens], statistics

  def predict_batch(self, tuned: Tree, frozen: Tree, constants: Tree, tasks: Sequence[str],
                    group: Sequence[pipeline.Batch]) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """(tokens, statistics) of the batch of each replica, decoded as its task wants it."""
    chosen, found, placement = [self.predict_of(task) for task in tasks], {}, self.placement
    tuned, constants = placement.stacked(tuned), placement.whole(constants)
    for predict in dict.fromkeys(chosen):
      places = [i for i, own in enumerate(chosen) if own is predict]
      trees = tuned, constants
      if len(places) < len(group):
        trees = jax.tree.map(lambda leaf: leaf[np.asarray(places)], trees)
      batch = placement.batch(pipeline.stack_batches([group[i] for i in places]))
      out, stats = fetch(placement.bound(predict)(trees[0], frozen, trees[1], batch))
      for row, i in enumerate(places):
        found[i] = out[row], {name: np.asarray(value[row]) for name, value in stats.items()}
    return [found[i] for i in range(len(group))]

  def __call__(self, tuned: Tree, frozen: Tree, constants: Tree, replicas: Sequence[Any],
               split: str) -> list[dict[str, float]]:
    """Returns the metrics of each replica: the task's, `loss`, and means of auxiliaries.

    Where texts are free, `generated_tokens` is the mean number of tokens, end mark included. A
    mixture has the metrics of every task behind its name, such as `rte/accuracy`, and the mean of
    the tasks' average metrics, or of all values that these average (`config.mixture.average`);
    tasks whose average is undefined do not enter it.
    """
    names = [replica.name for replica in replicas]
    tokens, statistics = self._decode(tuned, frozen, constants, names, split)
    results = []
    for name, own, stats in zip(names, tokens, statistics, strict=True):
      texts = self._texts(self.specs[name], split, own)
      self.latest[name, split] = texts, stats
      results.append(self._metrics(self.specs[name], split, (own, texts), stats)
                     | summarise(stats))
    return results

  def _metrics(self, spec, split, predicted, statistics):
    """Metrics of the (tokens, texts) that a replica gave for a split."""
    tokens, texts = predicted
    if not spec.parts:
      task, examples = self.store.examples(spec, split).task, self.store.references(spec, split)
      found = score(task, texts, examples)
      if FREE_TEXT & set(task.metrics):
        lengths = [np.count_nonzero(row != self.store.tokenizer.pad_id) for row in tokens]
        found = with_length(found, float(np.mean(lengths)),
                            spec.config.generation.compat_length_in_average)
      return found
    found, counts, start, batch = {}, [], 0, 0
    for part in spec.parts:
      size = len(self.store.examples(part, split).examples)
      count = pipeline.steps_per_epoch(size, part.config.data.eval_batch_size)
      stop = start + size
      own = self._metrics(part, split, (tokens[start:stop], texts[start:stop]), ())
      counts.append(list(own).index(AVERAGE))  # The values that it averages stand before it.
      own |= summarise(statistics[batch:batch + count])
      found |= {f'{part.task}/{name}': value for name, value in own.items()}
      start, batch = stop, batch + count
    averages = np.array([found[f'{task}/{AVERAGE}'] for task in spec.tasks])
    weights = np.where(np.isnan(averages), 0.0, 1.0)  # A correlation may be undefined.
    if spec.config.mixture.average == 'values':
      weights *= counts
    mean = np.sum(np.nan_to_num(averages) * weights) / weights.sum() if weights.any() else np.nan
    return found | {AVERAGE: float(mean)}


def with_length(scores: Mapping[str, float], length: float, averaged: bool) -> dict[str, float]:
  """Adds `generated_tokens` to the scores of a task.

  Args:
    scores: those of `evaluation.postprocess.score`; the values that are averaged come first.
    length: mean number of generated tokens.
    averaged: whether the length, with one decimal, is one of the values that are averaged.
  """
  if not averaged:
    return {**scores, 'generated_tokens': length}
  chosen = dict(list(scores.items())[:list(scores).index(AVERAGE)])
  chosen['generated_tokens'] = round(length, 1)
  return chosen | {AVERAGE: float(np.mean(list(chosen.values())))} | {
      name: value for name, value in scores.items() if name not in (*chosen, AVERAGE)}


def summarise(statistics: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
  """Joins the statistics of batches: token mean of the loss, unweighted means of the others."""
  column = lambda name: np.array([stats[name] for stats in statistics])
  weight = column('weight')
  loss = float(column('total').sum() / max(weight.sum(), 1.0))
  names = [name for name, value in statistics[0].items()
           if name not in ('total', 'weight', 'extra') and not np.ndim(value)]
  means = {name: float(column(name).mean()) for name in names}
  named = {} if 'squared_error' in means else {'cross_entropy_nats': loss}
  return {'loss': loss + float(column('extra').mean()), **named, **means}


def observations(statistics: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Means over batches of the arrays that a method observes."""
  return {name: np.mean([stats[name] for stats in statistics], axis=0)
          for name, value in statistics[0].items() if np.ndim(value)}
