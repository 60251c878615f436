"""Trainable rules: which leaf is tuned, with which learning-rate group, and which is frozen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pemt_jax.errors import UserError
from pemt_jax.trees import Tree as Params, flatten, unflatten

Rules = Sequence[tuple[str, str]]

FROZEN = 'frozen'
BASE_GROUP = 'base'
EVERYTHING: Rules = (('.*', BASE_GROUP),)


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
  for path in flatten(params):
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


def in_front(own: Rules, rules: Rules, params: Params) -> tuple[tuple[str, str], ...]:
  """Rules of one's own before others, of which those that decide nothing any more are left out.

  Args:
    own: they come first.
    rules: the others.
    params: nested dicts of arrays.
  """
  first = tuple((pattern, group) for pattern, group in own)
  rest = [path for path in flatten(params) if group_of(path, first) is None]
  kept, before = [], ()
  for rule in rules:
    decided = any(re.fullmatch(rule[0], path) for path in rest if group_of(path, before) is None)
    matched = any(re.fullmatch(rule[0], path) for path in flatten(params))
    if decided or not matched:  # A pattern without any path stays a mistake.
      kept.append(rule)
    before += (rule,)
  return (*first, *kept)


def split_params(params: Params, rules: Rules) -> tuple[Params, Params]:
  """Splits one tree into (frozen, tuned) by the rules of `assign_groups`.

  Args:
    params: nested dicts of arrays.
    rules: ordered (path pattern, learning-rate group or 'frozen').

  Returns:
    (frozen, tuned): nested dicts that share no leaf; `trees.merge` joins them again.

  Raises:
    UserError: see `assign_groups`.
  """
  groups = assign_groups(params, rules)
  flat = flatten(params)
  frozen = {path: leaf for path, leaf in flat.items() if groups[path] == FROZEN}
  tuned = {path: leaf for path, leaf in flat.items() if groups[path] != FROZEN}
  return unflatten(frozen), unflatten(tuned)


def rate_of(group: str, learning_rate: Any, multipliers: tuple[tuple[str, float], ...]) -> Any:
  """Learning rate of a group.

  Args:
    group: learning-rate group.
    learning_rate: scalar, or mapping {group: scalar}, whose value stands as it is.
    multipliers: (group, factor) pairs for a scalar; a group without an entry has factor 1.
  """
  if isinstance(learning_rate, Mapping):
    return learning_rate[group]
  return learning_rate * dict(multipliers).get(group, 1.0)
