"""Where recorded cases lie."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest


@pytest.fixture
def folder_of(golden_root: pathlib.Path,
              request: pytest.FixtureRequest) -> Callable[[str], pathlib.Path]:
  """Folder of a case of the module's SYSTEM, of the repository or else of the shared place."""
  def find(name):
    place = pathlib.Path(request.module.SYSTEM) / name
    if (golden_root / place).is_dir():
      return golden_root / place
    return request.getfixturevalue('shared_root') / 'golden' / place

  return find
