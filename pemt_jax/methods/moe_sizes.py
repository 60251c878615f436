"""Sizes of backbones with experts: the paper's comparison, computed from the architecture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

from flax import linen as nn

from pemt_jax.experts.mpo_shapes import CORES, Factors, known_factors
from pemt_jax.methods.base import backbone_of, boxed_shapes
from pemt_jax.methods.mpo import model_of
from pemt_jax.trees import flatten

BYTES = 4  # of a parameter on disk, float32


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Parameters of a backbone whose every feed-forward has experts, routers included.

  Attributes:
    experts: of a feed-forward.
    dense: parameters of the plain backbone.
    switch: with dense experts.
    mpoe: with experts that share their central cores, each array counted once.
    dense_experts: parameters of the dense experts alone.
    mpoe_experts: parameters of all cores alone.
  """

  experts: int
  dense: int
  switch: int
  mpoe: int
  dense_experts: int
  mpoe_experts: int

  @property
  def ratio(self) -> float:
    """Switch / MPOE, whole models."""
    return self.switch / self.mpoe

  @property
  def expert_ratio(self) -> float:
    """MPOE / Switch, experts alone."""
    return self.mpoe_experts / self.dense_experts


def sizes(config: Any, counts: Iterable[int], rank: int | None = None,
          cores: int = CORES) -> Iterator[Sizes]:
  """Sizes by number of experts; with biases, every expert has its own.

  Args:
    config: of the backbone.
    counts: numbers of experts.
    rank: largest rank of a bond; None keeps all.
    cores: number of cores of a matrix.
  """
  shapes = flatten(nn.meta.unbox(boxed_shapes(backbone_of(config)))['params'])
  dense = sum(math.prod(leaf.shape) for leaf in shapes.values())
  feed_forward = {path: leaf.shape for path, leaf in shapes.items() if '/layers/mlp/' in path}
  replaced = sum(map(math.prod, feed_forward.values()))
  layers = sum(shape[0] for path, shape in feed_forward.items() if path.endswith('/wo/kernel'))
  biases = sum(math.prod(shape) for path, shape in feed_forward.items() if path.endswith('/bias'))
  central = auxiliary = 0
  for path, (depth, *shape) in feed_forward.items():
    if path.endswith('/kernel'):
      name = path.split('/')[-2]
      factors: Factors = known_factors(model_of(config), name[:2], tuple(shape), cores)
      ranks = factors.ranks(rank)
      auxiliary += depth * factors.auxiliary_count(ranks)
      central += depth * (factors.count(ranks) - factors.auxiliary_count(ranks))
  for count in counts:
    routers = layers * count * (config.embed + 1)
    own, shared = count * replaced, central + count * (auxiliary + biases)
    rest = dense - replaced + routers
    yield Sizes(count, dense, rest + own, rest + shared, own, shared)


def as_markdown(config: Any, counts: Iterable[int]) -> str:
  """The table of a backbone, in parameters and in gigabytes of float32."""
  lines = ['| experts | Switch | MPOE | Switch, GB | MPOE, GB | Switch / MPOE |'
           ' experts, MPOE / Switch |', '|---|---|---|---|---|---|---|']
  for row in sizes(config, counts):
    stored = (f'{size * BYTES / 1e9:.2f}' for size in (row.switch, row.mpoe))
    lines.append(f'| {row.experts} | {row.switch:,} | {row.mpoe:,} | {" | ".join(stored)} |'
                 f' {row.ratio:.2f} | {row.expert_ratio:.3f} |')
  return '\n'.join(lines)
