"""Attention in one fused kernel, where the platform has one for its shapes.

`layers.attend` is the plain form: it has every feature, and all others equal it. A kernel takes a
bias of full shape, has neither rows in front of the keys nor dropout of the attention weights, and
is for whole sequences: a cached decoding step has one query, for which there is nothing to fuse.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from pemt_jax.errors import UserError
from pemt_jax.models.layers import Compute
from pemt_jax.models.sites import AttentionInputs
from pemt_jax.sharding.rules import partition_spec

FORMS = ('auto', 'plain', 'fused')
_AXES = ('act_batch', 'heads', 'act_length', 'kv')


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A fused attention.

  Attributes:
    name: for messages.
    run: (query, key, value, bias) -> mixed values; [batch, heads, length, kv], the bias float32
      [batch, heads, queries, keys].
    objection: what it cannot do of (query, key), in words that follow 'but'; '' is nothing.
    least: fewest queries and fewest keys from which 'auto' takes it; None leaves it to 'fused'.
  """

  name: str
  run: Callable[..., jax.Array]
  objection: Callable[[jax.Array, jax.Array], str]
  least: int | None


def by_heads(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array,
             implementation: str) -> jax.Array:
  """`jax.nn.dot_product_attention`, whose heads stand behind the positions; see `Kernel.run`."""
  turn = lambda a: jnp.swapaxes(a, 1, 2)
  return turn(jax.nn.dot_product_attention(
      turn(query), turn(key), turn(value), bias.astype(query.dtype), scale=1.0,
      implementation=implementation))


@functools.cache
def _capability() -> float:
  """Compute capability of the first CUDA device, or 0."""
  try:
    return float(jax.local_devices(backend='cuda')[0].compute_capability)
  except RuntimeError:
    return 0.0


def cudnn_objection(query: jax.Array, key: jax.Array) -> str:
  """The limits of cuDNN's flash attention with a bias, in training too; see `Kernel.objection`."""
  kv, lengths = query.shape[-1], (query.shape[-2], key.shape[-2])
  if query.dtype not in (jnp.bfloat16, jnp.float16):
    return f"cuDNN has no attention of {query.dtype}; set model.dtype='bfloat16'"
  if kv % 8 or kv > 128:
    return f'cuDNN needs heads of a multiple of 8 up to 128, and these have {kv}'
  if any(length % 2 for length in lengths):
    return f'cuDNN needs even lengths, and these are {lengths[0]} queries and {lengths[1]} keys'
  if _capability() < 8.0:
    return 'cuDNN needs a CUDA device of capability 8.0 or more'
  return ''


def flash(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array) -> jax.Array:
  """JAX's Pallas kernel for TPUs; see `Kernel.run`."""
  from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention
  return flash_attention(query, key, value, bias.astype(query.dtype))


def flash_objection(query: jax.Array, key: jax.Array) -> str:
  """The blocks of the Pallas kernel for TPUs; see `Kernel.objection`."""
  kv, lengths = query.shape[-1], (query.shape[-2], key.shape[-2])
  if any(length % 128 for length in lengths):
    return (f'the TPU kernel needs lengths of a multiple of 128, and these are {lengths[0]} queries'
            f' and {lengths[1]} keys')
  if kv > 128 and kv % 128:
    return f'the TPU kernel needs heads up to 128 or of a multiple of it, and these have {kv}'
  return ''


# Platform -> kernel. That of the TPU reads a bias for each row and writes its gradient even where
# nobody reads that, so that it takes more memory than the plain form: only who asks for it gets it.
KERNELS: Mapping[str, Kernel] = {
    'gpu': Kernel('cuDNN', functools.partial(by_heads, implementation='cudnn'), cudnn_objection,
                  64),
    'tpu': Kernel('Pallas', flash, flash_objection, None),
}


def _objection(kernel: Kernel | None, platform: str, inputs: AttentionInputs, rate: float) -> str:
  if kernel is None:
    return f"there is no fused kernel for the platform '{platform}'"
  if inputs.prefix_key is not None:
    return 'no kernel has rows in front of the keys'
  if rate:
    return (f'no kernel drops out attention weights, and their rate is {rate:g}; set'
            ' model.attention_dropout=0.0')
  return kernel.objection(inputs.query, inputs.key)


def choose(compute: Compute, inputs: AttentionInputs, rate: float) -> Kernel | None:
  """The kernel of one attention; None is the plain form.

  Args:
    compute: says what is asked for, and the platform.
    inputs: of the attention.
    rate: dropout of the attention weights; 0 without a key.

  Raises:
    UserError: 'fused' is asked for and cannot be had.
  """
  if compute.attention == 'plain':
    return None
  platform = compute.backend
  kernel = KERNELS.get(platform)
  objection = _objection(kernel, platform, inputs, rate)
  if compute.attention == 'fused':
    _refuse(objection)
    return kernel
  shortest = min(inputs.query.shape[-2], inputs.key.shape[-2])
  worth = kernel is not None and kernel.least is not None and shortest >= kernel.least
  return kernel if worth and not objection else None


def _refuse(objection: str) -> None:
  if objection:
    raise UserError(f"model.attention is 'fused', but {objection}; or choose model.attention="
                    "'auto'.")


def without_kernel(compute: Compute, why: str) -> Compute:
  """The same for layers that cannot have a kernel.

  Raises:
    UserError: 'fused' is asked for.
  """
  _refuse(why if compute.attention == 'fused' else '')
  return dataclasses.replace(compute, attention='plain')


def run(kernel: Kernel, inputs: AttentionInputs, bias: jax.Array, rows: jax.Array,
        scale: float) -> jax.Array:
  """Attention through a kernel; on a mesh each device runs it on its rows and heads.

  Args:
    kernel: see `choose`.
    inputs: without rows in front.
    bias: broadcastable to [batch, heads, queries, keys], float32.
    rows: [batch] numbers; replicas that are mapped over have their own.
    scale: of the products of queries and keys.

  Returns:
    [batch, queries, heads * kv].
  """
  query = inputs.query if scale == 1.0 else inputs.query * scale
  batch, heads, queries, kv = query.shape
  # A kernel under `vmap` needs a bias that is mapped as the queries are, as `rows` are. It does not
  # depend on the layer, so that one copy serves all layers and their backward pass.
  bias = bias + 0.0 * rows.astype(jnp.float32)[:, None, None, None]
  bias = jnp.broadcast_to(bias, (batch, heads, queries, inputs.key.shape[-2]))
  mixed = _on_mesh(kernel.run, query, inputs.key, inputs.value, bias)
  return mixed.transpose(0, 2, 1, 3).reshape(batch, queries, heads * kv)


def _on_mesh(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
  """A function of [batch, heads, ., .] arrays; the compiler cannot cut a kernel by itself."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return function(*arrays)
  specs = tuple(partition_spec('attention', _AXES, array.shape, mesh) for array in arrays)
  return jax.shard_map(function, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)


def describe(compute: Compute) -> str:
  """The attention of whole sequences in words: the name of the platform's kernel, or 'plain'."""
  kernel = KERNELS.get(compute.backend)
  if kernel is None or compute.attention == 'plain':
    return 'plain'
  if compute.attention == 'fused':
    return kernel.name
  if kernel.least is None:
    return 'plain'
  return f'{kernel.name} from {kernel.least} queries and keys on where it can, else plain'
