"""Canonical and segmented parameter trees.

Stored trees are canonical: every leaf of a stack's layers lies below `layers` with one leading
[layer] axis, whichever layers have it. A plan that differs between layers cuts a stack into
segments `layers_<start>_<stop>`, each scanned by itself. Trees are cut once, when they are loaded.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from pemt_jax.errors import UserError
from pemt_jax.trees import Tree, flatten, unflatten

_SEGMENT = re.compile(r'layers_(\d+)_(\d+)')
_LAYERS = re.compile(r'(?:^|/)(?P<name>layers(?:_(?P<start>\d+)_\d+)?)/')


def _canonical(path: str) -> tuple[str, int]:
  """Returns the canonical path and the first layer of its segment (-1 if not segmented)."""
  match = _SEGMENT.search(path)
  if match is None:
    return path, -1
  return path[:match.start()] + 'layers' + path[match.end():], int(match.group(1))


def _range(path: str) -> tuple[int, int]:
  """Layers [start, stop) of a segmented path."""
  found = _SEGMENT.search(path)
  return int(found.group(1)), int(found.group(2))


def _depth(name: str, template: dict[str, Any]) -> int:
  """Number of layers of the stack of a canonical path, from the segments of a template."""
  stack = name.partition('layers')[0]
  return max(_range(path)[1] for path in template
             if path.startswith(stack) and _SEGMENT.search(path))


def _parts(flat: dict[str, Any]) -> dict[str, list[str]]:
  """Maps canonical paths to segmented paths in the order of layers."""
  parts: dict[str, list[tuple[int, str]]] = {}
  for path in flat:
    name, start = _canonical(path)
    parts.setdefault(name, []).append((start, path))
  return {name: [path for _, path in sorted(found)] for name, found in parts.items()}


def join(tree: Tree) -> Tree:
  """Segmented tree -> canonical tree; a canonical tree stays as it is."""
  flat = flatten(tree)
  joined = {}
  for name, paths in _parts(flat).items():
    joined[name] = flat[paths[0]] if len(paths) == 1 else jnp.concatenate([flat[p] for p in paths])
  return unflatten(joined)


def join_shapes(tree: Tree) -> Tree:
  """`join` for a tree of shapes."""
  return jax.eval_shape(join, tree)


def cut(tree: Tree, template: Tree) -> Tree:
  """Canonical tree -> the segments of `template`; paths that the template lacks are kept out.

  A leaf of all layers gives each segment its layers, also where other segments have no such leaf.

  Args:
    tree: canonical tree; may hold only a part of the template's leaves.
    template: segmented tree of arrays or shapes.

  Raises:
    UserError: the leading axis of a leaf is not the number of layers that have it.
  """
  flat, shapes = flatten(tree), flatten(template)
  result = {}
  for name, paths in _parts(shapes).items():
    if name not in flat:
      continue
    if len(paths) == 1 and paths[0] == name:
      result[name] = flat[name]
      continue
    sizes = [shapes[path].shape[0] for path in paths]
    ranges = [_range(path) for path in paths]
    if flat[name].shape[0] == _depth(name, shapes) != sum(sizes):  # Only some layers keep theirs.
      result |= {path: flat[name][slice(*where)] for path, where in zip(paths, ranges, strict=True)}
      continue
    if flat[name].shape[0] != sum(sizes):
      raise UserError(f"'{name}' holds {flat[name].shape[0]} layers, but the plan places it in"
                      f' {sum(sizes)}; load it with the layers that it was trained with.')
    start = 0
    for path, size in zip(paths, sizes, strict=True):
      result[path] = flat[name][start:start + size]
      start += size
  return unflatten(result)


def by_layers(tree: Tree) -> Tree:
  """Cuts the segments of a model's tree into segments of one layer each."""
  result = {}
  for path, leaf in flatten(tree).items():
    found = _LAYERS.search(path)
    if found is None or leaf.shape[0] == 1:
      result[path] = leaf
      continue
    first = int(found.group('start') or 0)
    for layer in range(leaf.shape[0]):
      name = f'layers_{first + layer}_{first + layer + 1}'
      result[path[:found.start('name')] + name + path[found.end('name'):]] = leaf[layer:layer + 1]
  return unflatten(result)


def for_decoding(model: Any, variables: Tree) -> tuple[Any, Tree]:
  """A model and its variables in the form in which a loop over tokens is fast.

  On a CPU a step of that loop would copy the weights of each layer out of their stack: there the
  layers are cut before it. Elsewhere, and where `Compute.scan_layers` asks for a loop over layers,
  both stay as they are.

  Args:
    model: a backbone.
    variables: of `apply`, by collection.
  """
  compute = model.compute
  if compute.scan_layers or (compute.scan_layers is None and compute.backend != 'cpu'):
    return model, variables
  model = model.clone(compute=dataclasses.replace(compute, separate_layers=True))
  return model, {name: by_layers(tree) for name, tree in variables.items()}
