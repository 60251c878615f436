"""The one exception type for mistakes that a user can correct."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
  """A mistake in a command, a config or a file, told in one sentence.

  The sentence names the offending value, the place where it was given and the remedy. Launch
  scripts print it to stderr and end with exit code 2, without a traceback (`pemt_jax.cli.run`).
  """


def number(field: str, value: float, right: bool, allowed: str) -> None:
  """Checks a number in a config.

  Args:
    field: dotted name of the config field, for the message.
    value: what it holds.
    right: whether it is in its range.
    allowed: the range in words, such as 'at least 1'.

  Raises:
    UserError: the number is out of its range.
  """
  if not right:
    raise UserError(f'{field} is {value}; give a number {allowed}.')


def at_least(options: Any, bound: float, *fields: str) -> None:
  """Checks numbers among the options of a method.

  Args:
    options: object with the fields.
    bound: smallest number that is right.
    *fields: names below `method`.

  Raises:
    UserError: the first number below the bound.
  """
  for field in fields:
    value = getattr(options, field)
    number(f'method.{field}', value, value >= bound, f'of at least {bound}')


def one_of(field: str, value: str, allowed: Iterable[str]) -> None:
  """Checks a word in a config.

  Args:
    field: dotted name of the config field, for the message.
    value: what it holds.
    allowed: the known words.

  Raises:
    UserError: the word is not known.
  """
  if value not in allowed:
    raise UserError(f"{field} is '{value}'; choose one of {', '.join(allowed)}.")
