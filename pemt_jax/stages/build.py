"""From a config to an experiment for the loop."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
from flax import linen as nn

from pemt_jax.data.pipeline import stack_batches
from pemt_jax.methods import baselines, pemt, zoo
from pemt_jax.methods.base import (
    LossForm, Method, as_initialised, backbone_of, boxed_shapes, initialiser, make_loss)
from pemt_jax.methods.base import Backbone as Model
from pemt_jax.methods.classification import make_text_loss, with_head
from pemt_jax.methods.language_modelling import NAME, is_language, make_language_loss
from pemt_jax.models import attention
from pemt_jax.models.layers import fold_name
from pemt_jax.models.roberta import Roberta
from pemt_jax.models.segments import cut, join
from pemt_jax.stages import classification, prompt_sources, prompts, route_records, task_moe
from pemt_jax.stages.backbone import (
    Backbone, as_frozen, load_backbone, placement_of, require_decoder_alone, require_text_to_text,
    storage_dtype)
from pemt_jax.stages.config import generation_config, options_of
from pemt_jax.stages.decoding import TaskPredict
from pemt_jax.stages.evaluate import Evaluator, make_predict
from pemt_jax.stages.language_modelling import LanguageEvaluator, TextStore
from pemt_jax.stages.packing import front_positions
from pemt_jax.stages.prompt_sources import PromptSources
from pemt_jax.stages.rows import ReplicaSpec, RowStore, replica_specs
from pemt_jax.stages.sources import Sources, find_sources, load_sources
from pemt_jax.stages.starts import start_values
from pemt_jax.training.experiment import Experiment, Replica, make_replica
from pemt_jax.training.rules import in_front, split_params
from pemt_jax.training.state import replica_key
from pemt_jax.trees import Tree, flatten, merge, unflatten

_ATTEMPT = f'encoder/embed/{prompt_sources.ATTEMPT}'


class Start:
  """First values of a stage: what is frozen, and (tuned, constants) of each replica.

  Attributes:
    frozen: frozen parameters where they belong.
    shapes: {'params', 'constants'} of the model as shapes.
    placement: where arrays stand.
  """

  def __init__(self, config, backbone, model, method, specs, ids, sources, source_prompts=None):
    self._prompts = source_prompts
    self._config, self._backbone, self._method = config, backbone, method
    self._specs, self._ids = specs, ids
    boxed = boxed_shapes(model)
    self.shapes = nn.meta.unbox(boxed)
    self.placement = placement_of(config, boxed['params'])
    loaded = merge(backbone.params, sources.params if sources else {})
    self._loaded = cut(loaded, self.shapes['params'])
    self._init = initialiser(model, self._loaded)
    frozen, _ = split_params(merge(self.shapes['params'], self._loaded), method.tuned)
    flat, missing = flatten(self._loaded), set(flatten(frozen)) - set(flatten(self._loaded))
    if missing:  # A frozen delta without a file, such as a gate that stays uniform.
      flat = flatten(self._first(jax.random.key(config.frozen_seed))[0])
    kept = {path: flat[path] for path in flatten(frozen)}
    self.frozen = as_frozen(unflatten(kept), config.model.frozen_dtype,
                            self.placement)

  def _first(self, key: jax.Array) -> tuple[Tree, Tree]:
    """First (params, constants) of the model under a key, loaded values included."""
    params, constants = self._init(key)
    params = merge(params, self._loaded)
    if self._method.first_values is not as_initialised:
      found = self._method.first_values(self._backbone.params, join(params), key)
      params = cut(found, self.shapes['params'])
    return params, constants

  def tuned_shapes(self) -> Tree:
    """Shapes of the tuned tree of one replica."""
    return split_params(self.shapes['params'], self._method.tuned)[1]

  def __call__(self, replica: Replica) -> tuple[Tree, Tree]:
    """First (tuned, constants) of a replica; a function of its name, seed and task."""
    spec = self._specs[replica.name]
    key = fold_name(jax.random.wrap_key_data(replica_key(replica.name, replica.seed)), 'init')
    params, constants = self._first(key)
    place = prompts.prompt_place(flatten(params))
    table = flatten(params).get(f'{place}/table')
    if table is not None:
      prompt, mask = prompts.left_pad(self._prompt(spec, fold_name(key, 'prompt')), table.shape[0])
      params = merge(params, unflatten({f'{place}/table': prompt}))
      constants = merge(constants, unflatten({f'{place}/mask': mask}))
    target = flatten(params).get(f'{_ATTEMPT}/table')
    if target is not None:  # Every target starts from the first source.
      first = jnp.broadcast_to(self._prompts.tables[0], target.shape)
      params = merge(params, unflatten({f'{_ATTEMPT}/table': first}))
    _, first = split_params(params, self._method.tuned)
    tuned = first
    if spec.start is not None:
      tuned, more = start_values(spec.start, (self._backbone.name, self._backbone.hash), first,
                                 self._method.adapt_start, self._config.start_only)
      tuned = cut(merge(join(first), tuned), self.tuned_shapes())
      known = flatten(constants)
      constants = merge(constants, unflatten({
          path: leaf for path, leaf in flatten(more).items() if path in known}))
    if self._method.first_constants is not None:
      constants = self._method.first_constants(constants)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tuned), constants

  def _prompt(self, spec, key):
    """First value of the own prompt of a replica."""
    if self._config.prompt.init == prompt_sources.INIT:
      backbone = self._backbone.name, self._backbone.hash
      return prompt_sources.first_prompt(self._config, self._prompts, key, backbone)
    return prompts.initial_prompt(self._config.prompt.init, self._ids[spec.task],
                                  self._backbone.params['shared']['embedding'], key)


@dataclasses.dataclass
class Stage:
  """A stage ready to run, to evaluate or to predict.

  Attributes:
    config: the stage's config.
    backbone: frozen backbone.
    method: recipe.
    model: backbone with the method's plan.
    specs: replica name -> what it trains on.
    store: rows of the replicas, loaded when asked for.
    start: first values and frozen parameters.
    evaluator: scores and predictions.
    sources: source experts of a second stage, or None.
    source_folders: where they came from, in the order of the bank.
  """

  config: mlc.ConfigDict
  backbone: Backbone
  method: Method
  model: Model
  specs: dict[str, ReplicaSpec]
  store: RowStore
  start: Start
  evaluator: Evaluator
  sources: Sources | None
  source_folders: tuple[pathlib.Path, ...] = ()

  def experiment(self) -> Experiment:
    """What the loop trains; loads the rows of all splits before anything is written.

    Raises:
      UserError: rows that cannot be found or do not fit.
    """
    for spec in self.specs.values():
      for split in splits_in_use(spec.config.train):
        self.store.examples(spec, split)
    by_name = lambda replica: self.specs[replica.name]
    form = LossForm(self.config.train.label_smoothing, self.config.train.reduction)
    if self.backbone.has_head:
      loss_fn = make_text_loss(self.model, self.method)
    else:
      make = make_language_loss if is_language(self.config.stage) else make_loss
      loss_fn = make(self.model, self.method, form)
    if self.method.transform_loss is not None:
      loss_fn = self.method.transform_loss(loss_fn, form.reduction == 'sum')
    replicas = tuple(
        make_replica(spec.name, spec.config.train, self.store.steps_per_epoch(spec),
                     seed=spec.seed, learning_rate=spec.learning_rate)
        for spec in self.specs.values())
    return Experiment(
        replicas=replicas, frozen=self.start.frozen, init=self.start,
        loss_fn=loss_fn, evaluate=self.evaluator,
        stream=lambda replica: self.store.stream(by_name(replica)),
        steps_per_epoch=lambda replica: self.store.steps_per_epoch(by_name(replica)),
        stack=stack_batches, rules=self.method.tuned,
        transform_gradients=self.method.transform_gradients,
        transform_clipped=self.method.transform_clipped,
        next_constants=self.method.next_constants,
        watch=route_records.watcher(self.method, self.specs), placement=self.start.placement,
        notes={'attention': attention.describe(self.backbone.compute),
               'frozen_dtype': storage_dtype(self.config.model.frozen_dtype)})


def splits_in_use(train: mlc.ConfigDict) -> tuple[str, ...]:
  """Splits that a run with this `config.train` reads."""
  selection = (train.selection_split,) if train.eval_every != 'never' else ()
  return ('train', *selection, *((train.final_split,) if train.final_split else ()))


def make_method(config: mlc.ConfigDict, backbone: Backbone, prompt_length: int,
                sources: Sources | None,
                source_prompts: PromptSources | None = None) -> Method:
  """Returns the method of the stage."""
  options = options_of(config)
  if prompt_sources.ATTEMPT in zoo.names_of(config.stage):
    targets = len(config.tasks) if config.mixture.sampling else None
    options = prompt_sources.with_counts(options, source_prompts, targets)
  mixed = bool(config.mixture.sampling)
  options = task_moe.for_tasks(options, config)
  options = zoo.for_tasks(options, len(config.tasks) if mixed else 1,
                          mixed and config.mixture.batches in ('single', 'drawn'))
  if config.stage not in zoo.ZOO and not zoo.names_of(config.stage):
    require_text_to_text(backbone, config.stage, config.stage != NAME)
  if config.stage == 'pemt/stage2':
    return pemt.stage2(options, backbone.config, prompt_length, sources.shape)
  if config.stage == 'pemt/stage1':
    return pemt.stage1(options, backbone.config, prompt_length)
  if config.stage in ('span_corruption', NAME):
    return baselines.full(options, backbone.config, prompt_length)
  method = zoo.make(config.stage, options, backbone.config, prompt_length)
  return with_head(method) if backbone.has_head else method


def _evaluator(config, backbone, model, method, store, specs, placement):
  """Scores and predictions; with a head of classes and values, else of decoded texts."""
  if backbone.has_head:
    predict = classification.make_class_predict(model, method)
    return Evaluator(lambda task: predict, store, specs, placement, classification.label_texts)
  options = generation_config(config, backbone.config)
  if is_language(config.stage):
    return LanguageEvaluator(model, method, store, specs, options, placement)
  return Evaluator(
      TaskPredict(config, options, backbone.tokenizer,
                  lambda options: make_predict(model, method, options)), store, specs, placement)


def recipe(config: mlc.ConfigDict, backbone: Backbone, specs: Iterable[ReplicaSpec], length: int,
           given: tuple[Sources | None, PromptSources | None] = (None, None)
           ) -> tuple[Method, Model]:
  """The method of a stage and the model that it trains; of arrays only shapes are read.

  Args:
    config: of the stage.
    backbone: frozen backbone.
    specs: of the replicas.
    length: rows of the prompt.
    given: source experts and source prompts, where the stage has them.

  Raises:
    UserError: options, tasks and backbone that do not fit each other.
  """
  method = make_method(config, backbone, length, *given)
  model = (classification.model_of(backbone, method, specs) if backbone.has_head
           else backbone_of(backbone.config, method.plan, backbone.compute))
  if config.trainable:
    shapes = nn.meta.unbox(boxed_shapes(model))['params']
    rules = in_front(config.trainable, method.tuned, shapes)
    method = dataclasses.replace(method, tuned=rules)
  return method, model


def build(config: mlc.ConfigDict, workdir: str | pathlib.Path,
          backbone: Backbone | None = None) -> Stage:
  """Builds a stage.

  Args:
    config: see `stages.config.base_config`.
    workdir: folder of the run; the token cache goes below it.
    backbone: a backbone that is loaded already.

  Raises:
    UserError: whatever in the config or the files does not fit.
  """
  workdir = pathlib.Path(workdir)
  prompts.check_prompt(config)
  specs = {spec.name: spec for spec in replica_specs(config)}
  if len(config.tasks) == 1:  # The differences of the only task are those of the whole run.
    config = next(iter(specs.values())).config
  backbone = backbone or load_backbone(config, config.seeds[0])
  reader = None
  if backbone.has_head:
    backbone, reader = classification.prepared(backbone, specs.values())
  store = RowStore(backbone.tokenizer, workdir / 'cache', reader)
  if is_language(config.stage):
    require_decoder_alone(backbone, config.stage)
    store = TextStore(backbone.tokenizer, workdir / 'cache')
  sources, folders, source_prompts = None, (), None
  if config.stage == 'pemt/stage2':
    folders = tuple(find_sources(config.sources))
    sources = load_sources(folders, backbone.name, backbone.hash)
  elif prompt_sources.reads_prompts(config):
    folders = tuple(prompt_sources.find_prompt_sources(config.sources))
    source_prompts = prompt_sources.load_prompt_sources(folders, (backbone.name, backbone.hash))
    if prompt_sources.ATTEMPT in zoo.names_of(config.stage):
      sources = source_prompts.as_attempt()
    if config.prompt.init == prompt_sources.INIT:  # Mistakes show before anything is written.
      prompt_sources.first_prompt(config, source_prompts, jax.random.key(0),
                                  (backbone.name, backbone.hash))
    if sources is None:  # The start is part of the tuned prompt from then on.
      folders = ()
  ids = {task: prompts.description_ids(config, task, backbone.tokenizer)
         for task in {spec.task for spec in specs.values()}}
  length = max(map(len, ids.values()))
  if source_prompts is not None:
    length = source_prompts.tables.shape[1]
  method, model = recipe(config, backbone, specs.values(), length, (sources, source_prompts))
  store.front = front_positions(method, backbone, list(specs.values()))
  start = Start(config, backbone, model, method, specs, ids, sources, source_prompts)
  evaluator = _evaluator(config, backbone, model, method, store, specs, start.placement)
  return Stage(config, backbone, method, model, specs, store, start, evaluator, sources, folders)
