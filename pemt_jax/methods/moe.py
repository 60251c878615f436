"""Feed-forwards with token-routed experts: Switch, top-2, and MPOE (Gao et al. 2022).

Experts start as copies of the backbone's feed-forward. Under `experts='mpo'` they are chains of
cores of which all experts of a layer share the central one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.deltas.adapter import Adapter, Bottleneck
from pemt_jax.deltas.lora import LoRA
from pemt_jax.errors import at_least, number, one_of
from pemt_jax.experts.feed_forward import DeltaExperts, DenseExperts, Experts, MPOExperts
from pemt_jax.experts.grouped import FORMS
from pemt_jax.experts.mpo import decompose
from pemt_jax.experts.mpo_shapes import CORES, Factors, known_factors
from pemt_jax.experts.switch import DROPPED, SCALED, SCALINGS, Switch
from pemt_jax.experts.token_routing import TokenRouting, rebuilt
from pemt_jax.experts.top2 import POLICIES, TopTwo
from pemt_jax.methods.adapters import Layers, layers_of
from pemt_jax.methods.base import FROZEN, FirstValues, Method, Metrics, joined
from pemt_jax.methods.mpo import PER, gradient_mask, model_of
from pemt_jax.models.sites import Aux, Plan, Rule
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree, flatten, unflatten

SWITCH, TOP2 = 'switch', 'top2'
KINDS = ('dense', 'mpo', 'lora', 'adapter')
REBUILD = ('step', 'layer')
_SITE = 'mlp/whole'


@dataclasses.dataclass(frozen=True)
class RoutingOptions:
  """What Switch and top-2 have in common.

  Attributes:
    experts: 'dense' feed-forwards, 'mpo' feed-forwards that share their central cores, or the
      backbone's feed-forward with a 'lora' or an 'adapter' of each expert around it.
    count: number of experts of a layer.
    encoder_layers: layers of the encoder whose feed-forward is routed; None means all.
    decoder_layers: the same in the decoder.
    dropout: rate inside of dense and mpo experts, in place of the backbone's; 0 takes that.
    size: rank of 'lora', units of 'adapter'.
    cores: number of cores of a matrix ('mpo').
    rank: largest rank of a bond; 0 keeps all ('mpo').
    factors: ('wi' or 'wo', factors of the input, factors of the output) in place of the published
      or automatic ones ('mpo').
    freeze: indices of cores that do not train; (2,) is the published "lightweight" tuning ('mpo').
    mask_probability: p_b, with which the update of a central core is discarded at a step ('mpo').
    mask_per: one draw for each 'tensor', a layer's each, or one for the 'model' ('mpo').
    rebuild: matrices once per 'step' and generation, or at each call of a 'layer', which holds
      those of one layer at a time ('mpo').
    route_padding: padding is routed too (as published).
    jitter: noise of the router's input in training, see `TokenRouting`.
    form: how tokens are grouped, see `experts/grouped.py`.
    balance_weight: of the load-balancing loss, summed over layers; published: 0 (0.01 in Fedus et
      al. 2021).
    router_weight: of the router's z-loss (0.001 in Zoph et al. 2022).
    tune_backbone: train the rest of the model too (as published).
  """

  experts: str = 'dense'
  count: int = 8
  encoder_layers: Layers = None
  decoder_layers: Layers = None
  dropout: float = 0.0
  size: int = 16
  cores: int = CORES
  rank: int = 0
  factors: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
  freeze: tuple[int, ...] = ()
  mask_probability: float = 0.0
  mask_per: str = 'tensor'
  rebuild: str = 'step'
  route_padding: bool = True
  jitter: float = 0.0
  form: str = 'auto'
  balance_weight: float = 0.0
  router_weight: float = 0.0
  tune_backbone: bool = True

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    for name, allowed in (('experts', KINDS), ('mask_per', PER), ('rebuild', REBUILD),
                          ('form', FORMS)):
      one_of(f'method.{name}', getattr(self, name), allowed)
    at_least(self, 1, 'count', 'size', 'cores')
    at_least(self, 0, 'rank', 'balance_weight', 'router_weight')
    for name in ('dropout', 'jitter'):
      value = getattr(self, name)
      number(f'method.{name}', value, 0 <= value < 1, 'of at least 0 and below 1')
    number('method.mask_probability', self.mask_probability, 0 <= self.mask_probability <= 1,
           'from 0 to 1')
    for index in self.freeze:
      number('method.freeze', index, 0 <= index < self.cores, f'from 0 to {self.cores - 1}')
    for name, *_ in self.factors:
      one_of('method.factors', name, ('wi', 'wo'))


@dataclasses.dataclass(frozen=True)
class SwitchOptions(RoutingOptions):
  """Switch, see `experts.switch.Switch`; capacity factors of 0 set no limit."""

  scaling: str = 'gradient'
  scaled: str = 'input'
  capacity_factor: float = 0.0
  eval_capacity_factor: float = 0.0
  dropped: str = 'zero'

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    super().__post_init__()
    at_least(self, 0, 'capacity_factor', 'eval_capacity_factor')
    one_of('method.scaling', self.scaling, SCALINGS)
    one_of('method.scaled', self.scaled, SCALED)
    one_of('method.dropped', self.dropped, DROPPED)


@dataclasses.dataclass(frozen=True)
class TopTwoOptions(RoutingOptions):
  """Top-2, see `experts.top2.TopTwo`; capacity factors of 0 set no limit.

  Attributes:
    eval_capacity_factor: published: 2.
    random_central: central cores start from those of random matrices, while the others start from
      the backbone's (as published) ('mpo').
  """

  policy: str = 'random'
  eval_policy: str = 'all'
  threshold: float = 0.2
  capacity_factor: float = 1.25
  eval_capacity_factor: float = 0.0
  random_central: bool = False

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    super().__post_init__()
    at_least(self, 0, 'capacity_factor', 'eval_capacity_factor')
    at_least(self, 2, 'count')
    one_of('method.policy', self.policy, POLICIES)
    one_of('method.eval_policy', self.eval_policy, POLICIES)


def switch(options: SwitchOptions, config: Any, prompt_length: int) -> Method:
  """Every token at its best expert."""
  del prompt_length
  delta = Switch(
      experts_of(options, config, 'expert'), options.count, options.route_padding, options.jitter,
      options.form, options.scaling, options.scaled, options.capacity_factor or None,
      options.eval_capacity_factor or None, options.dropped)
  return _method(SWITCH, delta, options, config)


def top2(options: TopTwoOptions, config: Any, prompt_length: int) -> Method:
  """Every token at its two best experts; their biases are shared (as published)."""
  del prompt_length
  experts = experts_of(options, config, 'shared')
  if isinstance(experts, DenseExperts):
    rate = options.dropout or config.dropout
    experts = dataclasses.replace(experts, hidden_dropout=0.0, output_dropout=rate)
  delta = TopTwo(
      experts, options.count, options.route_padding, options.jitter, options.form, options.policy,
      options.eval_policy, options.threshold, options.capacity_factor or None,
      options.eval_capacity_factor or None)
  return _method(TOP2, delta, options, config)


def experts_of(options: RoutingOptions, config: Any, biases: str) -> Experts:
  """The form of the experts for a backbone.

  Args:
    options: of the method.
    config: of the backbone.
    biases: 'expert' or 'shared'; with the first, a backbone without biases has experts without.
  """
  if options.experts == 'lora':
    return DeltaExperts(LoRA(options.size, up_init='zero'))
  if options.experts == 'adapter':
    return DeltaExperts(Adapter(Bottleneck(options.size, up_init='zero')))
  own = isinstance(config, T5Config)
  inner = config.dropout if own else getattr(config, 'activation_dropout', 0.0)
  fields = {'mlp': config.mlp, 'activation': config.activation,
            'gated': getattr(config, 'gated', False),
            'biases': 'none' if own and biases == 'expert' else biases,
            'hidden_dropout': options.dropout or inner}
  if options.experts == 'dense':
    return DenseExperts(**fields)
  shapes = DenseExperts(**fields).shapes(config.embed)
  factors = tuple((name, _factors(options, config, name[:2], shape))
                  for name, shape in shapes.items())
  return MPOExperts(**fields, embed=config.embed, factors=factors, limit=options.rank or None)


def _factors(options, config, kernel, shape):
  for name, rows, cols in options.factors:
    if name == kernel:
      given = Factors(tuple(rows), tuple(cols))
      given.require(shape)
      return given
  return known_factors(model_of(config), kernel, shape, options.cores)


def _method(name: str, delta: TokenRouting, options: RoutingOptions, config: Any) -> Method:
  layers = layers_of({'encoder': options.encoder_layers, 'decoder': options.decoder_layers}, config)
  place = f'.*/{_SITE}/{name}'
  tuned = [(f'{place}/router/.*', 'router')]
  transform, expand = None, joined
  if options.experts == 'mpo':
    centre = options.cores // 2
    tuned += [(f'{place}/.*/core_{index}', 'frozen') for index in options.freeze]
    if centre not in options.freeze:
      tuned.append((f'{place}/.*/core_{centre}', 'central'))
    if options.mask_probability:
      transform = gradient_mask(f'{place}/.*/core_{centre}', options.mask_probability,
                                options.mask_per)
    if options.rebuild == 'step':
      expand = lambda tuned, frozen, constants: rebuilt(
          joined(tuned, frozen, constants), name, delta.experts)
  trained = options.experts != 'mpo' or delta.experts.biases != 'none' or (
      set(range(options.cores)) - {*options.freeze, options.cores // 2})
  if trained:
    tuned.append((f'{place}/.*', 'expert'))
  tuned.append(('.*', 'backbone') if options.tune_backbone else FROZEN)
  return Method(
      name, Plan((Rule(name, '*/mlp', delta, layers),)), tuple(tuned),
      auxiliary=_auxiliary(name, options), observe=_observe(name), expand=expand,
      first_values=_first_values(name, delta.experts, options, layers),
      transform_gradients=transform)


def _auxiliary(name: str, options: RoutingOptions):
  """Losses of the routers, summed over layers, and metrics of the experts' load."""
  def auxiliary(aux: Aux, rows: jax.Array) -> tuple[jax.Array, Metrics]:
    del rows
    of = lambda kind: jnp.concatenate([value for key, value in sorted(aux.items())
                                       if key.endswith(f'/mlp/{name}/{kind}')])
    balance, router = of('balance'), of('router')
    loss = options.balance_weight * jnp.sum(balance) + options.router_weight * jnp.sum(router)
    return loss, {f'{name}_balance': jnp.mean(balance), f'{name}_dropped': jnp.mean(of('dropped')),
                  f'{name}_largest_load': jnp.mean(jnp.max(of('load'), axis=-1))}

  return auxiliary


def _observe(name: str):
  """Mean load [layer, expert] of each stack."""
  def observe(aux: Aux, rows: jax.Array) -> Metrics:
    del rows
    end = f'/mlp/{name}/load'
    return {f'load/{key.removesuffix(end)}': value for key, value in aux.items()
            if key.endswith(end)}

  return observe


def _first_values(name: str, experts: Experts, options: RoutingOptions,
                  layers: tuple[tuple[str, int], ...] | None) -> FirstValues:
  """Copies of the backbone's feed-forwards, or of their cores; the last backbone is remembered."""
  known: dict[str, Any] = {}

  def first_values(backbone: Tree, params: Tree, key: jax.Array) -> Tree:
    flat = dict(flatten(params))
    if isinstance(experts, DeltaExperts):
      return params
    if known.get('backbone') is not backbone:
      own = own_layers(flatten(backbone), layers)
      known.update(backbone=backbone, values=copies(own, flat, name, experts))
    flat |= known['values']
    if getattr(options, 'random_central', False) and isinstance(experts, MPOExperts):
      flat |= _random_central(flat, experts, key)
    return unflatten(flat)

  return first_values


def own_layers(backbone: Mapping[str, Any],
               layers: tuple[tuple[str, int], ...] | None) -> dict[str, Any]:
  """Feed-forwards of a flat backbone in some layers, in their order; None for all."""
  found = {}
  for path, value in backbone.items():
    stack, _, rest = path.partition('/layers/mlp/')
    if rest:
      chosen = sorted(layer for own, layer in layers or () if own == stack)
      found[path] = np.asarray(value) if layers is None else np.asarray(value)[chosen]
  return found


def copies(backbone: Mapping[str, Any], wanted: Mapping[str, Any], name: str,
           experts: DenseExperts) -> dict[str, np.ndarray]:
  """First values of experts by path.

  Args:
    backbone: flat feed-forwards `<stack>/layers/mlp/...` of the routed layers.
    wanted: flat canonical parameters of the model; their paths name the places.
    name: of the rule.
    experts: their form.

  Returns:
    Kernels or cores, and biases that the backbone has.
  """
  found: dict[str, np.ndarray] = {}
  for path in wanted:
    place, _, rest = path.partition(f'/{_SITE}/{name}/')
    kernel, _, leaf = rest.partition('/')
    source = f'{place}/mlp/{kernel}/{leaf if leaf == "bias" else "kernel"}'
    if kernel == 'router' or source not in backbone or path in found:
      continue
    values = {leaf: backbone[source]}
    if leaf.startswith('core_'):
      factors = dict(experts.factors)[kernel]
      cores = decompose(backbone[source], factors, factors.ranks(experts.limit)).cores
      values = {f'core_{k}': core for k, core in enumerate(cores)}
    for leaf, value in values.items():
      own = f'{place}/{_SITE}/{name}/{kernel}/{leaf}'
      if len(wanted[own].shape) > value.ndim:
        value = np.broadcast_to(value[:, None], wanted[own].shape)
      found[own] = value
  return found


def _random_central(flat: Mapping[str, Any], experts: MPOExperts,
                    key: jax.Array) -> dict[str, np.ndarray]:
  """Central cores of random matrices, U(-b, b) with b = 1 / sqrt(columns)."""
  rng, found = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist()), {}
  for name, factors in experts.factors:
    end = f'/{name}/core_{factors.centre}'
    for path in [path for path in flat if f'/{_SITE}/' in path and path.endswith(end)]:
      shape = (flat[path].shape[0], *experts.shapes(experts.embed)[name])
      matrix = rng.uniform(-1, 1, shape) / np.sqrt(shape[-1])
      cores = decompose(matrix, factors, factors.ranks(experts.limit)).cores
      found[path] = cores[factors.centre].astype(np.float32)
  return found
