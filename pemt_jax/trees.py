"""Nested dicts of arrays and their paths ('/'-joined keys)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Tree = dict[str, Any]


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns {path: leaf} in the order of the tree."""
  flat = {}
  for key, value in tree.items():
    path = f'{prefix}/{key}' if prefix else key
    if isinstance(value, Mapping):
      flat.update(flatten(value, path))
    else:
      flat[path] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
  """Inverse of `flatten`."""
  tree: Tree = {}
  for path, value in flat.items():
    *parents, last = path.split('/')
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = value
  return tree


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> Tree:
  """Merges two trees; at a common leaf the second wins."""
  merged = dict(first)
  for key, value in second.items():
    if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
      merged[key] = merge(merged[key], value)
    else:
      merged[key] = value
  return merged
