"""Sizes of the deltas of the zoo with their default options."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import linen as nn

from pemt_jax.methods import zoo
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import PUBLISHED
from pemt_jax.training.rules import split_params

SIZE = 't5-base'
PROMPT = 100  # rows of a prompt, where a stage has one
_WITH_SOURCES = ('attempt',)  # begins with prompts of source tasks


def stages() -> tuple[str, ...]:
  """Names of the zoo that need no trained sources."""
  return tuple(name for name in zoo.ZOO if name not in _WITH_SOURCES)


def tuned(stage: str, size: str) -> dict[str, Any]:
  """What a stage trains on a published size.

  Returns:
    `parameters`, and `bytes` of an expert in float32.
  """
  config = PUBLISHED[size]
  options = zoo.default_options(stage)
  method = zoo.make(stage, options[stage] if len(options) == 1 else options, config, PROMPT)
  shapes = nn.meta.unbox(boxed_shapes(T5(config, method.plan))['params'])
  _, own = split_params(shapes, method.tuned)
  count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(own))
  return {'parameters': count, 'bytes': 4 * count}
