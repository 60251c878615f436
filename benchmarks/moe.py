"""One feed-forward: dense, or with Switch experts of the same size, so that each token costs alike.

Tokens are routed at random; values and gradients of all weights and of the tokens are computed.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.options import Options
from benchmarks.timing import timed
from pemt_jax.experts.feed_forward import DenseExperts, Work
from pemt_jax.experts.switch import Switch
from pemt_jax.models import t5_config
from pemt_jax.models.sites import Site

FORMS = ('sorted', 'ragged', 'batched')
EXPERTS = (1, 2, 4, 8, 16, 32)
_ROOM = 1.25  # capacity factor of `batched`, which drops what is beyond it


class Layer:
  """A step is one forward pass, or the gradient too; `form` '' is the dense feed-forward."""

  def __init__(self, options: Options):
    start = time.perf_counter()
    config = t5_config.t5_config(options.folder)
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(0.05 * rng.standard_normal(shape), options.dtype)
    x = normal(options.batch, options.source, config.embed)
    function = (self._routed if options.form else self._dense)(options, config, normal)
    weights, apply = function
    loss = lambda weights, x: jnp.mean(jnp.square(apply(weights, x)))
    step = jax.jit(jax.value_and_grad(loss, (0, 1)) if options.metric == 'gradient' else loss)
    self._call = lambda: jax.block_until_ready(step(weights, x))
    built = time.perf_counter()
    first = self._call()
    self.first_loss = float(first[0] if options.metric == 'gradient' else first)
    self.phases = {'build': built - start, 'first_step': time.perf_counter() - built}

  def _dense(self, options, config, normal):
    del options
    weights = {'wi': normal(config.embed, config.mlp), 'wo': normal(config.mlp, config.embed)}
    return weights, lambda weights, x: jax.nn.relu(x @ weights['wi']) @ weights['wo']

  def _routed(self, options, config, normal):
    factor = _ROOM if options.form == 'batched' else None
    delta = Switch(DenseExperts(config.mlp), options.experts, form=options.form,
                   eval_capacity_factor=factor)
    site = Site('encoder/mlp', config.embed, config.embed, 'embed', 'embed',
                jnp.dtype(options.dtype))
    weights = {name: normal(*weight.shape) for name, weight in delta.weights(site).items()}

    def apply(weights, x):
      # Logits of tokens without a mean are large enough to use all experts.
      routes = delta.route(delta.logits(weights, 50.0 * x), jnp.ones(x.shape[:2]), False, None)
      return delta.mixed(weights, x, routes, Work(None, None, site))

    return weights, apply

  def run(self, count: int = 1) -> dict[str, list[Any]]:
    """Times `count` steps, see `timing.timed`."""
    def call():
      self._call()
      return 0.0

    return timed(call, count)


def options_of(folder: str, kind: str, experts: int = 0, form: str = '') -> Options:
  """Options of a program; 2048 tokens.

  Args:
    folder: model with the sizes, or its name.
    kind: 'forward' or 'gradient'.
    experts: number of experts.
    form: of their products; '' is the dense feed-forward.
  """
  return dataclasses.replace(Options(folder), metric=kind, experts=experts, form=form)
