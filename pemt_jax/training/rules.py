"""Trainable rules: which leaf is tuned, with which learning-rate group, and which is frozen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pemt_jax.errors import UserError

Params = dict[str, Any]
Rules = Sequence[tuple[str, str]]

FROZEN = 'frozen'
BASE_GROUP = 'base'
EVERYTHING: Rules = (('.*', BASE_GROUP),)


def flatten_paths(tree: Params, prefix: str = '') -> dict[str, Any]:
  """Flattens nested dicts to {'a/b/c': leaf}, in the order of the dicts."""
  flat = {}
  for name, value in tree.items():
    path = f'{prefix}/{name}' if prefix else str(name)
    if isinstance(value, Mapping):
      flat.update(flatten_paths(value, path))
    else:
      flat[path] = value
  return flat


def unflatten_paths(flat: Mapping[str, Any]) -> Params:
  """Inverse of `flatten_paths`."""
  tree: Params = {}
  for path, leaf in flat.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def group_of(path: str, rules: Rules) -> str | None:
  """Returns the group of the first rule whose pattern matches the whole path, or None."""
  for pattern, group in rules:
    if re.fullmatch(pattern, path):
      return group
  return None


def assign_groups(params: Params, rules: Rules) -> dict[str, str]:
  """Applies an ordered list of (path pattern, group) to every leaf; the first match wins.

  Args:
    params: nested dicts of arrays.
    rules: patterns are matched against the whole path ('/'-joined names).

  Returns:
    {path: group} in the order of the leaves.

  Raises:
    UserError: a leaf matches no rule, or a rule decides no leaf.
  """
  groups: dict[str, str] = {}
  used: set[int] = set()
  for path in flatten_paths(params):
    index = next((i for i, (pattern, _) in enumerate(rules) if re.fullmatch(pattern, path)), None)
    if index is None:
      raise UserError(f"Parameter '{path}' matches none of the {len(rules)} trainable rules; add a "
                      f"rule with its learning-rate group or '{FROZEN}'.")
    used.add(index)
    groups[path] = rules[index][1]
  for index, (pattern, group) in enumerate(rules):
    if index in used:
      continue
    shadowed = any(re.fullmatch(pattern, path) for path in groups)
    why = ('decides no parameter because earlier rules match all of its paths' if shadowed
           else 'matches no parameter')
    raise UserError(f"Trainable rule {index} ('{pattern}' -> '{group}') {why}; correct the pattern "
                    'or remove the rule.')
  return groups


def split_params(params: Params, rules: Rules) -> tuple[Params, Params]:
  """Splits one tree into (frozen, tuned) by the rules of `assign_groups`.

  Args:
    params: nested dicts of arrays.
    rules: ordered (path pattern, learning-rate group or 'frozen').

  Returns:
    (frozen, tuned): nested dicts that share no leaf; `merge_params` joins them again.

  Raises:
    UserError: see `assign_groups`.
  """
  groups = assign_groups(params, rules)
  flat = flatten_paths(params)
  frozen = {path: leaf for path, leaf in flat.items() if groups[path] == FROZEN}
  tuned = {path: leaf for path, leaf in flat.items() if groups[path] != FROZEN}
  return unflatten_paths(frozen), unflatten_paths(tuned)


def merge_params(frozen: Params, tuned: Params) -> Params:
  """Joins two trees with disjoint leaves into one; neither input is changed.

  Raises:
    UserError: both trees have the same leaf.
  """
  merged = flatten_paths(frozen)
  for path, leaf in flatten_paths(tuned).items():
    if path in merged:
      raise UserError(f"Parameter '{path}' is in the frozen and in the tuned tree; keep it in one "
                      'of them.')
    merged[path] = leaf
  return unflatten_paths(merged)
