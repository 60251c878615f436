"""Bottleneck adapters: after a sub-layer (Houlsby et al. 2019), or beside it (He et al. 2022)."""

from __future__ import annotations

import dataclasses
import functools

import jax

from pemt_jax.deltas.base import Delta, Values, Weight, Weights, normal_init, ones, zeros
from pemt_jax.models.layers import add_vector, layer_norm
from pemt_jax.models.products import matmul
from pemt_jax.models.sites import Aux, Base, Site, SiteContext

ACTIVATIONS = {
    'gelu_new': functools.partial(jax.nn.gelu, approximate=True),
    'gelu': functools.partial(jax.nn.gelu, approximate=False),
    'relu': jax.nn.relu,
    'swish': jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class Bottleneck:
  """Shape of scaling * up(act(down(x))).

  Attributes:
    size: width of the bottleneck.
    activation: a key of ACTIVATIONS.
    pre_norm: layer norm of the bottleneck's input.
    post_norm: layer norm of the bottleneck's output, before the residual.
    biases: whether down and up have biases.
    stddev: of the initial kernels.
    up_init: 'normal'; 'zero': the adapter starts as the identity; 'ones': both kernels hold ones.
    scaling: of the output, before the norm that follows it.
  """

  size: int
  activation: str = 'gelu_new'
  pre_norm: bool = False
  post_norm: bool = False
  biases: bool = True
  stddev: float = 0.01
  up_init: str = 'normal'
  scaling: float = 1.0


def _norm_weights(name: str, features: int) -> Weights:
  vector = functools.partial(Weight, (features,), ('norm',), exact=True)
  return {f'{name}/scale': vector(init=ones), f'{name}/bias': vector()}


def bottleneck_weights(config: Bottleneck, sizes: tuple[int, int],
                       axes: tuple[str, str]) -> Weights:
  """Weights of up(act(down(x))).

  Args:
    config: shape of the bottleneck.
    sizes: of the last axis of input and output.
    axes: their logical names.

  Returns:
    Kernels drawn from N(0, stddev^2), but for `up_init`, and biases 0.
  """
  weights: Weights = {}
  if config.pre_norm:
    weights |= _norm_weights('pre_norm', sizes[0])
  kernel = ones if config.up_init == 'ones' else normal_init(config.stddev)
  up = zeros if config.up_init == 'zero' else kernel
  weights['down/kernel'] = Weight((sizes[0], config.size), (axes[0], 'adapter'), kernel)
  if config.biases:
    weights['down/bias'] = Weight((config.size,), ('adapter',))
  weights['up/kernel'] = Weight((config.size, sizes[1]), ('adapter', axes[1]), up)
  if config.biases:
    weights['up/bias'] = Weight((sizes[1],), (axes[1],))
  if config.post_norm:
    weights |= _norm_weights('post_norm', sizes[1])
  return weights


def bottleneck(config: Bottleneck, values: Values, x: jax.Array) -> jax.Array:
  """The bottleneck's output: [..., in] -> [..., out]; `values` are of `bottleneck_weights`."""
  if config.pre_norm:
    x = layer_norm(x, values['pre_norm/scale'], values['pre_norm/bias'])
  hidden = matmul(x, values['down/kernel'])
  if config.biases:
    hidden = add_vector(hidden, values['down/bias'])
  y = matmul(ACTIVATIONS[config.activation](hidden), values['up/kernel'])
  if config.biases:
    y = add_vector(y, values['up/bias'])
  if config.scaling != 1.0:
    y *= config.scaling
  if config.post_norm:
    y = layer_norm(y, values['post_norm/scale'], values['post_norm/bias'])
  return y


# What an adapter at the last projection of a sub-layer may read: s is the output of the sub-layer,
# h the residual stream before it and its norm.
READS = ('output', 'sum', 'input', 'normed')


@dataclasses.dataclass(frozen=True)
class Adapter(Delta):
  """u = s + bottleneck(r), s = base(x): an adapter at the last projection of a sub-layer.

  Attributes:
    bottleneck: its shape.
    reads: what r is: 'output' s (Houlsby et al. 2019; PEMT's target adapter), 'sum' s + h
      (Pfeiffer et al. 2021, as AdapterHub has it for T5), 'input' h (AdapterHub's parallel form),
      'normed' the norm of h (parallel, He et al. 2022); where base is the end of a sub-layer,
      'sublayer' is what it adds to h.
  """

  bottleneck: Bottleneck
  reads: str = 'output'
  packs = True

  def weights(self, site: Site) -> Weights:
    """Those of the bottleneck."""
    axis = site.out_axis
    return bottleneck_weights(self.bottleneck, (site.features,) * 2, (axis, axis))

  def act(self, values: Values, base: Base, x: jax.Array, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length, in] -> [batch, length, out]."""
    y = base(x)
    return y + bottleneck(self.bottleneck, values, read(self.reads, y, context)), {}


def read(what: str, y: jax.Array, context: SiteContext) -> jax.Array:
  """What an adapter reads, see `READS`: [batch, length, embed] like y, the sub-layer's output."""
  if what == 'output':
    return y
  if what == 'sum':
    return y + context.residual.astype(y.dtype)
  source = {'input': context.residual, 'normed': context.sublayer_input,
            'sublayer': context.sublayer_output}[what]
  return source.astype(y.dtype)


@dataclasses.dataclass(frozen=True)
class ParallelAdapter(Delta):
  """y = base(x) + bottleneck(x) + n, n = normalised input of the sub-layer.

  This is PEMT's adapter expert: it stands beside `wo`, reads the feed-forward activation and
  carries the sub-layer's input as a residual of its own.
  """

  bottleneck: Bottleneck
  packs = True

  def weights(self, site: Site) -> Weights:
    """Those of the bottleneck."""
    return bottleneck_weights(self.bottleneck, (site.in_features, site.features),
                              (site.in_axis, site.out_axis))

  def act(self, values: Values, base: Base, x: jax.Array, context: SiteContext,
          site: Site) -> tuple[jax.Array, Aux]:
    """[batch, length, in] -> [batch, length, out]."""
    beside = bottleneck(self.bottleneck, values, x)
    return base(x) + beside + context.sublayer_input, {}
