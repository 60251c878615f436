"""What the configs of all families share: published names, folders, `config.json`."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from pemt_jax import guards
from pemt_jax.errors import UserError

Config = TypeVar('Config')
Choice = TypeVar('Choice')
_MOST, _MOST_LAYERS = 1 << 24, 1024  # sizes of a backbone


class WholeHeads:
  """Widths where heads share the residual stream and the feed-forward has one branch."""

  @property
  def kv(self) -> int:
    """Width of one attention head."""
    return self.embed // self.heads

  @property
  def joined_kv(self) -> int:
    """Width of all heads together."""
    return self.embed

  @property
  def gated(self) -> bool:
    """The feed-forward has one branch."""
    return False


@dataclasses.dataclass(frozen=True)
class Family(Generic[Config]):
  """Backbones of one form: their published names and how a config is found.

  Attributes:
    title: what the names are, for messages.
    config: class of their shapes and constants.
    kinds: values of `model_type` in `config.json`.
    sizes: short name -> config.
    owners: short name -> owner of the hub repository.
    read_file: `config.json` -> config.
    spelling: name without owner -> how `sizes` spells it.
  """

  title: str
  config: type[Config]
  kinds: tuple[str, ...]
  sizes: Mapping[str, Config]
  owners: Mapping[str, str]
  read_file: Callable[[str | pathlib.Path], Config]
  spelling: Callable[[str], str] = str

  @property
  def published(self) -> tuple[str, ...]:
    """Short names."""
    return tuple(self.sizes)

  def short_name(self, name: str) -> str | None:
    """Returns the published name that `name` means, with or without its owner, or None."""
    for owner in dict.fromkeys(self.owners.values()):
      name = name.removeprefix(f'{owner}/')
    name = self.spelling(name)
    return name if name in self.sizes else None

  def hub_id(self, name: str) -> str:
    """Returns the hub repository of a published size; other names are returned unchanged."""
    short = self.short_name(name)
    return name if short is None else f'{self.owners[short]}/{short}'

  def read(self, name_or_folder: str | pathlib.Path) -> Config:
    """Returns the config of a published size, or of a local folder that holds `config.json`.

    Args:
      name_or_folder: a published name, with or without its owner, or a path; a folder is preferred.

    Raises:
      UserError: it is neither, or the folder's `config.json` is missing or of another family.
    """
    folder = pathlib.Path(name_or_folder)
    if folder.is_dir():
      return self.read_file(folder / 'config.json')
    name = str(name_or_folder)
    short = self.short_name(name)
    if short is not None:
      return self.sizes[short]
    if name.startswith(('.', '/', '~')):
      raise UserError(f"Model folder '{name}' does not exist; check model.name.")
    close = difflib.get_close_matches(name.lower().rsplit('/', 1)[-1], self.sizes, n=3, cutoff=0.6)
    known = ('close names are ' + ', '.join(close) if close
             else 'known names are ' + ', '.join(self.sizes))
    raise UserError(f"model.name '{name}' is neither a folder nor a known {self.title}; {known}.")


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
  return require_object(guards.read_json(path, 'copy the file again'), str(path))


def require_object(values: Any, place: str) -> dict[str, Any]:
  """Returns `values` as a dict.

  Raises:
    UserError: it is no mapping.
  """
  if not isinstance(values, Mapping):
    raise UserError(f"'{place}' holds no JSON object; use the config.json of a checkpoint.")
  return dict(values)


def strict(read: Callable[..., Config]) -> Callable[..., Config]:
  """Makes a reader of the values of a `config.json` refuse values of wrong types and sizes.

  Args:
    read: (values, place) -> config; a place that is not given is 'config.json'.

  Returns:
    The same function, whose errors are all of type `UserError`.
  """
  @functools.wraps(read)
  def reading(values: Mapping[str, Any], place: str = 'config.json') -> Config:
    with guards.reading(place, 'use the config.json of a checkpoint'):
      config = read(values, place)
      for field in dataclasses.fields(config):
        _check_field(field, getattr(config, field.name))
      return config
  return reading


def _check_field(field: dataclasses.Field, value: Any) -> None:
  kinds = {'int': int, 'float': (int, float), 'bool': bool, 'str': str}
  right = isinstance(value, kinds.get(field.type, object))
  if field.type == 'int':
    least = {'token_types': 0}.get(field.name, -1 if field.name.endswith('_id') else 1)
    most = _MOST_LAYERS if field.name.endswith('_layers') else _MOST
    right = type(value) is int and least <= value <= most
  elif field.type == 'float':
    right = right and math.isfinite(value)
  elif field.name == 'generation':
    right = all(isinstance(number, (int, float)) for _, number in value)
  if not right:
    raise ValueError(f'{field.name} is {value!r:.80}')


def checked(values: Any, place: str, kinds: tuple[str, ...], required: Iterable[str],
            unstated: str | None = None) -> dict[str, Any]:
  """Returns the values of a `config.json` that is of a family and states its sizes.

  Args:
    values: what the file holds.
    place: its name, for messages.
    kinds: values of `model_type`.
    required: keys that must be there.
    unstated: `model_type` of a file that names none.

  Raises:
    UserError: no mapping, another family, or a key that is missing or null.
  """
  values = require_object(values, place)
  kind = values.get('model_type', unstated)
  if kind not in kinds:
    only = ' and '.join(kinds) if len(kinds) > 1 else f"'{kinds[0]}'"
    raise UserError(f"'{place}' has model_type '{kind}'; only {only} can be read here.")
  missing = [key for key in required if values.get(key) is None]
  if missing:
    raise UserError(f"'{place}' lacks {', '.join(missing)}; use the config.json of a checkpoint.")
  return values


def require_values(values: Mapping[str, Any], only: Mapping[str, Any], place: str) -> None:
  """Checks keys of which one value is supported; they may be absent.

  Raises:
    UserError: a key with another value.
  """
  for key, value in only.items():
    if values.get(key, value) is not value:
      raise UserError(f"'{place}' has {key} {values[key]!r}; only {value!r} is supported.")


def require_whole_heads(values: Mapping[str, Any], width: str, heads: str, place: str) -> None:
  """Checks that the heads divide the width of the residual stream; both are keys.

  Raises:
    UserError: they don't.
  """
  if values[width] % values[heads]:
    raise UserError(f"'{place}' has {width} {values[width]}, which its {values[heads]} heads do not"
                    ' divide; correct it.')


def choose(key: str, value: str, choices: Mapping[str, Choice], place: str) -> Choice:
  """What the value of a key means.

  Raises:
    UserError: a value without a meaning.
  """
  if value not in choices:
    raise UserError(f"'{place}' has {key} '{value}'; supported are {', '.join(choices)}.")
  return choices[value]


def value_of(choices: Mapping[str, Choice], meaning: Choice) -> str:
  """The first value that means this; the reverse of `choose`."""
  return next(value for value, found in choices.items() if found == meaning)


def stated_fields(values: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
  """Fields of a config, of which `keys` names the key; absent and null ones are left out."""
  return {field: values[key] for field, key in keys.items() if values.get(key) is not None}


def keyed_fields(config: Any, keys: Mapping[str, str]) -> dict[str, Any]:
  """Keys of a `config.json`; `keys` maps the fields of a config to them."""
  return {key: getattr(config, field) for field, key in keys.items()}


def model_type(name_or_folder: str | pathlib.Path) -> str | None:
  """The `model_type` of a folder's `config.json`; None without a readable one."""
  file = pathlib.Path(name_or_folder) / 'config.json'
  try:
    values = guards.read_json(file)
  except UserError:
    return None
  return values.get('model_type') if isinstance(values, dict) else None
