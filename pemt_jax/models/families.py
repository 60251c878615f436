"""The families of backbones: which one a name or a folder belongs to."""

from __future__ import annotations

import difflib
import pathlib

from pemt_jax.errors import UserError
from pemt_jax.models import bart_config, gpt2_config, hf_config, roberta_config, t5_config
from pemt_jax.models.hf_config import Family


# The first one is taken where nothing says which.
FAMILIES = (t5_config.FAMILY, roberta_config.FAMILY, bart_config.FAMILY, gpt2_config.FAMILY)
PLAYGROUND = pathlib.Path(__file__).parent.parent / 'assets' / 'playground_t5'


def place(name: str | pathlib.Path) -> str:
  """Folder of the shipped playground backbone, or the name itself."""
  return str(PLAYGROUND if name == 'playground' else name)


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
  return next((family.hub_id(name) for family in FAMILIES
               if family.short_name(name) is not None), name)
