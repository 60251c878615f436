"""Layers as experts: copies of a whole layer, mixed by routes of tasks (Ye et al. 2022, section 3).

A rule at `encoder/layer` or `decoder/layer` makes the copies (`models.layer_experts`). The routes
of all layers come from one router on a vector of the task, or from what the paper compares it with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.deltas.base import Delta, Values, Weight, Weights, normal_init
from pemt_jax.errors import UserError, number, one_of
from pemt_jax.experts import routes as routes_lib
from pemt_jax.experts.mixture import pool_prompt
from pemt_jax.experts.routers import RouterSpec, route_logits, router_weights
from pemt_jax.models.layer_experts import FORMS
from pemt_jax.models.layers import fold_name
from pemt_jax.models.sites import Site, SiteContext, StackShape
from pemt_jax.trees import Tree, flatten, unflatten

# Where routes come from; 'table': a row of logits for each task, which may be trained; 'fixed': a
# row of routes for each task.
SOURCES = ('router', 'table', 'fixed', 'average', 'instance_random', 'task_random', 'gate')


@dataclasses.dataclass(frozen=True)
class LayerExperts(Delta):
  """E copies of a layer under routes.

  Task vectors `vectors` [task, inputs], the router's weights, a table of logits [task, layer,
  expert], the temperature [] and closed experts [layer, expert] are weights of the model. The last
  two, the routes of 'task_random' and 'fixed', and frozen task vectors are constants.

  Attributes:
    experts: number E of a layer's copies.
    depths: (stack, layers) of the whole backbone in the order of the router's rows.
    tasks: number of task vectors.
    router: shape of the router.
    source: one of `SOURCES`. 'gate' reads the layer's input as PEMT's gates do.
    mode: how routes follow from logits, one of `routes.MODES`.
    form: how the copies run, one of `models.layer_experts.FORMS`.
    temperature: first value of what divides the logits.
    vector_stddev: of the first task vectors.
    noisy_evaluation: draw Gumbel noise (with a fixed key) where there is no random key, as the
      original does at evaluation.
    epsilon: probability that training replaces a layer's route of a row.
    fills: by what, for the stacks in turn, see `routes.explore`.
    random_experts: experts that 'task_random' gives a task in a layer.
    random_seed: of 'task_random', and of noise and routes at evaluation.
    penalised: return the distance of experts, see `routes.expert_distance`.
    frozen_vectors: task vectors are constants.
    fixed_temperature: in place of the temperature that changes; 0 leaves that.
  """

  experts: int
  depths: tuple[tuple[str, int], ...]
  tasks: int
  router: RouterSpec | None = None
  source: str = 'router'
  mode: str = 'gumbel_softmax_st'
  form: str = 'mixed'
  temperature: float = 1.0
  vector_stddev: float = 1.0
  noisy_evaluation: bool = False
  epsilon: float = 0.0
  fills: tuple[str, ...] = ('onehot', 'uniform')
  random_experts: int = 1
  random_seed: int = 0
  penalised: bool = False
  frozen_vectors: bool = False
  fixed_temperature: float = 0.0

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word, or numbers that do not fit.
    """
    one_of('the source of routes', self.source, SOURCES)
    one_of('the form of layer experts', self.form, FORMS)
    one_of('router mode', self.mode, routes_lib.MODES)
    number('the number of layer experts', self.experts, self.experts >= 1, 'at least 1')
    if self.source == 'gate' and self.form != 'mixed':
      raise UserError(f"layer experts under gates cannot run in the form '{self.form}', since each"
                      " row has a gate of its own; choose 'mixed'.")

  @property
  def copies(self) -> int:
    """The experts."""
    return self.experts

  @property
  def layers(self) -> int:
    """Layers of all stacks."""
    return sum(depth for _, depth in self.depths)

  def model_weights(self, shapes: Mapping[str, StackShape]) -> Weights:
    """What all stacks share."""
    constant = lambda shape, axes, value: Weight(
        shape, axes, lambda *_: jnp.asarray(value, jnp.float32), constant=True)
    experts = (self.layers, self.copies), ('layer', 'expert')
    if self.source == 'task_random':
      table = routes_lib.task_random_table(
          self.tasks, *experts[0], self.random_experts, self.random_seed)
      return {'routes': constant(table.shape, ('task', *experts[1]), table)}
    if self.source == 'fixed':
      shape = (self.tasks, *experts[0])
      return {'routes': constant(shape, ('task', *experts[1]), jnp.full(shape, 1 / self.copies))}
    if self.source == 'table':
      found = {'logits': Weight((self.tasks, *experts[0]), ('task', *experts[1]))}
    elif self.source == 'router':
      found = {f'router_{name}': weight for name, weight in router_weights(self.router).items()}
      found['vectors'] = Weight((self.tasks, self.router.inputs), ('task', 'gate'),
                                normal_init(self.vector_stddev), constant=self.frozen_vectors)
    else:
      return {}
    return found | {'temperature': constant((), (), self.temperature),
                    'closed': constant(*experts, jnp.zeros(experts[0]))}

  def logits(self, model: Values, task_ids: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Logits [layer, batch, expert] of the tasks [batch] in all layers; see `model_weights`."""
    if self.source == 'table':
      found = routes_lib.rows_of_table(model['logits'], task_ids)
    else:
      own = {name.removeprefix('router_'): value for name, value in model.items()
             if name.startswith('router_')}
      found = route_logits(self.router, own, jnp.take(model['vectors'], task_ids, axis=0), key)
    return routes_lib.override(found, model['closed'])

  def routes(self, model: Values, task_ids: jax.Array, key: jax.Array | None) -> jax.Array:
    """Routes [layer, batch, expert] in all layers, without exploration.

    Args:
      model: values of `model_weights`.
      task_ids: [batch].
      key: of noise; None at evaluation.
    """
    shape = (self.layers, task_ids.shape[0], self.copies)
    if self.source == 'average':
      return routes_lib.average_routes(shape)
    if self.source in ('task_random', 'fixed'):
      return routes_lib.rows_of_table(model['routes'], task_ids)
    fixed = jax.random.key(self.random_seed)
    if self.source == 'instance_random':
      return routes_lib.instance_random_routes(fixed if key is None else key, shape)
    own = fixed if key is None and self.noisy_evaluation else key
    noise = routes_lib.selection_noise(self.mode, own, shape)
    dropped = None if key is None else fold_name(key, 'router')
    return routes_lib.select(self.logits(model, task_ids, dropped), self.mode,
                             self.fixed_temperature or model['temperature'], noise)

  def prepare(self, values: Values, shape: StackShape, context: SiteContext) -> tuple[Any, Any]:
    """(None, routes [layer, batch, expert] of the stack's layers)."""
    if self.source == 'gate':
      return None, None
    key = None if context.key is None else fold_name(context.key, 'routes')
    rows = context.rows.shape[0]
    ids = jnp.zeros((rows,), jnp.int32) if context.task_ids is None else context.task_ids
    stacks = [stack for stack, _ in self.depths]
    here = stacks.index(shape.stack)
    start = sum(depth for _, depth in self.depths[:here])
    routes = self.routes(context.model or {}, ids, key)[start:start + shape.layers]
    if self.epsilon and key is not None:
      routes = routes_lib.explore(routes, fold_name(key, 'explore'), self.epsilon,
                                  self.fills[here])
    return None, routes

  def gate_module(self, site: Site, name: str) -> nn.Module | None:
    """A module (x, context) -> [batch, expert] where routes are those of PEMT's gates."""
    return _LayerGate(self.copies, site, name=name) if self.source == 'gate' else None

  def penalty(self, experts: Tree) -> jax.Array | None:
    """Distance of the experts of a layer, or None; leaves are [expert, ...]."""
    return routes_lib.expert_distance(experts) if self.penalised else None


class _LayerGate(nn.Module):
  """Softmax of a linear map of the prompt's mean state; in the decoder, of the encoder's."""

  copies: int
  site: Site

  @nn.compact
  def __call__(self, x: jax.Array, context: SiteContext) -> jax.Array:
    states = x if context.encoder_states is None else context.encoder_states
    z = pool_prompt(states, context.prompt_mask, 'first')
    init = nn.with_logical_partitioning(nn.initializers.zeros, (self.site.in_axis, 'expert'))
    kernel = self.param('kernel', init, (z.shape[-1], self.copies), jnp.float32)
    return jax.nn.softmax(jnp.matmul(z, kernel, precision=jax.lax.Precision.HIGHEST), axis=-1)


def copied(backbone: Tree, params: Tree, key: jax.Array, chosen: Mapping[str, Sequence[int]],
           noise: float) -> Tree:
  """Experts that start from the backbone's layers: copies plus noise ("copy + noise").

  Args:
    backbone: canonical tree of the plain backbone.
    params: canonical tree of the model with experts.
    key: of the noise, which each tensor and each expert has for itself.
    chosen: for each stack, its layers that have experts.
    noise: standard deviation.

  Returns:
    `params` with experts [layer, expert, ...] of new values.
  """
  plain, flat = flatten(backbone), flatten(params)
  for path, leaf in flat.items():
    stack, _, rest = path.partition('/layers/experts/')
    if not rest:
      continue
    source = jnp.asarray(plain[f'{stack}/layers/{rest}'])[jnp.array(chosen[stack])]
    draw = jax.random.normal(fold_name(key, path), leaf.shape, jnp.float32)
    flat[path] = source[:, None] + noise * draw
  return unflatten(flat)


def squeezed(params: Tree, routes: Mapping[str, jax.Array],
             chosen: Mapping[str, Sequence[int]]) -> Tree:
  """The plain backbone that follows one route: the strongest expert of each layer.

  Args:
    params: canonical tree of a model with experts.
    routes: for each stack, [layer, expert] over all layers of the stack.
    chosen: for each stack, its layers that have experts, in order.

  Returns:
    Canonical tree of the plain backbone.
  """
  flat, found = flatten(params), {}
  for path, leaf in flat.items():
    if path.startswith('deltas/'):
      continue
    stack, _, rest = path.partition('/layers/experts/')
    if not rest:
      found.setdefault(path, leaf)
      continue
    name, layers = f'{stack}/layers/{rest}', jnp.array(chosen[stack])
    best = jnp.argmax(jnp.asarray(routes[stack])[layers], axis=-1)
    mine = jnp.take_along_axis(leaf, best.reshape(-1, *(1,) * (leaf.ndim - 1)), axis=1)[:, 0]
    found[name] = _with_plain(mine, flat.get(name), layers, len(routes[stack]))
  return unflatten(found)


def _with_plain(mine: jax.Array, plain: jax.Array | None, layers: jax.Array,
                depth: int) -> jax.Array:
  """All layers' values: those of chosen experts, and of layers without experts."""
  if plain is None:
    return mine
  others = jnp.array([layer for layer in range(depth) if layer not in set(layers.tolist())])
  whole = jnp.zeros((depth, *mine.shape[1:]), mine.dtype)
  return whole.at[layers].set(mine).at[others].set(plain)
