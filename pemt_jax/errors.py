"""The one exception type for mistakes that a user can correct."""

from __future__ import annotations


class UserError(ValueError):
  """A mistake in a command, a config or a file, told in one sentence.

  The sentence names the offending value, the place where it was given and the remedy. Launch
  scripts print it to stderr and end with exit code 2, without a traceback (`pemt_jax.cli.run`).
  """
