"""Stages on plain text: rows of packed text, perplexity, continued prompts."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np

from pemt_jax.data import pipeline, text
from pemt_jax.data.packed_text import PackedText, pack
from pemt_jax.data.templates import Example
from pemt_jax.data.tokenizer import Tokenizer
from pemt_jax.errors import UserError, number
from pemt_jax.evaluation.generated import bleu
from pemt_jax.evaluation.samples import self_bleu
from pemt_jax.methods.base import Method, token_cross_entropy
from pemt_jax.methods.language_modelling import next_tokens
from pemt_jax.models import generation
from pemt_jax.models import segments
from pemt_jax.models.decoding import GenerationConfig, Sampling
from pemt_jax.models.gpt2 import GPT2
from pemt_jax.models.layers import fold_name
from pemt_jax.sharding.placement import Placement, fetch
from pemt_jax.stages.evaluate import over_replicas, summarise
from pemt_jax.stages.rows import ReplicaSpec, stream_config
from pemt_jax.trees import Tree


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Beginnings of held-out texts and how they go on.

  Attributes:
    examples: texts of both.
    ids: [row, prompt] ids of the beginnings.
  """

  examples: Sequence[Example]
  ids: np.ndarray


class TextStore:
  """Rows of plain text, in the place of `stages.rows.RowStore`.

  Attributes:
    tokenizer: text to ids.
    cache_dir: folder of token caches.
  """

  def __init__(self, tokenizer: Tokenizer, cache_dir: str | pathlib.Path):
    self.tokenizer, self.cache_dir = tokenizer, cache_dir
    self._rows: dict[str, PackedText] = {}

  def rows(self, spec: ReplicaSpec, split: str) -> PackedText:
    """Rows of a split; all replicas have the same.

    Raises:
      UserError: no text for the split, or too little.
    """
    if split not in self._rows:
      fields = spec.config.data
      places = {'train': fields.text, 'validation': fields.text_validation,
                'test': fields.text_test}[split]
      if places:
        self._rows[split] = self._read(places, fields)
      if split == 'train' and places and not fields.text_validation:
        self._rows['train'], self._rows['validation'] = self._rows['train'].split(
            fields.validation_chunks)
      if split == 'validation' and not places:
        self.rows(spec, 'train')
      if split not in self._rows:
        field = 'text' if split == 'train' else f'text_{split}'
        raise UserError(f'there is no {split} text; set config.data.{field} to text files or'
                        ' folders.')
    return self._rows[split]

  def _read(self, places, fields):
    tokens = text.load_token_stream(list(places), self.tokenizer, newlines=True,
                                    cache_dir=fields.cache_dir or self.cache_dir)
    return pack(tokens, fields.max_source_length, self.tokenizer.pad_id)

  def examples(self, spec: ReplicaSpec, split: str) -> Prompts:
    """What evaluation continues: beginnings of the first rows of a split, and how they go on.

    Raises:
      UserError: no text for the split, or rows that are too short.
    """
    rows, options = self.rows(spec, split), spec.config.generation
    front, size = options.prompt_tokens, options.max_length - 1
    number('generation.samples', options.samples, options.samples >= 0, 'of at least 0')
    number('generation.prompt_tokens', front, 1 <= front < rows.input_limit,
           f'from 1 to {rows.input_limit - 1}')
    chosen, decode = rows.chunks[:options.samples], self.tokenizer.decode_batch
    sources, targets = decode(chosen[:, :front]), decode(chosen[:, front:front + size])
    return Prompts([Example(*pair) for pair in zip(sources, targets, strict=True)],
                   chosen[:, :front])

  def stream(self, spec: ReplicaSpec) -> pipeline.Stream:
    """Training batches of a replica; they depend on its name and seed only."""
    return pipeline.Stream(self.rows(spec, 'train'), stream_config(spec))

  def steps_per_epoch(self, spec: ReplicaSpec) -> int:
    """Updates per pass over the training rows."""
    return pipeline.steps_per_epoch(len(self.rows(spec, 'train')), spec.config.data.batch_size)


def sampling_of(config: mlc.ConfigDict) -> Sampling:
  """How tokens are drawn.

  Raises:
    UserError: a number out of its range.
  """
  fields = config.generation
  return Sampling(fields.temperature, fields.top_k, fields.top_p)


def make_statistics(model: GPT2, method: Method) -> Callable[..., Any]:
  """Returns the compiled (tuned, frozen, constants, batch) -> statistics of a batch.

  All leaves but those of `frozen` have a leading [replica] axis.
  """
  def statistics(tuned: Tree, frozen: Tree, constants: Tree, batch: Mapping[str, jax.Array],
                 axis: str | None):
    del axis
    variables = method.variables(tuned, frozen, constants)
    logits, aux = model.apply(variables, batch['inputs'], batch['inputs_mask'],
                              batch.get('task_ids'), method='read')
    total, weight = token_cross_entropy(logits[:, :-1], *next_tokens(batch))
    rows = jnp.max(batch['inputs_mask'], axis=1).astype(jnp.float32)
    extra, metrics = method.auxiliary(aux, rows)
    return metrics | method.observe(aux, rows) | {'total': total, 'weight': weight, 'extra': extra}

  return over_replicas(statistics)


def make_continue(model: GPT2, method: Method, options: GenerationConfig,
                  sampling: Sampling) -> Callable[..., Any]:
  """Returns the compiled (tuned, frozen, constants, batch) -> tokens behind the prompts.

  A batch has `inputs` and `inputs_mask` [replica, batch, length]: prompts, padded on the left. One
  beam draws tokens, from the same random numbers at every call; more beams search.

  Returns:
    [replica, batch, max_length]: the last token of the prompt, the output, eos, padding.
  """
  def run(tuned: Tree, frozen: Tree, constants: Tree, batch: Mapping[str, jax.Array],
          axis: str | None):
    decoder, variables = segments.for_decoding(model, method.variables(tuned, frozen, constants))
    apply = lambda *args, name: decoder.apply(variables, *args, method=name)
    inputs, rows = batch['inputs'], batch['inputs'].shape[0]
    encoded = apply(inputs[:, :-1], batch['inputs_mask'][:, :-1], name='encode')
    memory, cache = apply(encoded, rows, options.max_length, name='start_decoding')
    step = lambda *args: apply(*args, memory, name='decode_step')
    if options.num_beams > 1:
      return generation.generate(step, cache, rows, options, axis, inputs[:, -1])
    key = fold_name(jax.random.key(0), 'samples')
    return generation.sample(step, cache, rows, options, key, sampling, inputs[:, -1])

  return over_replicas(run)


def prompt_batch(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, np.ndarray]:
  """Prompts of at least one id, padded on the left to one length of at least 2."""
  size = max(2, *map(len, rows))
  batch = {'inputs': np.full((len(rows), size), pad_id, np.int32),
           'inputs_mask': np.zeros((len(rows), size), np.float32)}
  for place, row in enumerate(rows):
    batch['inputs'][place, size - len(row):] = row
    batch['inputs_mask'][place, size - len(row):] = 1
  return batch


class LanguageEvaluator:
  """Perplexity of replicas on a split, and how well and variedly they continue texts.

  Attributes:
    store: rows.
    specs: replica name -> what it trains on.
    latest: (replica name, split) -> continuations and statistics of the last evaluation.
  """

  def __init__(self, model: GPT2, method: Method, store: TextStore,
               specs: Mapping[str, ReplicaSpec], options: GenerationConfig,
               placement: Placement = Placement()):
    """Prepares programs; each is compiled when it is used.

    Raises:
      UserError: sampling options out of their range.
    """
    self.store, self.specs = store, specs
    self.latest: dict[tuple[str, str], tuple[list[str], list[dict[str, np.ndarray]]]] = {}
    config = next(iter(specs.values())).config
    self._placement = placement
    self._statistics = placement.bound(make_statistics(model, method))
    self._continue = placement.bound(make_continue(model, method, options, sampling_of(config)))

  def continued(self, trees: tuple[Tree, Tree, Tree],
                rows: Sequence[Sequence[int]]) -> list[list[str]]:
    """Continuations of the same prompts by each replica.

    Args:
      trees: (tuned, frozen, constants); all leaves but those of `frozen` are [replica, ...].
      rows: ids of the prompts.
    """
    tokenizer = self.store.tokenizer
    batch, (tuned, frozen, constants) = prompt_batch(rows, tokenizer.pad_id), trees
    count = jax.tree.leaves(tuned)[0].shape[0]
    stacked = {name: np.stack([leaf] * count) for name, leaf in batch.items()}
    found = fetch(self._continue(tuned, frozen, constants, self._placement.batch(stacked)))
    return [tokenizer.decode_batch(tokens[:, 1:]) for tokens in found]

  def __call__(self, tuned: Tree, frozen: Tree, constants: Tree, replicas: Sequence[Any],
               split: str) -> list[dict[str, float]]:
    """Returns the metrics of each replica.

    These are `loss`, `cross_entropy_nats` (mean per predicted token), `perplexity` (e to that) and
    what the method adds; with `generation.samples` also `bleu` against how the texts go on, and
    `self_bleu`, both in percent.
    """
    names = [replica.name for replica in replicas]
    first = self.specs[names[0]]
    fields, statistics = first.config.data, []
    for batch in pipeline.eval_batches(self.store.rows(first, split), fields.eval_batch_size):
      stacked = self._placement.batch(pipeline.stack_batches([batch] * len(names)))
      statistics.append(fetch(self._statistics(tuned, frozen, constants, stacked)))
    prompts = self.store.examples(first, split)
    texts: list[list[str]] = [[] for _ in names]
    if prompts.examples:
      texts = self.continued((tuned, frozen, constants), prompts.ids)
    results = []
    for place, name in enumerate(names):
      own = [{key: np.asarray(value[place]) for key, value in stats.items()}
             for stats in statistics]
      self.latest[name, split] = texts[place], own
      found = summarise(own)
      found['perplexity'] = math.exp(min(found['cross_entropy_nats'], 700.0))
      if texts[place]:
        targets = [example.target for example in prompts.examples]
        found |= bleu(texts[place], targets) | self_bleu(texts[place])
      results.append(found)
    return results


def continued_texts(stage: Any, trees: tuple[Tree, Tree, Tree],
                    prompts: Sequence[str]) -> list[str]:
  """Continues prompts.

  Args:
    stage: a built stage on plain text.
    trees: (tuned, frozen, constants); all leaves but those of `frozen` are [1, ...].
    prompts: texts of at least one token.

  Raises:
    UserError: an empty prompt.
  """
  rows = stage.backbone.tokenizer.encode_batch(list(prompts), add_eos=False)
  for place, row in enumerate(rows):
    if not row:
      raise UserError(f'prompt {place} is empty; give at least one word to continue.')
  return stage.evaluator.continued(trees, rows)[0]
