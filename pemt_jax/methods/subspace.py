"""Tuning all parameters inside of a random subspace of few dimensions."""

from __future__ import annotations

import dataclasses
import math
import re

from pemt_jax.deltas.subspace import PROJECTIONS, Subspace, expander
from pemt_jax.errors import UserError, at_least, number, one_of
from pemt_jax.methods.base import (
    FROZEN, Method, backbone_of, boxed_shapes, embed_site)
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import flatten

NAME = 'fastfood'


@dataclasses.dataclass(frozen=True)
class SubspaceOptions:
  """theta = theta_0 + P z: one vector z for all tensors, fixed projections P of each.

  Attributes:
    dimension: of z.
    projection: 'fastfood' or 'random', see `Subspace`.
    tensors: pattern of the tensors that move, over whole paths of the backbone.
    seed: of the projections.
    train_gaussian: also train the Gaussian part of fastfood (as published by Lv et al. 2023), which
      has at least as many numbers as the backbone.
  """

  dimension: int = 8
  projection: str = 'fastfood'
  tensors: str = '.*'
  seed: int = 0
  train_gaussian: bool = False

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word, a number out of its range, options that exclude each other.
    """
    at_least(self, 1, 'dimension')
    one_of('method.projection', self.projection, PROJECTIONS)
    number('method.seed', self.seed, 0 <= self.seed < 2**24, 'from 0 to 16777215')
    if self.train_gaussian and self.projection != 'fastfood':
      raise UserError("method.train_gaussian is True, but the projection 'random' has no Gaussian"
                      " part; choose method.projection 'fastfood'.")


def subspace(options: SubspaceOptions, config: T5Config, prompt_length: int) -> Method:
  """Intrinsic-dimension tuning (Aghajanyan et al. 2020).

  Raises:
    UserError: no tensor matches.
  """
  del prompt_length
  leaves = flatten(boxed_shapes(backbone_of(config))['params'])
  shapes = {path: leaf.value.shape for path, leaf in leaves.items()
            if re.fullmatch(options.tensors, path)}
  if not shapes:
    raise UserError(f"method.tensors '{options.tensors}' matches no parameter of the backbone;"
                    " give a pattern such as '.*/mlp/.*'.")
  gaussians = tuple(_sizes(path, shape) for path, shape in shapes.items())
  delta = Subspace(options.dimension, options.projection, options.seed,
                   gaussians if options.train_gaussian else ())
  return Method(NAME, Plan((Rule(NAME, embed_site(config), delta),)),
                ((f'deltas/{NAME}/.*', 'subspace'), FROZEN),
                expand=expander(delta, NAME, frozenset(shapes)))


def _sizes(path, shape):
  layered = '/layers/' in path
  return path, math.prod(shape[layered:]), shape[0] if layered else 0
