"""Starts on a new task from an expert of routed layers.

Their route stays, or its logits are trained, or the layers are squeezed into the plain backbone of
the route. Ye et al. 2022 report such starts and do not say which of these forms they have.
"""

from __future__ import annotations

import copy
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np

from pemt_jax.data.tasks import get_task
from pemt_jax.errors import UserError, number, one_of
from pemt_jax.experts import routes as routes_lib
from pemt_jax.experts.layer_experts import squeezed
from pemt_jax.experts.library import CARD, ExpertCard, check_backbone, load_expert, save_expert
from pemt_jax.interop import backbones
from pemt_jax.methods import task_moe as method_lib, zoo
from pemt_jax.methods.task_moe import NAME, PLACE, TaskMoEOptions
from pemt_jax.models.families import place
from pemt_jax.models.sites import plan_as_json
from pemt_jax.stages import span_corruption
from pemt_jax.stages.artefacts import config_of
from pemt_jax.stages.backbone import Backbone, load_backbone
from pemt_jax.stages.config import base_config, options_of
from pemt_jax.stages.task_moe import VECTORS, opened
from pemt_jax.trees import Tree, flatten, merge, unflatten

ROUTE_SOURCES = ('router', 'average', 'random')
_FLOOR = 1e-3  # of a route whose logit is trained
_PLAIN = 'full'


@dataclasses.dataclass(frozen=True)
class StartOptions:
  """Which route a new task takes, and what becomes of it.

  Attributes:
    expert: folder of an expert of routed layers; '' for none.
    vectors: folder with the vector of the task; '' takes that of the expert, which then has to be
      trained on the task.
    routes: 'router', the expert's own; 'average'; 'random' experts of each layer.
    random_experts: number of these.
    seed: of their draw.
    train_routes: train the logits of the route, otherwise it stays.
    factor: of their rate, in few-shot tuning.
    squeeze: keep the strongest expert of each layer only, as the plain backbone.
  """

  expert: str = ''
  vectors: str = ''
  routes: str = 'router'
  random_experts: int = 1
  seed: int = 42
  train_routes: bool = False
  factor: float = 100.0
  squeeze: bool = False

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word, or options that exclude each other.
    """
    one_of('config.routed.routes', self.routes, ROUTE_SOURCES)
    number('config.routed.factor', self.factor, self.factor >= 0, 'at least 0')
    number('config.routed.random_experts', self.random_experts, self.random_experts >= 1,
           'of at least 1')
    if self.squeeze and self.train_routes:
      raise UserError('config.routed.squeeze is True, which leaves no route, and so is'
                      ' config.routed.train_routes; choose one of them.')


@dataclasses.dataclass(frozen=True)
class Adapted:
  """An expert as the start of one task.

  Attributes:
    config: of the stage that trains it on the task.
    options: of its method.
    tuned: canonical tree.
    constants: canonical tree.
    routes: [layer, expert] of all layers.
  """

  config: mlc.ConfigDict
  options: Any
  tuned: Tree
  constants: Tree
  routes: np.ndarray


def adapt(options: StartOptions, task: str, backbone: Backbone) -> Adapted:
  """What an expert of routed layers is for one task.

  Args:
    options: see `StartOptions`.
    task: name of the task.
    backbone: of the expert.

  Raises:
    UserError: no such expert, an expert of another backbone, no vector of the task.
  """
  tuned, constants, card = load_expert(pathlib.Path(options.expert))
  if card.method != NAME:
    raise UserError(f"expert '{options.expert}' is of method '{card.method}'; give one of {NAME}.")
  check_backbone(card, backbone.name, backbone.hash)
  config = config_of(card)
  with config.unlocked():
    config.tasks, config.mixture.sampling = (get_task(task).name,), ''
    own = options_of(config)
    if options.routes == 'router':
      tuned, constants = opened(config, (tuned, constants), card, options.vectors)
  chosen = method_lib.layers_with_experts(own, backbone.config)
  routes = _routes_of(options, own, backbone, flatten(tuned) | flatten(constants))
  layers = unflatten({path: leaf for path, leaf in flatten(tuned).items()
                      if not path.startswith(f'{PLACE}/')})
  if options.squeeze:
    split = routes_lib.split_stacks(routes, backbone.config.encoder_layers)
    plain = squeezed(layers, dict(zip(('encoder', 'decoder'), split, strict=True)), chosen)
    fields = options_of(base_config(_PLAIN))
    return Adapted(_with(config, _PLAIN, fields), fields, jax.tree.map(np.asarray, plain), {},
                   routes)
  fields = dict(vars(own), vectors='', tasks=1, mode='softmax', initial_temperature=1.0,
                minimum_temperature=1.0, anneal_rate=0.0, prediction_temperature=0.0,
                exploration=0.0, alternate_every=0, hard_prediction=False)
  logits = np.log(np.maximum(routes, _FLOOR))[None]
  if options.train_routes:
    added, kept = {'logits': logits}, {'temperature': np.float32(1.0),
                                       'closed': np.zeros(routes.shape, np.float32)}
    fields |= {'routes': 'table', 'fixed': False}
  else:
    added, kept = {}, {'routes': routes[None]}
    fields |= {'routes': 'fixed', 'fixed': bool(np.all(routes.max(-1) == 1.0))}
  changed = TaskMoEOptions(**fields)
  return Adapted(_with(config, NAME, changed), changed, merge(layers, _placed(added)),
                 _placed(kept), routes)


def _with(config: mlc.ConfigDict, stage: str, options: Any) -> mlc.ConfigDict:
  """The config with another stage, which starts from nothing."""
  own = copy.deepcopy(config)
  with own.unlocked():
    own.stage, own.method, own.starts, own.start_only = stage, base_config(stage).method, (), ()
    own.method.update(dataclasses.asdict(options))
    own.train.group_multipliers = {}
  return own


def _placed(leaves: dict[str, np.ndarray]) -> Tree:
  return {'deltas': {NAME: leaves}} if leaves else {}


def _routes_of(options: StartOptions, own: TaskMoEOptions, backbone: Backbone,
               leaves: dict[str, Any]) -> np.ndarray:
  """Routes [layer, expert] of the only task."""
  size = leaves[VECTORS].shape[1] if VECTORS in leaves else own.vector_size
  delta = method_lib.delta_of(dataclasses.replace(own, tasks=1), backbone.config, size)
  shape = delta.layers, 1, delta.copies
  if options.routes == 'average':
    found = routes_lib.average_routes(shape)
  elif options.routes == 'random':
    found = routes_lib.task_random_table(1, delta.layers, delta.copies, options.random_experts,
                                         options.seed).swapaxes(0, 1)
  elif own.routes == 'gate':
    raise UserError(f"expert '{options.expert}' has gates that read texts and no route of a task;"
                    " choose 'average' or 'random' as config.routed.routes.")
  else:
    delta = dataclasses.replace(delta, fixed_temperature=own.prediction_temperature)
    values = {path.removeprefix(f'{PLACE}/'): jnp.asarray(leaf) for path, leaf in leaves.items()
              if path.startswith(f'{PLACE}/')}
    found = delta.routes(values, jnp.zeros((1,), jnp.int32), None)
  return np.asarray(found, np.float32)[:, 0]


def write_start(found: Adapted, task: str, backbone: Backbone, folder: pathlib.Path) -> None:
  """Writes an expert that a stage starts from.

  Args:
    found: of `adapt`.
    task: its task.
    backbone: of the expert.
    folder: made; its name is the expert's.
  """
  stage = found.config.stage
  plan = zoo.make(stage, found.options, backbone.config, 0).plan
  save_expert(folder, found.tuned, found.constants, ExpertCard(
      name=folder.name, method=stage, plan=plan_as_json(plan), task=get_task(task).name,
      backbone_id=backbone.name, backbone_hash=backbone.hash,
      extra={'options': found.config.method.to_dict(), 'seed': found.config.seeds[0],
             'config': found.config.to_dict(), 'sources': []}))


def starter(options: StartOptions, backbone: Backbone,
            done: Callable[[pathlib.Path, mlc.ConfigDict], bool]) -> Callable[..., Any]:
  """What prepares the stage of a task of few-shot tuning, see `few_shot.run_few_shot`.

  Args:
    options: see `StartOptions`.
    backbone: of the expert.
    done: (folder of a task, config of its stage) -> whether that stage has ended.
  """
  def prepare(config: mlc.ConfigDict, title: str, folder: pathlib.Path) -> mlc.ConfigDict:
    del title
    task, place_of = config.tasks[0], folder / START
    found = adapt(options, task, backbone)
    if not (done(folder, config) or (place_of / CARD).is_file()):
      write_start(found, task, backbone, place_of)
    own = copy.deepcopy(config)
    with own.unlocked():
      own.stage, own.method = found.config.stage, found.config.method
      own.starts = (str(place_of),)
      if options.train_routes:
        own.train.group_multipliers = {'router': options.factor}
    return own

  return prepare


START = 'start'  # folder of a task's start, below that of the task


def save_squeezed(options: StartOptions, task: str, folder: pathlib.Path) -> Adapted:
  """Writes the plain backbone of a task's route with its tokenizer; Hugging Face loads it.

  Args:
    options: see `StartOptions`; squeezed whatever they say.
    task: name of the task.
    folder: made if absent.

  Raises:
    UserError: see `adapt`.
  """
  _, _, card = load_expert(pathlib.Path(options.expert))
  config = config_of(card)
  backbone = load_backbone(config, config.seeds[0])
  found = adapt(dataclasses.replace(options, squeeze=True, train_routes=False), task, backbone)
  backbones.save(folder, backbone.config, merge(backbone.params, found.tuned))
  named = pathlib.Path(place(config.model.tokenizer or config.model.name))
  span_corruption.save_tokenizer(backbone.tokenizer, named, folder)
  return found
