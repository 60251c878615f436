"""What the configs of all families share: published names, folders, `config.json`."""

from __future__ import annotations

import difflib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pemt_jax.errors import UserError

Config = TypeVar('Config')


def read_json(path: str | pathlib.Path, family: str) -> dict[str, Any]:
  """Reads the object of a `config.json`.

  Args:
    path: the file.
    family: of the model, for messages.

  Raises:
    UserError: the file is missing, is not JSON or holds no object.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"'{path}' does not exist; a model folder needs the config.json of a Hugging"
                    f' Face {family}.')
  try:
    values = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise UserError(f"'{path}' is not valid JSON ({error}); copy the file again.") from error
  return require_object(values, str(path))


def require_object(values: Any, place: str) -> dict[str, Any]:
  """Returns `values` as a dict.

  Raises:
    UserError: it is no mapping.
  """
  if not isinstance(values, Mapping):
    raise UserError(f"'{place}' holds no JSON object; use the config.json of a checkpoint.")
  return dict(values)


def require_keys(values: Mapping[str, Any], keys: Iterable[str], place: str) -> None:
  """Checks that a `config.json` states its sizes.

  Raises:
    UserError: a key is missing or null.
  """
  missing = [key for key in keys if values.get(key) is None]
  if missing:
    raise UserError(f"'{place}' lacks {', '.join(missing)}; use the config.json of a checkpoint.")


def model_type(name_or_folder: str | pathlib.Path) -> str | None:
  """The `model_type` of a folder's `config.json`; None without a readable one."""
  file = pathlib.Path(name_or_folder) / 'config.json'
  try:
    values = json.loads(file.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return None
  return values.get('model_type') if isinstance(values, dict) else None


def find(name_or_folder: str | pathlib.Path, published: Mapping[str, Config],
         short_name: Callable[[str], str | None], read: Callable[[pathlib.Path], Config],
         family: str) -> Config:
  """Returns the config of a published size, or of a local folder that holds `config.json`.

  Args:
    name_or_folder: a published name, with or without its owner, or a path; a folder is preferred.
    published: short name -> config.
    short_name: name -> key of `published`, or None.
    read: `config.json` -> config.
    family: what the names are, for messages.

  Raises:
    UserError: it is neither, or what `read` raises.
  """
  folder = pathlib.Path(name_or_folder)
  if folder.is_dir():
    return read(folder / 'config.json')
  name = str(name_or_folder)
  short = short_name(name)
  if short is not None:
    return published[short]
  if name.startswith(('.', '/', '~')):
    raise UserError(f"Model folder '{name}' does not exist; check model.name.")
  close = difflib.get_close_matches(name.lower().rsplit('/', 1)[-1], published, n=3, cutoff=0.6)
  known = ('close names are ' + ', '.join(close) if close
           else 'known names are ' + ', '.join(published))
  raise UserError(f"model.name '{name}' is neither a folder nor a known {family}; {known}.")
