"""PEMT stage 1 with adapter experts: reduction 48, lr 5e-4, 5 epochs, warm-up 500."""

from __future__ import annotations

import ml_collections as mlc

from configs.pemt import stage1


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """See `stage1`."""
  config = stage1.get_config(argument)
  config.method.expert = 'adapter'
  return config
