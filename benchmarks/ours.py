"""The library's side: the step of `launch/train.py` and its decoding, on synthetic tokens."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections as mlc
import numpy as np

from benchmarks import lengths, lower_bound
from benchmarks.options import Options, batch_of
from benchmarks.timing import memory_gib, timed
from configs.pemt.presets import SOURCES
from pemt_jax.data.pipeline import Stream, stack_batches
from pemt_jax.methods.base import make_loss
from pemt_jax.models.decoding import GenerationConfig
from pemt_jax.stages.artefacts import save_experts
from pemt_jax.stages.backbone import Backbone, load_backbone
from pemt_jax.stages.build import Stage, build
from pemt_jax.stages.config import base_config
from pemt_jax.stages.evaluate import make_predict
from pemt_jax.training.experiment import Experiment, Replica, make_replica
from pemt_jax.training.run import Run
from pemt_jax.trees import flatten

_STEPS = 1_000_000  # Longer than any measurement: the learning rate stays constant.


class Tokens:
  """Synthetic batches in the place of `data.pipeline.Stream`."""

  def __init__(self, options: Options, vocab: int):
    self._options, self._vocab, self._steps = options, vocab, itertools.count()

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    batch = batch_of(self._options, self._vocab, next(self._steps))
    rows = self._options.batch
    masks = {f'{name}_mask': np.ones(ids.shape, np.float32) for name, ids in batch.items()}
    return {**batch, **masks, 'task_ids': np.zeros(rows, np.int32),
            'example_ids': np.arange(rows, dtype=np.int32)}

  def get_state(self) -> dict[str, Any]:
    """Nothing is saved."""
    return {}


def stage_config(options: Options) -> mlc.ConfigDict:
  """Config of the stage, mostly stage 1 of PEMT, at the measured shapes."""
  config = base_config(options.stage)
  config.tasks = SOURCES[:options.replicas]
  if options.replicas > len(SOURCES):
    config.tasks, config.seeds = SOURCES[:1], tuple(range(options.replicas))
  config.model.name, config.model.tokenizer = options.folder, 'playground'
  if options.scan_layers is not None:
    config.model.scan_layers = options.scan_layers
  config.model.remat = options.remat
  config.model.dtype = config.model.frozen_dtype = options.dtype
  config.prompt.length = options.prompt
  if options.stage == 'pemt/stage1':
    config.method.rank, config.method.alpha = options.rank, float(options.rank)
    config.method.prompt = bool(options.prompt)
  if options.stage == 'task_moe':
    config.method.fixed = True
  if options.stage == 'switch':
    config.method.count, config.method.experts = options.experts, 'mpo'
  if options.stage == 'mixda':  # Its own layers are those of T5-base.
    config.method.encoder_layers = config.method.decoder_layers = None
  config.train.learning_rate, config.train.schedule = options.learning_rate, 'constant'
  config.train.steps, config.train.tensorboard = _STEPS, False
  config.generation.max_length = options.target + 1
  return config


def stage_of(options: Options, workdir: pathlib.Path) -> Stage:
  """Builds the stage with the dropout rate of the options."""
  config = stage_config(options)
  backbone = load_backbone(config)
  shapes = dataclasses.replace(backbone.config, dropout=options.dropout)
  backbone = dataclasses.replace(backbone, config=shapes)
  if options.stage == 'pemt/stage2':
    config.sources = _untrained_sources(options, backbone, workdir / 'sources')
  return build(config, workdir, backbone)


def _untrained_sources(options: Options, backbone: Backbone, folder: pathlib.Path
                       ) -> tuple[str, ...]:
  """Experts of stage 1 for all sources, as they start."""
  options = dataclasses.replace(options, stage='pemt/stage1', replicas=len(SOURCES))
  stage = build(stage_config(options), folder, backbone)
  starts = [stage.start(replica) for replica in experiment_of(stage, options).replicas]
  tuned, constants = (jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
                      for trees in zip(*starts, strict=True))
  results = {name: {'final_metrics': {}} for name in stage.specs}
  return tuple(map(str, save_experts(stage, tuned, constants, results, folder).values()))


def experiment_of(stage: Stage, options: Options) -> Experiment:
  """The experiment of `Stage.experiment` with synthetic tokens in the place of rows."""
  make = lengths.stream if options.lengths else Tokens
  replicas = tuple(make_replica(spec.name, spec.config.train, _STEPS, seed=spec.seed)
                   for spec in stage.specs.values())
  vocab = stage.backbone.config.vocab_size

  def stream(_: Replica) -> Tokens | Stream:
    return make(options, vocab)

  return Experiment(
      replicas=replicas, frozen=stage.start.frozen, init=stage.start,
      loss_fn=make_loss(stage.model, stage.method), stream=stream, evaluate=lambda *_: [],
      steps_per_epoch=lambda _: _STEPS, stack=stack_batches, rules=stage.method.tuned)


def save_tuned(path: str, tuned: Any) -> None:
  """Writes the first replica's tuned leaves by path."""
  leaves = {name: np.asarray(leaf)[0] for name, leaf in flatten(tuned).items()}
  np.savez(path, **leaves)


class TrainStep:
  """The update of the training loop; `phases` are seconds of what comes before the first one."""

  def __init__(self, options: Options):
    start = time.perf_counter()
    self._folder = tempfile.TemporaryDirectory()
    workdir = pathlib.Path(self._folder.name)
    stage = stage_of(options, workdir)
    self._loop = Run(experiment_of(stage, options), stage.config.train, workdir)
    self._loop.restore_or_start()
    if options.tuned:
      save_tuned(options.tuned, self._loop.state.tuned)
    jax.block_until_ready((self._loop.state, self._loop.frozen))
    built = time.perf_counter()
    self.first_loss = self._update()
    self.phases = {'build': built - start, 'first_step': time.perf_counter() - built}

  def _update(self) -> float:
    metrics = self._loop.update()
    jax.block_until_ready(self._loop.state)
    return float(np.mean(metrics['loss']))

  def run(self, count: int = 1) -> dict[str, list[Any]]:
    """Makes updates; the values are their losses, see `timing.timed`."""
    return timed(self._update, count)

  def arguments(self) -> tuple[Any, ...]:
    """Arguments of the compiled step."""
    loop = self._loop
    batch = loop.experiment.stack([next(stream) for stream in loop.streams.values()])
    return loop.state, loop.frozen, batch, loop.rates

  def program_memory(self) -> dict[str, float]:
    """Memory that the compiled step asks for, see `timing.memory_gib`."""
    return memory_gib(self._loop.train_step.lower(*self.arguments()).compile())

  def products(self, rounds: int = 5) -> dict[str, Any]:
    """Times the step's own matrix products; see `lower_bound.measure`."""
    jaxpr = self._loop.train_step.trace(*self.arguments()).jaxpr
    return lower_bound.measure(lower_bound.matrix_products(jaxpr), rounds)


class Decoding:
  """Greedy decoding as the evaluation runs it, with the loss of the same pass."""

  def __init__(self, options: Options):
    start = time.perf_counter()
    self._folder = tempfile.TemporaryDirectory()
    stage = stage_of(options, pathlib.Path(self._folder.name))
    config = stage.backbone.config
    # No row ends early: every run decodes the same number of positions.
    generation = GenerationConfig(max_length=options.target + 1, min_length=options.target + 1,
                                  start_id=config.start_id, eos_id=config.eos_id,
                                  pad_id=config.pad_id)
    predict = make_predict(stage.model, stage.method, generation)
    tuned, constants = stage.start(experiment_of(stage, options).replicas[0])
    zero = jax.tree.map(np.zeros_like, tuned)  # The update vanishes: the peer has the plain model.
    one = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf)[None], tree)
    batch = one(next(Tokens(options, config.vocab_size)))
    # The pass over the targets, which gives the loss, is as short as can be.
    batch |= {name: batch[name][..., :1] for name in ('targets', 'targets_mask')}
    arguments = jax.device_put((one(zero), stage.start.frozen, one(constants), batch))
    self._decode = lambda: np.asarray(predict(*arguments)[0])[0, :, 1:]
    built = time.perf_counter()
    self._decode()
    self.phases = {'build': built - start, 'first_step': time.perf_counter() - built}
    self.first_loss = None

  def run(self, count: int = 1) -> dict[str, list[Any]]:
    """Decodes; the values are tokens [batch][target], see `timing.timed`."""
    return timed(lambda: self._decode().tolist(), count)
