"""Runs that tests of stages and of commands share; a conftest imports them by name."""

from __future__ import annotations

import pytest

from tests.stages import small


@pytest.fixture(scope='session')
def base(tmp_path_factory):
  """Folder of all shared runs."""
  return tmp_path_factory.getbasetemp()


@pytest.fixture(scope='session')
def backbone(base):
  """Folder of the tiny backbone."""
  return small.backbone(base)


@pytest.fixture(scope='session')
def stage1(base):
  """See `small.stage1`."""
  return small.stage1(base)


@pytest.fixture(scope='session')
def stage2(base):
  """See `small.stage2`."""
  return small.stage2(base)
