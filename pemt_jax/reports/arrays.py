"""Arrays of `.npz` files, checked."""

from __future__ import annotations

import pathlib

import numpy as np

from pemt_jax import guards
from pemt_jax.errors import UserError


def read_arrays(path: pathlib.Path, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
  """Reads all arrays of a file by name.

  Raises:
    UserError: the file holds no plain arrays, or lacks one of `needed`.
  """
  try:
    arrays = guards.load_arrays(path)
  except (ValueError, OSError) as error:
    raise UserError(f"File '{path}' holds no plain arrays ({error}); write it again.") from None
  if not isinstance(arrays, dict):
    raise UserError(f"File '{path}' holds one array without a name; write it again.")
  for name in needed:
    if name not in arrays:
      raise UserError(f"File '{path}' lacks the array '{name}'; it has {', '.join(arrays)}.")
  return arrays


def check_shape(path: pathlib.Path, name: str, array: np.ndarray,
                shape: tuple[int | None, ...]) -> None:
  """Checks the shape of an array of a file; None stands for any size.

  Raises:
    UserError: the shape is another one.
  """
  fits = len(shape) == array.ndim and all(
      want in (None, have) for want, have in zip(shape, array.shape))
  if not fits:
    wanted = ', '.join('any' if size is None else str(size) for size in shape)
    raise UserError(f"Array '{name}' of '{path}' has shape {list(array.shape)}; "
                    f'it must have [{wanted}].')


def names_of(array: np.ndarray) -> tuple[str, ...]:
  """An array of names as a tuple of texts."""
  return tuple(str(name) for name in np.ravel(array))
