"""Tuning in a random subspace: theta = theta_0 + P z for every tensor (Aghajanyan et al. 2020)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Delta, Values, Weight, Weights
from pemt_jax.errors import UserError
from pemt_jax.models.layers import fold_name
from pemt_jax.models.segments import cut, join
from pemt_jax.models.sites import Aux, Base, Site, SiteContext, StackShape
from pemt_jax.trees import Tree, flatten, merge, unflatten

PROJECTIONS = ('fastfood', 'random')


def padded_size(size: int) -> int:
  """Smallest power of two that is at least `size`."""
  return 1 << (size - 1).bit_length()


def walsh_hadamard(x: jax.Array) -> jax.Array:
  """Product with the unnormalised Walsh-Hadamard matrix in natural order, O(n log n).

  Args:
    x: [n], n a power of two.
  """
  half = 1
  while half < x.shape[0]:
    pairs = x.reshape(-1, 2, half)
    x = jnp.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
    half *= 2
  return x


def fastfood(z: jax.Array, signs: jax.Array, permutation: jax.Array, gaussian: jax.Array,
             size: int, divisor: jax.Array | None = None) -> jax.Array:
  """Fastfood projection P z (Le et al. 2013) with derivatives by the chain rule.

  Args:
    z: [intrinsic]; zeros are added behind it, and what exceeds n is left out.
    signs: [n] of -1 and 1, n = padded_size(size).
    permutation: [n] indices that are gathered.
    gaussian: [n] standard normal numbers.
    size: of the result.
    divisor: sqrt(n * sum(gaussian^2)) of the first Gaussian where that is trained; None computes
      it.

  Returns:
    [size].
  """
  n = signs.shape[0]
  z = jnp.pad(z[:n], (0, max(n - z.shape[0], 0)))
  mixed = walsh_hadamard(signs * z)[permutation]
  if divisor is None:
    divisor = jnp.sqrt(n * jnp.sum(jnp.square(gaussian)))
  return walsh_hadamard(gaussian * mixed)[:size] / (divisor * (size / n)**0.5)


@dataclasses.dataclass(frozen=True)
class Subspace(Delta):
  """The vector z of a model; `expand` moves the backbone by it. Place it at `encoder/embed`.

  Projections are not stored: they follow from `seed`, the path of a tensor and its layer.

  Attributes:
    dimension: of z, which starts from 0.
    projection: 'fastfood', or 'random' for a dense matrix from N(0, 0.01^2), which takes
      dimension times the memory of a tensor.
    seed: of all projections.
    gaussians: (path, shape of one layer, layers or 0) of tensors whose Gaussian vector is trained
      too; trained is the difference to the drawn one, below `gaussian`.
  """

  dimension: int = 8
  projection: str = 'fastfood'
  seed: int = 0
  gaussians: tuple[tuple[str, int, int], ...] = ()
  packs = True

  def model_weights(self, shapes: Mapping[str, StackShape]) -> Weights:
    """`z` [intrinsic], the constant `seed`, and `gaussian/<path>` [generated]."""
    del shapes
    seed = lambda key, shape, dtype=jnp.float32: jnp.full(shape, self.seed, dtype)
    weights = {'z': Weight((self.dimension,), ('intrinsic',)),
               'seed': Weight((), (), seed, constant=True)}
    for path, size, layers in self.gaussians:
      shape, axes = (padded_size(size),), ('generated',)
      shape, axes = ((layers, *shape), ('layer', *axes)) if layers else (shape, axes)
      weights[f'gaussian/{_flat(path)}'] = Weight(shape, axes)
    return weights

  def act(self, values: Values, base: Base, x: Any, context: SiteContext,
          site: Site) -> tuple[Any, Aux]:
    """Nothing; `expand` has done all.

    Raises:
      UserError: rows of a batch with vectors of their own.
    """
    if context.model['z'].ndim > 1:
      raise UserError(f"experts of the stage '{self.projection}' change all parameters, so they"
                      ' cannot share a batch; run them one by one.')
    return base(x), {}

  def expand(self, name: str, paths: frozenset[str], params: Tree, constants: Tree) -> Tree:
    """theta_0 + P z.

    Args:
      name: of the rule.
      paths: canonical paths of the tensors that move.
      params: all parameters of the model.
      constants: of the model.

    Returns:
      Parameters with the moved tensors, float32, in the segments of `params`.
    """
    flat = dict(flatten(join(params)))
    own = f'deltas/{name}'
    seed = flatten(constants)[f'{own}/seed']
    key = jax.random.key(seed.astype(jnp.uint32))
    for path in sorted(paths):
      change = flat.get(f'{own}/gaussian/{_flat(path)}')
      move = self._move(fold_name(key, path), flat[f'{own}/z'], flat[path].shape,
                        ('/layers/' in path, change))
      flat[path] = flat[path].astype(jnp.float32) + move
    return cut(unflatten(flat), params)

  def _move(self, key, z, shape, options):
    layered, change = options
    if not layered:
      return self._one(key, z, shape, change)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(shape[0]))
    one = lambda key, change: self._one(key, z, shape[1:], change)
    return jax.vmap(one, in_axes=(0, None if change is None else 0))(keys, change)

  def _one(self, key, z, shape, change):
    size = 1
    for length in shape:
      size *= length
    if self.projection == 'random':
      return (0.01 * jax.random.normal(key, (size, z.shape[0])) @ z).reshape(shape)
    n = padded_size(size)
    parts = [fold_name(key, part) for part in ('signs', 'permutation', 'gaussian')]
    gaussian = jax.random.normal(parts[2], (n,))
    divisor = jnp.sqrt(n * jnp.sum(jnp.square(gaussian)))
    gaussian = gaussian if change is None else gaussian + change
    signs, order = jax.random.rademacher(parts[0], (n,), jnp.float32), jnp.argsort(
        jax.random.bits(parts[1], (n,)))
    return fastfood(z, signs, order, gaussian, size, divisor).reshape(shape)


def _flat(path: str) -> str:
  return path.replace('/', '.')


def expander(delta: Subspace, name: str, paths: frozenset[str]) -> Any:
  """(tuned, frozen, constants) -> parameters of a method that has `delta` under this name."""
  def expand(tuned: Tree, frozen: Tree, constants: Tree) -> Tree:
    return delta.expand(name, paths, merge(frozen, tuned), constants)

  return expand
