"""Routers: from one vector per row to logits over the experts of every layer (Ye et al. 2022).

A router has rows of logits for each layer of all stacks, the encoder's first. Vectors are those of
tasks, or whatever else describes a row. All is computed in float32.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pemt_jax.deltas.base import Values, Weight, Weights, normal_init, ones, uniform_init, zeros
from pemt_jax.errors import UserError, number, one_of
from pemt_jax.models.layers import attend, dropout, fold_name, layer_norm, split_heads
from pemt_jax.models.sites import AttentionInputs

STDDEV = 0.02  # of kernels and tables, as the backbone initialises its own
_GATES = {'rnn': 1, 'gru': 3, 'lstm': 4}
_DIRECTIONS = ('forward', 'backward')
_HEADS, _MLP, _DROPOUT = 4, 64, 0.1  # of the transformer
_OWN = '_layer_specific'
KINDS = tuple(f'{form}{own}' for form in ('linear', *_GATES, 'transformer') for own in ('', _OWN))


@dataclasses.dataclass(frozen=True)
class RouterSpec:
  """Shape of a router.

  Attributes:
    kind: one of KINDS. `linear` makes the logits of all layers by one network, with one hidden
      layer; `linear_layer_specific` has a network for each layer. The others read the layers as a
      sequence, in both directions (`rnn`, `gru`, `lstm`) or by attention: the vector plus a
      position each, or, `_layer_specific`, a projection for each layer.
    inputs: width of the vectors.
    hidden: width of hidden layers, states and projections.
    layers: number of layers of all stacks.
    experts: of a layer.
  """

  kind: str
  inputs: int
  hidden: int
  layers: int
  experts: int

  def __post_init__(self):
    one_of('router', self.kind, KINDS)
    for field in ('inputs', 'hidden', 'layers', 'experts'):
      number(f'router {field}', getattr(self, field), getattr(self, field) > 0, 'at least 1')
    if self.form == 'transformer' and self.width % _HEADS:
      raise UserError(f"the router '{self.kind}' reads vectors of {self.width} numbers with"
                      f' {_HEADS} heads; give a width that they divide.')

  @property
  def form(self) -> str:
    """The kind without its ending."""
    return self.kind.removesuffix(_OWN)

  @property
  def layer_specific(self) -> bool:
    """Whether layers have weights of their own at the input."""
    return self.kind.endswith(_OWN)

  @property
  def width(self) -> int:
    """Width of what a sequence of layers consists of."""
    return self.hidden if self.layer_specific else self.inputs


def _linear(name: str, sizes: tuple[int, int], axes: tuple[str, str], layers: int = 0) -> Weights:
  kernel, bias = Weight(sizes, axes, normal_init(STDDEV)), Weight(sizes[1:], axes[1:])
  if layers:
    stack = lambda weight: dataclasses.replace(
        weight, shape=(layers, *weight.shape), axes=('layer', *weight.axes))
    kernel, bias = stack(kernel), stack(bias)
  return {f'{name}/kernel': kernel, f'{name}/bias': bias}


def _recurrent_weights(spec: RouterSpec) -> Weights:
  # As torch initialises recurrent nets; both products of a step have a bias.
  init, columns = uniform_init(1.0 / math.sqrt(spec.hidden)), _GATES[spec.form] * spec.hidden
  shapes = {'input_kernel': (spec.width, columns), 'input_bias': (columns,),
            'hidden_kernel': (spec.hidden, columns), 'hidden_bias': (columns,)}
  return {f'{direction}/{name}': Weight(shape, ('gate',) * len(shape), init)
          for direction in _DIRECTIONS for name, shape in shapes.items()}


def _transformer_weights(spec: RouterSpec) -> Weights:
  width, gate = spec.width, ('gate', 'gate')
  weights = _linear('attention', (width, 3 * width), gate)
  bound = math.sqrt(6.0 / (width + 3 * width))
  weights['attention/kernel'] = Weight((width, 3 * width), gate, uniform_init(bound))
  weights |= _linear('attention_out', (width, width), gate)
  weights |= _linear('wi', (width, _MLP), gate) | _linear('wo', (_MLP, width), gate)
  for norm in ('attention_norm', 'mlp_norm'):
    weights[f'{norm}/scale'] = Weight((width,), ('norm',), ones)
    weights[f'{norm}/bias'] = Weight((width,), ('norm',), zeros)
  return weights


def router_weights(spec: RouterSpec) -> Weights:
  """Weights of a router by name; kernels are [in, out].

  Kernels and tables start from N(0, 0.02^2) and biases from 0, so that the first routes are almost
  even; recurrent nets from U(+-1 / sqrt(hidden)) and the projections of attention from Xavier's
  uniform distribution.
  """
  experts, out = spec.layers * spec.experts, ('gate', 'expert')
  if spec.kind == 'linear':
    return (_linear('hidden', (spec.inputs, spec.hidden), ('gate', 'gate'))
            | _linear('out', (spec.hidden, experts), ('gate', 'gate')))
  if spec.form == 'linear':
    return (_linear('hidden', (spec.inputs, spec.hidden), ('gate', 'gate'), spec.layers)
            | _linear('out', (spec.hidden, spec.experts), out, spec.layers))
  if spec.layer_specific:
    weights = _linear('spread', (spec.inputs, spec.layers * spec.hidden), ('gate', 'gate'))
  else:
    table = Weight((spec.layers, spec.inputs), ('layer', 'gate'), normal_init(STDDEV))
    weights = {'positions/embedding': table}
  recurrent = spec.form in _GATES
  weights |= _recurrent_weights(spec) if recurrent else _transformer_weights(spec)
  return weights | _linear('out', (2 * spec.hidden if recurrent else spec.width, spec.experts), out)


def _apply(values: Values, name: str, x: jax.Array) -> jax.Array:
  return x @ values[f'{name}/kernel'] + values[f'{name}/bias']


def _rnn_step(state: jax.Array, inner: jax.Array, own: jax.Array) -> jax.Array:
  del state
  return jnp.tanh(inner + own)


def _gru_step(state: jax.Array, inner: jax.Array, own: jax.Array) -> jax.Array:
  (reset, update, new), (own_reset, own_update, own_new) = (
      jnp.split(part, 3, axis=-1) for part in (inner, own))
  reset, update = jax.nn.sigmoid(reset + own_reset), jax.nn.sigmoid(update + own_update)
  return (1.0 - update) * jnp.tanh(new + reset * own_new) + update * state


def _lstm_step(state: tuple[jax.Array, jax.Array], inner: jax.Array,
               own: jax.Array) -> tuple[jax.Array, jax.Array]:
  write, forget, cell, out = jnp.split(inner + own, 4, axis=-1)
  memory = jax.nn.sigmoid(forget) * state[1] + jax.nn.sigmoid(write) * jnp.tanh(cell)
  return jax.nn.sigmoid(out) * jnp.tanh(memory), memory


_STEPS = {'rnn': _rnn_step, 'gru': _gru_step, 'lstm': _lstm_step}


def _recurrence(form: str, values: Values, x: jax.Array, hidden: int,
                reverse: bool) -> jax.Array:
  """States [layer, batch, hidden] of one direction over x [layer, batch, width]."""
  step: Callable[..., jax.Array | tuple[jax.Array, jax.Array]] = _STEPS[form]
  start = jnp.zeros((x.shape[1], hidden), jnp.float32)

  def turn(state, inner):
    visible = state[0] if form == 'lstm' else state
    state = step(state, inner, visible @ values['hidden_kernel'] + values['hidden_bias'])
    return state, state[0] if form == 'lstm' else state

  inner = x @ values['input_kernel'] + values['input_bias']
  _, states = jax.lax.scan(turn, (start, start) if form == 'lstm' else start, inner,
                           reverse=reverse)
  return states


def _both_directions(spec: RouterSpec, values: Values, x: jax.Array) -> jax.Array:
  states = []
  for direction in _DIRECTIONS:
    own = {name.partition('/')[2]: value for name, value in values.items()
           if name.startswith(f'{direction}/')}
    states.append(_recurrence(spec.form, own, x, spec.hidden, direction == 'backward'))
  return jnp.concatenate(states, axis=-1)


def _attention_over_layers(values: Values, x: jax.Array, key: jax.Array | None) -> jax.Array:
  """One post-norm layer with ReLU: [layer, batch, width] -> the same."""
  x = x.swapaxes(0, 1)
  own = lambda name: None if key is None else fold_name(key, name)
  noise = lambda value, name: dropout(value, _DROPOUT, own(name))
  parts = jnp.split(_apply(values, 'attention', x), 3, axis=-1)
  inputs = AttentionInputs(*(split_heads(part, _HEADS) for part in parts))
  scale = 1.0 / math.sqrt(x.shape[-1] // _HEADS)
  mixed = attend(inputs, jnp.zeros(()), None, _DROPOUT, (own('weights'), {}), scale)
  norm = lambda value, name: layer_norm(value, values[f'{name}/scale'], values[f'{name}/bias'])
  x = norm(x + noise(_apply(values, 'attention_out', mixed), 'attention'), 'attention_norm')
  inner = noise(jax.nn.relu(_apply(values, 'wi', x)), 'inner')
  return norm(x + noise(_apply(values, 'wo', inner), 'mlp'), 'mlp_norm').swapaxes(0, 1)


def route_logits(spec: RouterSpec, values: Values, vectors: jax.Array,
                 key: jax.Array | None = None) -> jax.Array:
  """Logits over the experts of each layer.

  Args:
    spec: shape of the router.
    values: of `router_weights`.
    vectors: [batch, inputs].
    key: random key of the dropout of 0.1 that only transformers have; None means deterministic.

  Returns:
    [layer, batch, expert] float32, of any range.
  """
  values = {name: value.astype(jnp.float32) for name, value in values.items()}
  gelu = functools.partial(jax.nn.gelu, approximate=False)
  x = vectors.astype(jnp.float32)
  rows, layers = x.shape[0], spec.layers
  with jax.default_matmul_precision('highest'):
    if spec.kind == 'linear':
      logits = _apply(values, 'out', gelu(_apply(values, 'hidden', x)))
      return logits.reshape(rows, layers, spec.experts).swapaxes(0, 1)
    if spec.form == 'linear':
      hidden = gelu(x @ values['hidden/kernel'] + values['hidden/bias'][:, None])
      return hidden @ values['out/kernel'] + values['out/bias'][:, None]
    if spec.layer_specific:
      x = _apply(values, 'spread', x).reshape(rows, layers, spec.hidden).swapaxes(0, 1)
    else:
      x = x + values['positions/embedding'][:, None]
    if spec.form in _GATES:
      x = _both_directions(spec, values, x)
    else:
      x = _attention_over_layers(values, x, key)
    return _apply(values, 'out', x)
