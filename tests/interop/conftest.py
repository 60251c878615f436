"""Backbones on disk."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from pemt_jax.interop import huggingface
from pemt_jax.methods.base import initialiser
from pemt_jax.models.t5 import T5
from tests import tiny


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
  """Folder of a tiny T5."""
  folder = tmp_path_factory.mktemp('t5')
  params, _ = initialiser(T5(tiny.CONFIG))(jax.random.key(0))
  huggingface.save_t5(folder, tiny.CONFIG, jax.tree.map(np.asarray, params))
  return str(folder)
