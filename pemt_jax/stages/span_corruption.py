"""Pretraining stage on plain text, all parameters tuned.

The objective is T5's span corruption (Raffel et al. 2020), BART's text infilling (Lewis et al.
2020) or a prefix language model (Lester et al. 2021).
"""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import ml_collections as mlc
import numpy as np

from pemt_jax.data import cooccurrence, pipeline, text, text_infilling
from pemt_jax.data.line_corruption import make_line_corruption, make_prefixes
from pemt_jax.data.span_corruption import make_span_corruption
from pemt_jax.data.tokenizer import Tokenizer, train_word_tokenizer
from pemt_jax.errors import UserError, one_of
from pemt_jax.interop import backbones
from pemt_jax.methods import baselines
from pemt_jax.methods.base import backbone_of, boxed_shapes, make_loss
from pemt_jax.models.attention_start import matching_attention
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.families import place
from pemt_jax.models.t5_config import T5Config
from pemt_jax.sharding import processes
from pemt_jax.sharding.placement import fetch
from pemt_jax.stages.backbone import (
    Backbone, as_frozen, load_backbone, placement_of, require_text_to_text)
from pemt_jax.stages.config import data_config
from pemt_jax.training.experiment import Experiment, make_replica
from pemt_jax.training.rules import split_params
from pemt_jax.training.step import over_replicas
from pemt_jax.trees import Tree, merge

TOKENIZER = 'tokenizer'
_EMBEDDING = 'shared/embedding'  # Its entries start near 1, those of the layers far below.
_EMBEDDINGS = ('random', 'cooccurrence')
_ATTENTION_STARTS = ('random', 'matching')
# With the share of hidden tokens.
OBJECTIVES = {'span_corruption': 0.15, 'text_infilling': 0.3, 'prefix_lm': 0.0}
_VOCABULARIES = ('tokenizer.json', 'spiece.model')


def build(config: mlc.ConfigDict, workdir: pathlib.Path,
          backbone: Backbone | None = None) -> tuple[Experiment, Backbone]:
  """Builds the experiment: one replica for each seed and learning rate.

  Raises:
    UserError: no text, text shorter than one chunk, or packed rows.
  """
  fields, tokenizer = config.data, None
  if fields.packing:
    raise UserError('config.data.packing is for examples of tasks, and pretraining cuts text into'
                    ' full rows; set it to False.')
  if fields.source == 'playground':
    tokenizer, places = playground_text(config, workdir)
  elif fields.text or fields.text_tasks:
    places = list(fields.text)
  else:
    raise UserError('pretraining has no text; set config.data.text to text files or folders.')
  backbone = backbone or load_backbone(config, config.seeds[0], tokenizer)
  require_text_to_text(backbone, config.stage)
  source = _source(config, places, backbone.tokenizer, fields.cache_dir or workdir / 'cache')
  training, held_out = source.split(fields.validation_chunks)
  one_of('model.embedding', config.model.embedding, _EMBEDDINGS)
  if config.model.embedding == 'cooccurrence':
    backbone = _with_token_vectors(backbone, getattr(training, 'chunks', None), config.seeds[0])
  one_of('model.attention_start', config.model.attention_start, _ATTENTION_STARTS)
  if config.model.attention_start == 'matching':
    backbone = _with_matching_attention(backbone, config.seeds[0])
  method = baselines.full(baselines.FullOptions(), backbone.config, 0)
  model = backbone_of(backbone.config, method.plan, backbone.compute)
  frozen, tuned = split_params(backbone.params, method.tuned)
  placement = placement_of(config, boxed_shapes(model)['params'])
  loss_fn = make_loss(model, method)
  limits = ([source.input_limit], [source.target_limit])
  stream = lambda replica: pipeline.Stream(training, pipeline.StreamConfig(
      batch_size=fields.batch_size, seed=replica.seed, name=replica.name,
      buckets=limits[0], target_buckets=limits[1], drop_remainder=True))
  steps = pipeline.steps_per_epoch(len(training), fields.batch_size, True)
  rates = tuple(config.learning_rates) or (None,)
  replicas = tuple(
      make_replica('backbone' if len(rates) * len(config.seeds) == 1 else
                   f'backbone-seed{seed}-lr{rate}', config.train, steps, seed=seed,
                   learning_rate=rate) for seed in config.seeds for rate in rates)
  experiment = Experiment(
      replicas=replicas, frozen=as_frozen(frozen, 'float32', placement), loss_fn=loss_fn,
      stream=stream, rules=((_EMBEDDING, 'embedding'), *method.tuned),
      init=lambda replica: (jax.tree.map(lambda a: np.asarray(a, np.float32), tuned), {}),
      evaluate=_evaluator(loss_fn, held_out, fields.eval_batch_size, limits, placement),
      placement=placement,
      steps_per_epoch=lambda replica: steps)
  return experiment, backbone


def _with_token_vectors(backbone, chunks, seed):
  """The backbone with an embedding from counts of neighbours in the training chunks."""
  if chunks is None:
    raise UserError("model.embedding='cooccurrence' counts in chunks; set data.unit='chunk'.")
  shapes = backbone.config
  table = cooccurrence.token_vectors(chunks, shapes.vocab_size, shapes.embed, seed=seed)
  if isinstance(shapes, BartConfig):  # Its head does not scale what it reads.
    table = table * np.float32(shapes.embed**-0.5)
  return dataclasses.replace(
      backbone, params={**backbone.params, 'shared': {'embedding': table}})


def _with_matching_attention(backbone, seed):
  """The backbone with attention that starts by matching tokens."""
  if not isinstance(backbone.config, T5Config):
    raise UserError("model.attention_start='matching' is for T5; set it to 'random'.")
  return dataclasses.replace(
      backbone, params=matching_attention(backbone.params, backbone.config, seed))


def _source(config, places, tokenizer, cache_dir):
  """Rows of the text as config.data.unit and config.data.objective say."""
  fields, seed = config.data, config.seeds[0]
  one_of('data.unit', fields.unit, ('chunk', 'line'))
  one_of('data.objective', fields.objective, OBJECTIVES)
  infilling = fields.objective == 'text_infilling'
  density = fields.noise_density
  if density is None:
    density = OBJECTIVES[fields.objective]
  if fields.permute_sentences and not infilling:
    raise UserError("data.permute_sentences is a part of data.objective='text_infilling'; set this"
                    ' too.')
  noise = (text_infilling.Noise(density, fields.mean_span, fields.permute_sentences) if infilling
           else {'noise_density': density, 'mean_span': fields.mean_span, 'seed': seed})
  given = text.task_documents(fields.text_tasks, data_config(config))
  prefixes = fields.objective == 'prefix_lm'
  if prefixes and fields.unit == 'line':
    raise UserError("data.objective='prefix_lm' cuts chunks; set data.unit='chunk'.")
  if fields.unit == 'line':
    documents = (*given, *text.read_documents(text.find_text_files(places)))
    lines = [line for lines in documents for line in lines]
    return (text_infilling.infilling_of_lines(lines, tokenizer, noise, seed) if infilling
            else make_line_corruption(lines, tokenizer, **noise))
  reader = tokenizer.plain() if infilling else tokenizer
  tokens = text.load_token_stream(places, reader, documents=given, newlines=infilling,
                                  cache_dir=cache_dir)
  size = fields.max_source_length
  if prefixes:  # Both with their end mark.
    return make_prefixes(tokens, tokenizer, size - 1, fields.max_target_length - 1)
  return (text_infilling.infilling_of_chunks(tokens, tokenizer, size, noise, seed) if infilling
          else make_span_corruption(tokens, tokenizer, size, **noise))


def playground_text(config: mlc.ConfigDict, workdir: pathlib.Path) -> tuple[Tokenizer, list[str]]:
  """Writes the playground's text and a tokenizer of its words below the workdir."""
  from pemt_jax.data import playground
  folder = workdir / 'text'
  folder.mkdir(parents=True, exist_ok=True)
  lines = playground.corpus(config.data.data_seed, config.data.sentences)
  (folder / 'playground.txt').write_text('\n'.join(lines) + '\n')
  tokenizer = train_word_tokenizer([*playground.vocabulary(), *lines], workdir / TOKENIZER,
                                   sentinels=32)
  return tokenizer, [str(folder)]


def _evaluator(loss_fn, held_out, batch_size, limits, placement):
  batch_loss = placement.bound(jax.jit(over_replicas(
      lambda tuned, constants, frozen, batch: loss_fn(tuned, frozen, constants, batch, None)[1],
      (True, True, False, False))))

  def evaluate(tuned, frozen, constants, replicas, split):
    if split != 'validation':
      return [{} for _ in replicas]
    total, weight = 0.0, 0.0
    for batch in pipeline.eval_batches(held_out, batch_size, *limits):
      metrics = fetch(batch_loss(tuned, constants, frozen, placement.batch(batch, lead=0)))
      total = total + metrics['cross_entropy_nats'] * metrics['weight']
      weight = weight + metrics['weight']
    return [{'loss': float(value)} for value in np.atleast_1d(total / weight)]

  return evaluate


def save_backbone(tuned: Tree, backbone: Backbone, config: mlc.ConfigDict,
                  folder: pathlib.Path) -> None:
  """Writes the first replica's backbone as a Hugging Face folder with its tokenizer."""
  if not processes.is_first():
    return
  params = merge(backbone.params, jax.tree.map(lambda leaf: np.asarray(leaf[0]), tuned))
  backbones.save(folder, backbone.config, params)
  named = pathlib.Path(place(config.model.tokenizer or config.model.name))
  made = folder.parent / TOKENIZER
  save_tokenizer(backbone.tokenizer, made if config.data.source == 'playground' else named, folder)


def save_tokenizer(tokenizer: Tokenizer, named: pathlib.Path, folder: pathlib.Path) -> None:
  """Writes a tokenizer beside a backbone.

  Args:
    tokenizer: as loaded.
    named: folder that it came from, whose files are copied; another name if it came from the hub.
    folder: of the backbone.
  """
  if not any((named / name).is_file() for name in _VOCABULARIES):
    tokenizer.save(folder)
    return
  for name in (*_VOCABULARIES, 'tokenizer_config.json'):
    if (named / name).is_file():
      (folder / name).write_bytes((named / name).read_bytes())
