"""What foreign adapter folders can hold, without their formats: sites, sizes, constants."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from pemt_jax.interop import huggingface
from pemt_jax.models.t5_config import T5Config

STACKS = ('encoder', 'decoder')


@dataclasses.dataclass(frozen=True)
class LoRAForm:
  """LoRA: y = base(x) + scaling * x down up.

  Attributes:
    sites: such as 'encoder/self_attention/q', in the order of the backbone; all layers of each.
    rank: columns of `down`.
    scaling: dimensionless.
  """

  sites: tuple[str, ...]
  rank: int
  scaling: float


@dataclasses.dataclass(frozen=True)
class IA3Form:
  """(IA)^3: a factor for each feature.

  Attributes:
    outputs: sites whose output is scaled.
    inputs: sites whose input is scaled.
  """

  outputs: tuple[str, ...]
  inputs: tuple[str, ...]

  @property
  def sites(self) -> tuple[str, ...]:
    """All of them."""
    return self.outputs + self.inputs


@dataclasses.dataclass(frozen=True)
class PromptForm:
  """Rows in front of the encoder's embeddings.

  Attributes:
    length: rows.
  """

  length: int


@dataclasses.dataclass(frozen=True)
class PrefixForm:
  """Keys and values in front of those of the decoder's self-attention, in all layers.

  Attributes:
    length: rows.
  """

  length: int


@dataclasses.dataclass(frozen=True)
class BottleneckForm:
  """Bottleneck adapters: y = s + scaling * up(act(down(read))), s = output of the sub-layer.

  Attributes:
    sites: last projections of sub-layers: 'encoder/self_attention/o', 'decoder/mlp/wo', ...
    reads: 'output' reads s (Houlsby), 'sum' reads s + h (Pfeiffer), 'input' reads h (parallel);
      h is the residual stream before the sub-layer and its norm.
    size: units of the bottleneck.
    activation: a key of `deltas.adapter.ACTIVATIONS`.
    scaling: dimensionless; it stands before the norm after the bottleneck.
    pre_norm: layer norm of what is read.
    post_norm: layer norm of the bottleneck's output.
    layers: (stack, layer) pairs that have adapters; None means all.
  """

  sites: tuple[str, ...]
  reads: str
  size: int
  activation: str
  scaling: float = 1.0
  pre_norm: bool = False
  post_norm: bool = False
  layers: tuple[tuple[str, int], ...] | None = None

  def layers_of(self, stack: str, depth: int) -> tuple[int, ...]:
    """Layers of a stack that have adapters."""
    return tuple(layer for layer in range(depth)
                 if self.layers is None or (stack, layer) in self.layers)


@dataclasses.dataclass(frozen=True)
class Module:
  """One projection of a Hugging Face T5.

  Attributes:
    name: such as 'encoder.block.0.layer.0.SelfAttention.q'.
    site: such as 'encoder/self_attention/q'.
    layer: its block.
    sizes: features of input and output.
  """

  name: str
  site: str
  layer: int
  sizes: tuple[int, int]

  @property
  def path(self) -> str:
    """Where parameters at the site live in the tree."""
    return parameters_at(self.site)


def parameters_at(site: str) -> str:
  """Path of a site's parameters: 'encoder/mlp/wo' -> 'encoder/layers/mlp/wo'."""
  stack, _, rest = site.partition('/')
  return f'{stack}/layers/{rest}'


def modules_of(config: T5Config) -> tuple[Module, ...]:
  """All projections of the blocks, in the order of the backbone."""
  found = []
  for weight in huggingface.t5_table(config).weights:
    if weight.index and weight.path.endswith('/kernel'):
      site = weight.path.removesuffix('/kernel').replace('/layers/', '/')
      found.append(Module(weight.name.removesuffix('.weight'), site, weight.index[0],
                          weight.part_shape))
  return tuple(found)


def sites_of(modules: Iterable[Module]) -> tuple[str, ...]:
  """Their sites, each once, in order."""
  return tuple(dict.fromkeys(module.site for module in modules))


def depth_of(config: T5Config, stack: str) -> int:
  """Blocks of a stack."""
  return config.encoder_layers if stack == 'encoder' else config.decoder_layers


def incomplete_sites(chosen: Iterable[Module], config: T5Config) -> Mapping[str, int]:
  """Site -> number of chosen layers, where that is not all of them."""
  counts = collections.Counter(module.site for module in chosen)
  return {site: count for site, count in counts.items()
          if count != depth_of(config, site.partition('/')[0])}
