"""The library's programs on an accelerator: training, decoding, attention, routed feed-forwards.

Made of the compute core alone, which needs jax, flax, optax and NumPy, on random weights.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.moe import FORMS, Layer
from benchmarks.options import Options, batch_of
from benchmarks.timing import memory_gib, timed_turn
from pemt_jax.methods import pemt
from pemt_jax.methods.base import make_loss
from pemt_jax.models import attention, generation
from pemt_jax.models.decoding import GenerationConfig
from pemt_jax.models.layers import Compute, attend
from pemt_jax.models.sites import AttentionInputs
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import t5_config
from pemt_jax.training import optimisers, schedules, state as state_lib, step as step_lib
from pemt_jax.training.flops import count_flops
from pemt_jax.training.rules import split_params

_STEPS = 1_000_000  # longer than any measurement


def _model(options: Options, how: Compute) -> tuple[T5, Any]:
  config = dataclasses.replace(t5_config(options.folder), dropout=options.dropout)
  lora = pemt.Stage1Options(rank=options.rank, alpha=float(options.rank), prompt=False)
  method = pemt.stage1(lora, config, 0)
  return T5(config, method.plan, how), method


def _parameters(model: T5, method: Any) -> tuple[Any, Any]:
  """(frozen in the type of the computation, tuned); float32 weights of a whole model never exist.
  """
  def init(key):
    params = nn.meta.unbox(model.init(key, *model.example_batch()))['params']
    frozen, tuned = split_params(params, method.tuned)
    return jax.tree.map(lambda leaf: leaf.astype(model.compute.dtype), frozen), tuned

  return jax.jit(init)(jax.random.key(0))


class Program:
  """Something that can be called again and again.

  Attributes:
    first_seconds: of compilation and the first call.
    gflop: products of a call in 1e9 operations, or None.
    memory: see `timing.memory_gib`, or None.
  """

  gflop: float | None = None
  memory: dict[str, float] | None = None

  def __init__(self, call: Callable[[], Any]):
    self.call = call
    start = time.perf_counter()
    jax.block_until_ready(call())
    self.first_seconds = time.perf_counter() - start

  def turn(self, count: int) -> float:
    """Seconds of a call, see `timed_turn`."""
    return timed_turn(self.call, jax.block_until_ready, count)


class TrainStep(Program):
  """The update of stage 1: LoRA on `wo`, all replicas of the options in one program."""

  def __init__(self, options: Options, how: Compute):
    self._options, self._number = options, 0
    model, method = _model(options, how)
    self._vocab = model.config.vocab_size
    self._frozen, tuned = _parameters(model, method)
    tx = optimisers.adamw()
    names = [str(index) for index in range(options.replicas)]
    self._state = state_lib.init_state(
        state_lib.stack_replicas([tuned] * options.replicas), {},
        np.stack([state_lib.replica_key(name, 0) for name in names]), tx)
    self._rates = state_lib.Rates(
        jnp.full(options.replicas, options.learning_rate), jnp.zeros(options.replicas, jnp.int32),
        jnp.full(options.replicas, _STEPS, jnp.int32))
    make = lambda model: step_lib.make_train_step(make_loss(model, method), tx,
                                                  schedules.constant_schedule)
    self._step = make(model)
    # A kernel's products are out of sight: those of the plain form are counted.
    plain = make(model.clone(compute=dataclasses.replace(how, attention='plain', remat='none')))
    self.gflop = count_flops(plain, self._state, self._frozen, self._batch(), self._rates) / 1e9
    super().__init__(self._update)

  def _batch(self) -> dict[str, np.ndarray]:
    rows = [batch_of(self._options, self._vocab, self._number * self._options.replicas + index)
            for index in range(self._options.replicas)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return batch | {f'{name}_mask': np.ones(ids.shape, np.float32) for name, ids in batch.items()}

  def _update(self) -> jax.Array:
    batch = self._batch()
    if not self._number:
      compiled = self._step.lower(self._state, self._frozen, batch, self._rates).compile()
      self._step, self.memory = compiled, memory_gib(compiled)
    self._number += 1
    self._state, metrics = self._step(self._state, self._frozen, batch, self._rates)
    return metrics['loss']


class Decoding(Program):
  """Greedy decoding of the plain model; every row has as many tokens as the options say."""

  def __init__(self, options: Options, how: Compute):
    model, method = _model(options, how)
    config, rows = model.config, options.batch
    frozen, tuned = _parameters(model, method)
    wanted = GenerationConfig(options.target + 1, min_length=options.target + 1,
                              start_id=config.start_id, eos_id=config.eos_id, pad_id=config.pad_id)

    @jax.jit
    def decode(tuned, frozen, inputs):
      apply = lambda *args, method: model.apply(variables, *args, method=method)
      variables = rules.variables(tuned, frozen, {})
      encoded = apply(inputs, jnp.ones(inputs.shape, jnp.float32), method='encode')
      memory, cache = apply(encoded, rows, wanted.max_length, method='start_decoding')
      step = lambda tokens, place, cache: apply(tokens, place, cache, memory, method='decode_step')
      return generation.generate(step, cache, rows, wanted)

    rules = method
    inputs = batch_of(options, config.vocab_size, 0)['inputs']
    super().__init__(lambda: decode(tuned, frozen, inputs))


class FeedForward(Program):
  """One feed-forward, dense or routed, see `benchmarks.moe`."""

  def __init__(self, options: Options):
    self._layer = Layer(options)
    self.first_seconds = sum(self._layer.phases.values())

  def turn(self, count: int) -> float:
    """Mean seconds of a call; each is waited for."""
    return sum(self._layer.run(count)['seconds']) / count


class Attention(Program):
  """One attention with a relative bias and its gradient, through a kernel or in plain form."""

  def __init__(self, shape: tuple[int, int, int, int], dtype: str, kernel: attention.Kernel | None):
    batch, heads, length, _ = shape
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = tuple(jax.random.normal(key, shape, dtype) for key in keys[:3])
    bias = jax.random.normal(keys[3], (1, heads, length, length))
    rows = jnp.ones(batch)

    def loss(query, key, value):
      inputs = AttentionInputs(query, key, value)
      mixed = (attend(inputs, bias, None, 0.0, (None, {})) if kernel is None
               else attention.run(kernel, inputs, bias, rows, 1.0))
      return jnp.sum(mixed.astype(jnp.float32))

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    self.memory = memory_gib(gradient.lower(*arrays).compile())
    super().__init__(lambda: gradient(*arrays))


def rates(size: int, dtype: str) -> dict[str, float]:
  """Rates of this device: matrix products in TFLOP/s, memory in GB/s (read and written).

  Args:
    size: rows and columns of the matrices; the memory test moves as many bytes as 8 of them.
    dtype: of both.
  """
  one = jax.random.normal(jax.random.key(0), (size, size), dtype)
  turns = 16
  product = jax.jit(lambda a, b: jax.lax.fori_loop(0, turns, lambda _, x: (x @ b) / size**0.5, a))
  run = Program(lambda: product(one, one))
  seconds = min(run.turn(1) for _ in range(5)) / turns
  many = jnp.zeros((8, size, size), dtype)
  copy = jax.jit(lambda a: a + jnp.ones((), dtype))
  run = Program(lambda: copy(many))
  moved = min(run.turn(4) for _ in range(5))
  return {'matrix_tflop_per_second': 2 * size**3 / seconds / 1e12,
          'memory_gb_per_second': 2 * many.nbytes / moved / 1e9}
