"""Fixtures of the data tests."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest


@pytest.fixture(scope='session')
def golden_examples(shared_root: pathlib.Path) -> dict[str, Any]:
  """Rows given and rows produced by the published code, by task; skips where they are absent."""
  path = shared_root / 'golden' / 'pemt' / 'data_pipeline' / 'examples.json'
  if not path.is_file():
    pytest.skip(f'no file {path}')
  return json.loads(path.read_text(encoding='utf-8'))
