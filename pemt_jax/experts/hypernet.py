"""Hyper-networks: the weights of a delta are linear maps of embeddings of tasks, layers and places.

Mahabadi et al. (2021), "Parameter-efficient Multi-task Fine-tuning for Transformers via Shared
Hypernetworks". All weights are made once per forward pass and once per generation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Delta, Values, Weight, Weights, normal_init, ones
from pemt_jax.errors import one_of
from pemt_jax.experts.masked import site_of
from pemt_jax.experts.task_bank import experts_of, rows_of
from pemt_jax.models.layers import layer_norm
from pemt_jax.models.sites import Aux, Base, Site, SiteContext, StackShape

# What one hyper-network serves: a site of one layer; a site of all layers of a stack; all of its
# sites, which embeddings of places tell apart.
SCOPES = ('layer', 'stack', 'places')
NORM_EPSILON = 1e-6  # of the embeddings; as published


@dataclasses.dataclass(frozen=True)
class Embeddings:
  """What a hyper-network reads.

  Attributes:
    size: of the embeddings of tasks, layers and places, drawn from N(0, 1).
    hidden: units of the networks relu(x W + b) W' + b' that join them.
    projected: size of their results.
    project_tasks: a network also stands behind the embedding of the task.
    normed: layer norm of the joint embedding.
  """

  size: int = 64
  hidden: int = 128
  projected: int = 64
  project_tasks: bool = False
  normed: bool = True


def _network(name: str, sizes: tuple[int, int, int], stddev: float) -> Weights:
  """Weights of relu(x W + b) W' + b'."""
  init, found = normal_init(stddev), {}
  for part, into, out in (('in', *sizes[:2]), ('out', *sizes[1:])):
    found[f'{name}_{part}/kernel'] = Weight((into, out), ('rank', 'rank'), init)
    found[f'{name}_{part}/bias'] = Weight((out,), ('rank',))
  return found


def _apply_network(name: str, values: Values, x: jax.Array) -> jax.Array:
  hidden = jax.nn.relu(x @ values[f'{name}_in/kernel'] + values[f'{name}_in/bias'])
  return hidden @ values[f'{name}_out/kernel'] + values[f'{name}_out/bias']


def key_of(name: str) -> str:
  """Name of a site or of a weight as part of another name."""
  return name.replace('/', '_')


@dataclasses.dataclass(frozen=True)
class Generated(Delta):
  """A delta whose weights a hyper-network makes for the task of each row.

  Rules of one name place it at all of its sites in both stacks. The embeddings of tasks belong to
  the model, everything else to a stack.

  Attributes:
    delta: what is generated; it computes nothing ahead.
    sites: paths of its sites without the stack, in the order of the embeddings of places.
    tasks: embeddings of tasks.
    scope: a name out of `SCOPES`.
    embeddings: what the network reads; scope 'layer' reads the task alone.
    own: beginnings of the names of weights that are trained themselves, at each site.
    members: for each task id its embedding; () gives each task its own.
    one_task: all rows of every batch have the task of the first row; cheaper than rows of their
      own.
    stddev: of the first kernels of all networks.
  """

  delta: Delta
  sites: tuple[str, ...]
  tasks: int = 1
  scope: str = 'stack'
  embeddings: Embeddings = Embeddings()
  own: tuple[str, ...] = ()
  members: tuple[int, ...] = ()
  one_task: bool = False
  stddev: float = 0.01

  def __post_init__(self):
    """Checks the scope.

    Raises:
      UserError: an unknown word.
    """
    one_of('the scope of a hyper-network', self.scope, SCOPES)

  @property
  def packs(self) -> bool:
    """As the delta: the examples of a row have one task."""
    return self.delta.packs

  def weights(self, site: Site) -> Weights:
    """Those that are trained themselves."""
    return {name: weight for name, weight in self.delta.weights(site).items()
            if name.startswith(self.own)}

  def generated(self, site: Site) -> Weights:
    """Those that are made."""
    return {name: weight for name, weight in self.delta.weights(site).items()
            if not name.startswith(self.own)}

  def model_weights(self, shapes: Mapping[str, StackShape]) -> Weights:
    """`tasks` [task, size], and the network behind them."""
    sizes = self.embeddings
    found = {'tasks': Weight((self.tasks, sizes.size), ('member', 'rank'), normal_init(1.0))}
    if sizes.project_tasks:
      found |= _network('task', (sizes.size, sizes.hidden, sizes.projected), self.stddev)
    return found

  @property
  def task_size(self) -> int:
    """Size of what stands for a task."""
    sizes = self.embeddings
    return sizes.projected if sizes.project_tasks else sizes.size

  def generator(self, path: str, name: str) -> str:
    """Name of the network that makes a weight at a site."""
    return key_of(name) if self.scope == 'places' else f'{key_of(path)}_{key_of(name)}'

  def stack_weights(self, shape: StackShape) -> Weights:
    """`<site>_<weight>/kernel` [embedding, *weight], `<site>_<weight>/bias` [*weight], in scope
    'layer' behind an axis of layers, in scope 'places' without the site; `layers` [layer, size],
    `places` [site, size] and the network that joins embeddings."""
    sizes, init, found = self.embeddings, normal_init(self.stddev), {}
    width, front, axes = sizes.projected, (), ()
    if self.scope == 'layer':
      width, front, axes = self.task_size, (shape.layers,), ('member',)
    else:
      table = lambda count: Weight((count, sizes.size), ('member', 'rank'), normal_init(1.0))
      found['layers'], joined = table(shape.layers), self.task_size + sizes.size
      if self.scope == 'places':
        found['places'], joined = table(len(self.sites)), joined + sizes.size
      found |= _network('join', (joined, sizes.hidden, sizes.projected), self.stddev)
      if sizes.normed:
        found |= {'norm/scale': Weight((width,), ('norm',), ones), 'norm/bias': Weight(
            (width,), ('norm',))}
    for path in self.sites:
      for name, weight in self.generated(site_of(f'{shape.stack}/{path}', shape)).items():
        network = self.generator(path, name)
        found[f'{network}/kernel'] = Weight(
            (*front, width, *weight.shape), (*axes, 'rank', *weight.axes), init)
        found[f'{network}/bias'] = Weight((*front, *weight.shape), (*axes, *weight.axes))
    return found

  def task_embeddings(self, context: SiteContext) -> jax.Array:
    """[task, size], or [size] where all rows have one task."""
    z = context.model['tasks']
    if self.tasks == 1:
      z = z[0]
    elif self.one_task:
      z = z[experts_of(context.task_ids, self.members, True)]
    return _apply_network('task', context.model, z) if self.embeddings.project_tasks else z

  def joint_embedding(self, values: Values, z: jax.Array, place: int) -> jax.Array:
    """What the networks of a site read: [layer, ...] in front of the axes of z.

    Args:
      values: of `stack_weights`.
      z: embeddings of tasks [..., size].
      place: number of the site.
    """
    spread = lambda a: jnp.broadcast_to(
        a.reshape(-1, *[1] * (z.ndim - 1), a.shape[-1]), (layers, *z.shape[:-1], a.shape[-1]))
    layers = values['layers'].shape[0]
    parts = [jnp.broadcast_to(z, (layers, *z.shape)), spread(values['layers'])]
    if self.scope == 'places':
      parts.append(spread(values['places'][place][None]))
    joint = _apply_network('join', values, jnp.concatenate(parts, axis=-1))
    if self.embeddings.normed:
      joint = layer_norm(joint, values['norm/scale'], values['norm/bias'], NORM_EPSILON)
    return joint

  def prepare(self, values: Values, shape: StackShape, context: SiteContext) -> tuple[Any, Any]:
    """(None, `<site>/<weight>`): [layer, task, *weight], or without tasks where rows have one."""
    z, per_layer = self.task_embeddings(context), {}
    layered = 'l' if self.scope == 'layer' else ''
    for place, path in enumerate(self.sites):
      joint = (jnp.broadcast_to(z, (shape.layers, *z.shape)) if layered
               else self.joint_embedding(values, z, place))
      for name, weight in self.generated(site_of(f'{shape.stack}/{path}', shape)).items():
        network, rank = self.generator(path, name), len(weight.shape)
        kernel, bias = (values[f'{network}/{part}'] for part in ('kernel', 'bias'))
        kernel = kernel.reshape(*kernel.shape[:-rank], -1)
        made = jnp.einsum(f'l...e,{layered}ef->l...f', joint, kernel)
        made = made.reshape(*made.shape[:-1], *weight.shape)
        if layered and z.ndim > 1:
          bias = bias[:, None]
        per_layer[f'{key_of(path)}/{name}'] = made + bias
    return None, per_layer

  def act(self, values: Values, base: Base, x: Any, context: SiteContext,
          site: Site) -> tuple[Any, Aux]:
    """The delta with the weights of each row's task."""
    place, found = key_of(site.path.partition('/')[2]), dict(values)
    for name, weight in self.generated(site).items():
      value = context.per_layer[f'{place}/{name}']
      if self.tasks > 1 and not self.one_task:
        value = self._of_rows(value, len(weight.shape), context.task_ids)
      found[name] = value if weight.exact else value.astype(site.dtype)
    return self.delta.act(found, base, x, context.replace(shared=None, per_layer=None, model=None),
                          site)

  def _of_rows(self, value: jax.Array, rank: int, task_ids: jax.Array) -> jax.Array:
    """[task, *weight] -> [batch, *weight]; inside of a bank the value has a [batch] axis before."""
    ids = experts_of(task_ids, self.members, False)
    if value.ndim == rank + 1:
      return rows_of(value, ids)
    rows = value[jnp.arange(value.shape[0]), ids]
    return rows[:, None, :] if rank == 1 else rows
