"""The families of backbones: which one a name or a folder belongs to."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
from collections.abc import Callable
from typing import Any

from pemt_jax.errors import UserError
from pemt_jax.models import (
    bart_config, gpt2_config, hf_config, roberta_config, t5_config)


@dataclasses.dataclass(frozen=True)
class Family:
  """Backbones of one form.

  Attributes:
    config: class of their shapes and constants.
    kinds: values of `model_type` in `config.json`.
    published: short names.
    short_name: name with or without its owner -> short name, or None.
    hub_id: short name -> hub repository; other names are returned unchanged.
    read: published name or folder -> config.
  """

  config: type
  kinds: tuple[str, ...]
  published: tuple[str, ...]
  short_name: Callable[[str], str | None]
  hub_id: Callable[[str], str]
  read: Callable[[str | pathlib.Path], Any]


# The first one is taken where nothing says which.
FAMILIES = (
    Family(t5_config.T5Config, ('t5',), tuple(t5_config.PUBLISHED), t5_config.short_name,
           t5_config.hub_id, t5_config.t5_config),
    Family(roberta_config.RobertaConfig, roberta_config.KINDS, tuple(roberta_config.PUBLISHED),
           roberta_config.short_name, roberta_config.hub_id, roberta_config.roberta_config),
    Family(bart_config.BartConfig, (bart_config.KIND,), tuple(bart_config.PUBLISHED),
           bart_config.short_name, bart_config.hub_id, bart_config.bart_config),
    Family(gpt2_config.GPT2Config, (gpt2_config.KIND,), tuple(gpt2_config.PUBLISHED),
           gpt2_config.short_name, gpt2_config.hub_id, gpt2_config.gpt2_config),
)


def family_of(name_or_folder: str | pathlib.Path) -> Family:
  """The family of a folder's `config.json`, or else of a published name.

  A name that nothing knows belongs to the family with the closest one, whose reader tells so.

  Raises:
    UserError: a folder with a model of an unknown family.
  """
  kind = hf_config.model_type(name_or_folder)
  if kind is not None:
    found = [family for family in FAMILIES if kind in family.kinds]
    if not found:
      known = ', '.join(kind for family in FAMILIES for kind in family.kinds)
      raise UserError(f"'{pathlib.Path(name_or_folder) / 'config.json'}' has model_type '{kind}';"
                      f' only {known} can be read.')
    return found[0]
  name = str(name_or_folder)
  named = [family for family in FAMILIES if family.short_name(name) is not None]
  if named:
    return named[0]
  published = {name: family for family in FAMILIES for name in family.published}
  close = difflib.get_close_matches(name.lower().rsplit('/', 1)[-1], published, n=1, cutoff=0.6)
  return published[close[0]] if close else FAMILIES[0]


def hub_id(name: str) -> str:
  """Returns the hub repository of a published size; other names are returned unchanged."""
  for family in FAMILIES:
    if family.short_name(name) is not None:
      return family.hub_id(name)
  return name
