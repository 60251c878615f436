"""Names of routed feed-forwards in state dicts of the original MPOE program, in both directions.

| tensors below a block's feed-forward | shape |
|---|---|
| `sffn.switch.weight`, `.bias` | [expert, embed], [expert] |
| `sffn.experts.<e>.<wi, wo>.weight` | [out, in] |
| `sffn.experts.<e>.<wi, wo>_mpo.tensor_set.<k>` | core [r, out, in, r'], the central one repeated |
| `moe_layer.gate.w_gating` | [embed, expert] |
| `moe_layer.experts.<w1, w2>` | [expert, in, out] |
| `moe_layer.experts.<w1, w2>_mpo.<k>` | [expert, r, out, in, r'], the central one without expert |
| `moe_layer.experts.b1`, `.b2` | [mlp], [embed] |
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pemt_jax.experts.mpo_shapes import Factors
from pemt_jax.interop import huggingface, names
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree

KINDS = {'switch': 'sffn', 'moe': 'moe_layer'}  # the original's word -> its module
RULES = {'switch': 'switch', 'moe': 'top2'}  # -> name of the rule here
_CORE = re.compile(r'.*_mpo\.(?:tensor_set\.)?\d+')
_KERNELS = {'wi': ('w1', 'b1'), 'wo': ('w2', 'b2')}


@dataclasses.dataclass(frozen=True)
class RoutedLayout:
  """The routed feed-forwards of a state dict.

  Attributes:
    kind: 'switch' or 'moe'.
    count: number of experts.
    embed: width of tokens.
    mlp: width of the hidden activation.
    factors: those of `wi` and `wo`, [in, out]; None for dense experts.
    limit: of the ranks.
  """

  kind: str
  count: int
  embed: int
  mlp: int
  factors: Mapping[str, Factors] | None = None
  limit: int | None = None

  def shape(self, kernel: str) -> tuple[int, int]:
    """Shape [in, out] of a kernel."""
    shape = self.embed, self.mlp
    return shape if kernel == 'wi' else shape[::-1]

  def cores(self, kernel: str) -> tuple[tuple[int, int, int, int], ...]:
    """Shapes [r, in, out, r'] of the cores of a kernel."""
    factors = self.factors[kernel]
    return factors.core_shapes(factors.ranks(self.limit))


def turned(state: Mapping[str, Any], table: names.Table) -> dict[str, np.ndarray]:
  """Tensors with the cores' inner axes exchanged: [r, out, in, r'] <-> [r, in, out, r'].

  Those of the token table stay [r, vocab, embed, r'].
  """
  stay = {weight.name for weight in table.weights if weight.path.startswith('shared/')}
  stay |= {alias for alias, name in table.aliases.items() if name in stay}
  return {name: np.swapaxes(value, -3, -2) if _CORE.fullmatch(name) and name not in stay
          else np.asarray(value) for name, value in state.items()}


def weights_of(layout: RoutedLayout, start: str, path: str,
               index: tuple[int, ...] = ()) -> tuple[list[names.Weight], dict[str, str]]:
  """(tensors, aliases) of one feed-forward, cores turned (see `turned`).

  Args:
    layout: what it is.
    start: of the tensors' names.
    path: of the leaves.
    index: of the layer.
  """
  if layout.kind == 'switch':
    found = list(_switch(layout, start, path, index))
    aliases = {}
    for kernel in layout.factors or ():
      name = lambda expert: (f'{start}experts.{expert}.{kernel}_mpo.tensor_set.'
                             f'{layout.factors[kernel].centre}')
      aliases |= {name(expert): name(0) for expert in range(1, layout.count)}
    return found, aliases
  return list(_top2(layout, start, path, index)), {}


def _switch(layout, start, path, index) -> Iterator[names.Weight]:
  shape = layout.count, layout.embed
  yield from names.projection(f'{start}switch', f'{path}router', shape, index)
  for expert, kernel in itertools.product(range(layout.count), _KERNELS):
    own, name = (*index, expert), f'{start}experts.{expert}.{kernel}'
    if layout.factors is None:
      yield names.Weight(f'{name}.weight', f'{path}{kernel}/kernel', own,
                         layout.shape(kernel)[::-1], True)
      continue
    for k, shape in enumerate(layout.cores(kernel)):
      centre = k == layout.factors[kernel].centre
      if not centre or not expert:
        yield names.Weight(f'{name}_mpo.tensor_set.{k}', f'{path}{kernel}/core_{k}',
                           index if centre else own, shape)


def _top2(layout, start, path, index) -> Iterator[names.Weight]:
  yield names.Weight(f'{start}gate.w_gating', f'{path}router/kernel', index,
                     (layout.embed, layout.count))
  for kernel, (matrix, bias) in _KERNELS.items():
    shape, name = layout.shape(kernel), f'{start}experts.{matrix}'
    yield names.Weight(f'{start}experts.{bias}', f'{path}{kernel}/bias', index, shape[1:])
    if layout.factors is None:
      yield names.Weight(name, f'{path}{kernel}/kernel', index, (layout.count, *shape))
      continue
    for k, shape in enumerate(layout.cores(kernel)):
      lead = () if k == layout.factors[kernel].centre else (layout.count,)
      yield names.Weight(f'{name}_mpo.{k}', f'{path}{kernel}/core_{k}', index,
                         (*lead, *shape))


def places(config: T5Config, layout: RoutedLayout) -> Iterator[tuple[str, int, str]]:
  """(stack, layer, name of the module) of every feed-forward."""
  for stack, number, depth in (('encoder', 1, config.encoder_layers),
                               ('decoder', 2, config.decoder_layers)):
    for layer in range(depth):
      yield stack, layer, f'{stack}.block.{layer}.layer.{number}.{KINDS[layout.kind]}'


def t5_table(config: T5Config, layout: RoutedLayout | None) -> names.Table:
  """Every tensor of a T5 whose feed-forwards are routed; None leaves them as they are."""
  backbone = huggingface.t5_table(config)
  if layout is None:
    return backbone
  weights = [weight for weight in backbone.weights if '.DenseReluDense.' not in weight.name]
  aliases = dict(backbone.aliases)
  for stack, layer, name in places(config, layout):
    path = f'{stack}/layers/mlp/whole/{RULES[layout.kind]}/'
    more, tied = weights_of(layout, f'{name}.', path, (layer,))
    weights, aliases = weights + more, aliases | tied
  return names.Table(tuple(weights), aliases, backbone.ignored)


def state_to_tree(state: Mapping[str, Any], table: names.Table) -> Tree:
  """Parameters of a state dict; central cores of all experts must be equal.

  Raises:
    UserError: tensors that are missing, unexpected, misshaped or not equal.
  """
  return names.load(turned(state, table), table)


def tree_to_state(tree: Tree, table: names.Table, *, aliases: bool = False,
                  partial: bool = False) -> dict[str, np.ndarray]:
  """The reverse; `aliases` repeats the central cores, `partial` lets leaves be absent."""
  return turned(names.dump(tree, table, aliases=aliases, partial=partial), table)
