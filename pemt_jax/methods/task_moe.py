"""Task-level mixture of experts: routed layers (Ye et al. 2022)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.errors import UserError, at_least, number, one_of
from pemt_jax.experts import routes as routes_lib
from pemt_jax.experts.layer_experts import SOURCES, LayerExperts, copied
from pemt_jax.experts.routers import KINDS, RouterSpec
from pemt_jax.methods.base import Metrics, Method, no_auxiliary
from pemt_jax.models.bart import LOGITS_BIAS
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.sites import Aux, Plan, Rule
from pemt_jax.trees import Tree, flatten, merge, unflatten

NAME = 'task_moe'
PLACE = f'deltas/{NAME}'
# As published: norms are decayed, since their names did not match what was to be left out.
NO_DECAY = ('.*bias',)


@dataclasses.dataclass(frozen=True)
class TaskMoEOptions:
  """Routed layers; the defaults are those of the published program.

  Attributes:
    experts: copies of each layer.
    routes: where routes come from, a name of `experts.layer_experts.SOURCES`.
    router: a name of `experts.routers.KINDS`.
    hidden: width of the router.
    mode: how routes follow from logits, a name of `experts.routes.MODES`.
    initial_temperature: of the first step, above 0.
    minimum_temperature: that annealing does not undercut.
    anneal_rate: exponent per update, at least 0.
    noise: standard deviation of what is added to the copies of a layer.
    vectors: folder of task vectors, `id2task.json` and `task_vecs.npy`; '' draws random ones.
    vector_size: width of random vectors.
    vector_stddev: of random vectors.
    tune_vectors: train the task vectors; otherwise they are constants.
    plain_encoder_layers: layers without experts.
    plain_decoder_layers: the same of the decoder.
    regularization: factor of the distance of experts in the loss; it pulls them together.
    exploration: probability that a layer's route of a row is replaced in training.
    explore_encoder: by what, 'onehot' or 'uniform'.
    explore_decoder: the same of the decoder.
    random_experts: experts of a layer that routes 'task_random' give a task.
    random_seed: of 'task_random'.
    alternate_every: train the transformer and, in turn, router and vectors, for so many updates
      each; 0 trains all.
    hard_prediction: predict with the strongest expert of each layer only, at the cost of the plain
      backbone; the published program does so in its Gumbel modes and with random experts.
    prediction_temperature: of evaluation and prediction; 0 takes that of the step (published:
      that of the step in training, `minimum_temperature` behind it).
    noisy_evaluation: draw Gumbel noise at evaluation too, as published.
    fixed: routes get no gradient, and only the chosen expert of each row runs.
    tasks: number of tasks; set by the stage.
  """

  experts: int = 3
  routes: str = 'router'
  router: str = 'linear_layer_specific'
  hidden: int = 64
  mode: str = 'gumbel_softmax_st'
  initial_temperature: float = 2.0
  minimum_temperature: float = 0.1
  anneal_rate: float = 3e-4
  noise: float = 1e-8
  vectors: str = ''
  vector_size: int = 768
  vector_stddev: float = 1.0
  tune_vectors: bool = True
  plain_encoder_layers: tuple[int, ...] = ()
  plain_decoder_layers: tuple[int, ...] = ()
  regularization: float = 0.0
  exploration: float = 0.0
  explore_encoder: str = 'onehot'
  explore_decoder: str = 'uniform'
  random_experts: int = 1
  random_seed: int = 42
  alternate_every: int = 0
  hard_prediction: bool = False
  prediction_temperature: float = 0.0
  noisy_evaluation: bool = False
  fixed: bool = False
  tasks: int = 1

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word, or a number out of its range.
    """
    one_of('method.routes', self.routes, SOURCES)
    one_of('method.router', self.router, KINDS)
    one_of('method.mode', self.mode, routes_lib.MODES)
    at_least(self, 1, 'experts')
    for name in ('initial_temperature', 'minimum_temperature'):
      number(f'method.{name}', getattr(self, name), getattr(self, name) > 0, 'above 0')
    at_least(self, 0, 'anneal_rate', 'noise', 'regularization', 'alternate_every', 'vector_stddev',
             'prediction_temperature')
    number('method.exploration', self.exploration, 0 <= self.exploration <= 1, 'from 0 to 1')


@dataclasses.dataclass(frozen=True, eq=False)
class TaskOptions(TaskMoEOptions):
  """Options with what the tasks of a run add to them.

  Attributes:
    values: task vectors [task, size], or None for random ones.
    one_task: every batch has rows of one task only.
  """

  values: np.ndarray | None = None
  one_task: bool = True

  @classmethod
  def of(cls, options: TaskMoEOptions, tasks: int, values: np.ndarray | None,
         one_task: bool = True) -> TaskOptions:
    """The options of a run.

    Args:
      options: of the config.
      tasks: their number.
      values: see the attributes.
      one_task: see the attributes.
    """
    return cls(**vars(options) | {'tasks': tasks, 'values': values, 'one_task': one_task})


def layers_with_experts(options: TaskMoEOptions, config: Any) -> dict[str, tuple[int, ...]]:
  """For each stack, its layers that have experts.

  Raises:
    UserError: a plain layer that is not there, or no layer left.
  """
  found = {}
  for stack in ('encoder', 'decoder'):
    depth, plain = getattr(config, f'{stack}_layers'), getattr(options, f'plain_{stack}_layers')
    missing = [layer for layer in plain if layer not in range(depth)]
    if missing:
      raise UserError(f'method.plain_{stack}_layers names layer {missing[0]}, but the {stack} has'
                      f' {depth} layers; correct it.')
    found[stack] = tuple(layer for layer in range(depth) if layer not in plain)
  if not any(found.values()):
    raise UserError('no layer has experts; leave layers out of method.plain_encoder_layers and'
                    ' method.plain_decoder_layers.')
  return found


def delta_of(options: TaskMoEOptions, config: Any, vector_size: int) -> LayerExperts:
  """The delta of the layers.

  Args:
    options: of the method.
    config: of the backbone.
    vector_size: width of the task vectors.
  """
  depths = tuple((stack, getattr(config, f'{stack}_layers')) for stack in ('encoder', 'decoder'))
  layers = sum(depth for _, depth in depths)
  router = RouterSpec(options.router, vector_size, options.hidden, layers, options.experts)
  fixed = 'one_task' if getattr(options, 'one_task', True) else 'by_row'
  return LayerExperts(
      options.experts, depths, options.tasks, router if options.routes == 'router' else None,
      options.routes, options.mode, fixed if options.fixed else 'mixed',
      options.initial_temperature, options.vector_stddev, options.noisy_evaluation,
      options.exploration, (options.explore_encoder, options.explore_decoder),
      options.random_experts, options.random_seed, options.regularization > 0,
      not options.tune_vectors)


def task_moe(options: TaskMoEOptions, config: Any, prompt_length: int) -> Method:
  """Routed layers of a text-to-text backbone, all of which is trained.

  Groups: 'model', 'router' and 'task_vectors' (of a table of logits, 'router').

  Args:
    options: of the method; `TaskOptions` have the vectors of the tasks.
    config: of the backbone.
    prompt_length: not used.

  Raises:
    UserError: layers that are not there.
  """
  del prompt_length
  chosen, vectors = layers_with_experts(options, config), getattr(options, 'values', None)
  size = options.vector_size if vectors is None else vectors.shape[1]
  delta = delta_of(options, config, size)
  depth = sum(count for _, count in delta.depths)
  layers = tuple((stack, layer) for stack, own in chosen.items() for layer in own)
  rules = lambda own: Plan((
      Rule(NAME, '*/layer', own, layers if len(layers) < depth else None),))
  fast = delta
  if options.fixed or options.hard_prediction:
    fast = dataclasses.replace(delta, form='one_task', penalised=False)
  fast = dataclasses.replace(fast, fixed_temperature=options.prediction_temperature)
  return Method(
      NAME, rules(delta), _tuned(options, config),
      auxiliary=functools.partial(_regularized, options.regularization)
      if options.regularization else no_auxiliary,
      observe=_routes,
      first_values=functools.partial(_first_values, options, chosen, vectors),
      first_constants=functools.partial(_first_constants, options, vectors),
      adapt_start=functools.partial(_adapted, options, vectors),
      next_constants=functools.partial(_annealed, options) if _has_logits(options) else None,
      transform_clipped=functools.partial(_alternated, options.alternate_every)
      if options.alternate_every else None,
      prediction=rules(fast) if fast != delta else None)


def _has_logits(options: TaskMoEOptions) -> bool:
  return options.routes in ('router', 'table')


def _tuned(options: TaskMoEOptions, config: Any) -> tuple[tuple[str, str], ...]:
  vectors = ((f'{PLACE}/vectors', 'task_vectors'),) if options.tune_vectors else ()
  own = {'router': (*vectors, (f'{PLACE}/router_.*', 'router')),
         'table': ((f'{PLACE}/logits', 'router'),),
         'gate': ((f'.*/layers[^/]*/{NAME}/.*', 'router'),)}
  bias = ((LOGITS_BIAS, 'frozen'),) if isinstance(config, BartConfig) else ()
  return (*own.get(options.routes, ()), *bias, ('.*', 'model'))


def _first_values(options: TaskMoEOptions, chosen: dict[str, tuple[int, ...]],
                  vectors: np.ndarray | None, backbone: Tree, params: Tree,
                  key: jax.Array) -> Tree:
  params = copied(backbone, params, key, chosen, options.noise)
  own = options.tune_vectors and options.routes == 'router'
  return _with_vectors(params, vectors if own else None)


def _with_vectors(tree: Tree, vectors: np.ndarray | None) -> Tree:
  if vectors is None:
    return tree
  return merge(tree, {'deltas': {NAME: {'vectors': jnp.asarray(vectors, jnp.float32)}}})


def _first_constants(options: TaskMoEOptions, vectors: np.ndarray | None, constants: Tree) -> Tree:
  """Constants before the first step: the temperature starts anew, whatever an expert left."""
  if _has_logits(options):
    constants = _annealed(options, constants, jnp.zeros(()))
  frozen = options.routes == 'router' and not options.tune_vectors
  return _with_vectors(constants, vectors if frozen else None)


def _adapted(options: TaskMoEOptions, vectors: np.ndarray | None, tuned: Tree,
             shapes: Tree) -> Tree:
  """An expert's leaves with the vectors of this run's tasks, which may be constants there."""
  del shapes
  flat = {path: leaf for path, leaf in flatten(tuned).items() if path != f'{PLACE}/vectors'}
  own = options.tune_vectors and options.routes == 'router'
  return _with_vectors(unflatten(flat), vectors if own else None)


def _annealed(options: TaskMoEOptions, constants: Tree, step: jax.Array) -> Tree:
  """Constants with the temperature behind `step` updates."""
  value = routes_lib.annealed(jnp.asarray(step, jnp.float32), options.initial_temperature,
                              options.minimum_temperature, options.anneal_rate)
  return merge(constants, {'deltas': {NAME: {'temperature': value.astype(jnp.float32)}}})


def _alternated(every: int, grads: Tree, key: jax.Array, step: jax.Array) -> Tree:
  """Gradients of the transformer or, in turn, of router and vectors; those of the others are 0."""
  del key
  own, rest = grads.get('deltas', {}), {k: v for k, v in grads.items() if k != 'deltas'}
  second = ((step + 1) // every) % 2 == 1
  keep = lambda tree, here: jax.tree.map(lambda g: jnp.where(here, g, jnp.zeros_like(g)), tree)
  return merge(keep(rest, second), {'deltas': keep(own, ~second)} if own else {})


def _regularized(factor: float, aux: Aux, rows: jax.Array) -> tuple[jax.Array, Metrics]:
  del rows
  total = sum(jnp.sum(value) for name, value in aux.items() if name.endswith('/penalty'))
  return factor * total, {'expert_distance': jnp.asarray(total)}


def _routes(aux: Aux, rows: jax.Array) -> Metrics:
  """Mean route over the real rows, `routes_<stack>` [layer, expert]."""
  weight = rows / jnp.maximum(jnp.sum(rows), 1.0)
  return {f"routes_{name.partition('/')[0]}": jnp.einsum('lbe,b->le', value, weight)
          for name, value in aux.items() if name.endswith(f'/{NAME}/routes')}
