"""Attention through a kernel equals the plain form; what no kernel can do is refused.

No kernel runs on the CPU: XLA's own form of `jax.nn.dot_product_attention` stands in for them.
"""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.models import attention, layers
from pemt_jax.models.layers import MASKED, Compute
from pemt_jax.models.sites import AttentionInputs, Plan
from pemt_jax.models.t5 import T5
from tests import tiny

KEY = jax.random.key(3)
ROWS, HEADS, QUERIES, KEYS, KV = 3, 2, 4, 6, 8
PLAIN, FUSED = (Compute(attention=form, attention_dropout=0.0) for form in ('plain', 'fused'))
STANDIN = attention.Kernel(
    'stand-in', functools.partial(attention.by_heads, implementation='xla'), lambda *_: '', 1)


@pytest.fixture
def standin(monkeypatch):
  """XLA's form in the place of a kernel for the CPU."""
  monkeypatch.setattr(attention, 'KERNELS', {'cpu': STANDIN})


def arrays(dtype=jnp.float32):
  """Queries, keys and values."""
  rng = np.random.default_rng(0)
  shapes = [(ROWS, HEADS, length, KV) for length in (QUERIES, KEYS, KEYS)]
  return AttentionInputs(*(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes))


def biases():
  """Relative bias, and masks of padding, of later positions, of other segments, of everything."""
  rng = np.random.default_rng(1)
  place = lambda size: np.arange(size)
  relative = rng.normal(size=(1, HEADS, QUERIES, KEYS))
  padding = np.where(place(KEYS) < np.array([6, 3, 0])[:, None], 0.0, MASKED)[:, None, None]
  causal = np.where(place(KEYS) <= place(QUERIES)[:, None], 0.0, MASKED)[None, None]
  segments = rng.integers(0, 2, (ROWS, 1, QUERIES, 1)) != rng.integers(0, 2, (ROWS, 1, 1, KEYS))
  found = {'none': np.zeros(()), 'padding': padding, 'relative and padding': relative + padding,
           'relative and causal': relative + causal, 'segments': relative + MASKED * segments}
  return {name: jnp.asarray(value, jnp.float32) for name, value in found.items()}


@pytest.mark.parametrize('scale', [1.0, 0.3])
@pytest.mark.parametrize('name', biases())
def test_a_kernel_equals_the_plain_form(name, scale):
  inputs, bias = arrays(), biases()[name]
  plain = layers.attend(inputs, bias, None, 0.0, (None, {}), scale)
  found = attention.run(STANDIN, inputs, bias, jnp.ones(ROWS), scale)
  np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def outputs(model, variables, batch, key):
  """Gradients of all parameters, and logits of a forward pass and of cached decoding."""
  def loss(params):
    logits, _ = tiny.forward(model, {'params': params}, batch, key)
    return jnp.mean(jax.nn.log_softmax(logits)[..., 3])

  cached = tiny.cached_logits(model, variables, batch, batch['targets'][:, None])[:, 0]
  return jax.grad(loss)(variables['params']), tiny.forward(model, variables, batch)[0], cached


@pytest.mark.slow
def test_gradients_and_cached_decoding_are_equal(standin):
  """All attentions of a T5, with dropout of all the rest; the relative bias is tuned too."""
  plain, fused = (T5(tiny.CONFIG, Plan(), compute) for compute in (PLAIN, FUSED))
  variables, batch = tiny.variables_of(plain), tiny.make_batch()
  grads, logits, _ = outputs(plain, variables, batch, KEY)
  grads2, logits2, cached = outputs(fused, variables, batch, KEY)
  tiny.assert_trees_close(grads, grads2, rtol=1e-3, atol=1e-6)
  np.testing.assert_allclose(logits2, logits, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(cached, logits, rtol=1e-4, atol=1e-4)


def test_a_backbone_asks_for_the_kernel_in_training():
  batch = tiny.make_batch()
  for form, dropout, sentence in (('plain', None, ''), ('fused', 0.0, "platform 'cpu'")):
    model = T5(tiny.CONFIG, Plan(), Compute(attention=form, attention_dropout=dropout))
    variables = tiny.variables_of(model)
    with pytest.raises(UserError, match=sentence) if sentence else contextlib.nullcontext():
      jax.eval_shape(functools.partial(tiny.forward, model), variables, batch, KEY)


def test_replicas_that_are_mapped_over_give_a_kernel_a_bias_of_their_own():
  """cuDNN's batching rule takes a bias of the queries' shape only."""
  mapped = []

  @jax.custom_batching.custom_vmap
  def kernel(query, key, value, bias):
    return STANDIN.run(query, key, value, bias)

  @kernel.def_vmap
  def rule(size, is_mapped, *arrays_):
    del size
    mapped.append(is_mapped)
    return jax.vmap(STANDIN.run)(*arrays_), True

  bias = biases()['relative and causal']
  pair = jax.tree.map(lambda leaf: jnp.stack([leaf, 2.0 * leaf]), arrays())
  run = lambda inputs, rows: attention.run(
      attention.Kernel('', kernel, None, None), inputs, bias, rows, 1.0)
  found = jax.vmap(run)(pair, jnp.ones((2, ROWS)))
  assert mapped == [[True] * 4]
  np.testing.assert_allclose(found[0], layers.attend(arrays(), bias, None, 0.0, (None, {})),
                             rtol=1e-5, atol=1e-6)


def shaped(dtype=jnp.bfloat16, kv=64, queries=128, keys=256):
  """Inputs as shapes only."""
  shape = lambda length: jax.ShapeDtypeStruct((2, 4, length, kv), dtype)
  return AttentionInputs(shape(queries), shape(keys), shape(keys))


@pytest.mark.parametrize('platform, options, rate, sentence', [
    ('cpu', {}, 0.0, "there is no fused kernel for the platform 'cpu'; or"),
    ('gpu', {}, 0.1, 'no kernel drops out attention weights, and their rate is 0.1; set'
     ' model.attention_dropout=0.0; or'),
    ('gpu', {'dtype': jnp.float32}, 0.0,
     "cuDNN has no attention of float32; set model.dtype='bfloat16'; or"),
    ('gpu', {'kv': 60}, 0.0, 'cuDNN needs heads of a multiple of 8 up to 128, and these have 60;'),
    ('gpu', {'kv': 256}, 0.0,
     'cuDNN needs heads of a multiple of 8 up to 128, and these have 256;'),
    ('gpu', {'queries': 7}, 0.0,
     'cuDNN needs even lengths, and these are 7 queries and 256 keys; or'),
    ('gpu', {}, 0.0, 'cuDNN needs a CUDA device of capability 8.0 or more; or'),
    ('tpu', {'queries': 64}, 0.0, 'the TPU kernel needs lengths of a multiple of 128, and these'
     ' are 64 queries and 256 keys; or'),
    ('tpu', {'kv': 192}, 0.0,
     'the TPU kernel needs heads up to 128 or of a multiple of it, and these have 192; or')])
def test_what_a_kernel_cannot_do_is_refused_or_left_to_the_plain_form(
    platform, options, rate, sentence):
  inputs = shaped(**options)
  with pytest.raises(UserError) as error:
    attention.choose(Compute(attention='fused', platform=platform), inputs, rate)
  assert str(error.value).startswith(f"model.attention is 'fused', but {sentence}")
  assert attention.choose(Compute(platform=platform), inputs, rate) is None


def test_rows_in_front_and_copies_of_layers_are_plain(standin):
  front = jnp.zeros((4, 3, 64))
  inputs = shaped().with_prefix(front, front)
  assert attention.choose(Compute(), shaped(), 0.0) is STANDIN
  assert attention.choose(Compute(), inputs, 0.0) is None
  with pytest.raises(UserError, match='rows in front'):
    attention.choose(Compute(attention='fused'), inputs, 0.0)
  assert attention.without_kernel(Compute(), 'why').attention == 'plain'
  with pytest.raises(UserError, match='but why; or'):
    attention.without_kernel(Compute(attention='fused'), 'why')


def test_the_choice_by_platform(monkeypatch):
  monkeypatch.setattr(attention, '_capability', lambda: 9.0)
  kernels = attention.KERNELS
  auto = lambda platform, **options: attention.choose(
      Compute(platform=platform), shaped(**options), 0.0)
  assert auto('gpu') is kernels['gpu'] and auto('gpu', queries=8) is None
  assert auto('tpu') is None
  assert attention.choose(Compute(attention='fused', platform='tpu'), shaped(), 0.0) is (
      kernels['tpu'])
  assert attention.choose(Compute(attention='plain', platform='gpu'), shaped(), 0.0) is None
  described = lambda **options: attention.describe(Compute(**options))
  assert described(platform='gpu').startswith('cuDNN from 64 ')
  assert described(platform='tpu') == described() == described(attention='plain') == 'plain'
  assert described(platform='tpu', attention='fused') == 'Pallas'


def test_the_kernel_for_tpus_lowers_with_its_gradient():
  inputs = shaped(queries=128, keys=128)

  def loss(query, key, value):
    mixed = attention.run(attention.KERNELS['tpu'], AttentionInputs(query, key, value),
                          jnp.zeros((1, 4, 128, 128)), jnp.ones(2), 1.0)
    return jnp.sum(mixed.astype(jnp.float32))

  traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(inputs.query, inputs.key, inputs.value)
  text = traced.lower(lowering_platforms=('tpu',)).as_text()
  assert text.count('tpu_custom_call') >= 3


ON_A_MESH = """
import functools, jax, jax.numpy as jnp, numpy as np
from pemt_jax.models import attention
from pemt_jax.models.sites import AttentionInputs
from pemt_jax.sharding.mesh import MeshShape, make_mesh, use_mesh
shapes = []
def run(*arrays):
  shapes.append([array.shape for array in arrays])
  return attention.by_heads(*arrays, implementation='xla')
kernel = attention.Kernel('', run, None, None)
rng = np.random.default_rng(0)
make = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
inputs = AttentionInputs(*(make(4, 6, 8, 16) for _ in range(3)))
loss = lambda inputs, bias: jnp.sum(attention.run(kernel, inputs, bias, jnp.ones(4), 1.0) ** 2)
both = jax.jit(jax.value_and_grad(loss))
bias = make(1, 6, 8, 8)
alone = both(inputs, bias)
jax.clear_caches()
with use_mesh(make_mesh(MeshShape(data=2, fsdp=2, tensor=2))):
  found = both(inputs, bias)
assert shapes[0] == [(4, 6, 8, 16)] * 3 + [(4, 6, 8, 8)], shapes
assert shapes[-1] == [(1, 3, 8, 16)] * 3 + [(1, 3, 8, 8)], shapes
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), alone, found)
"""


@pytest.mark.slow
def test_each_device_of_a_mesh_runs_a_kernel_on_its_rows_and_heads(run_python):
  done = run_python(code=ON_A_MESH, devices=8)
  assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_all_layers_share_one_bias():
  """The backward pass keeps no bias of each layer, which would be as large as its logits."""
  config = tiny.replace(tiny.CONFIG, encoder_layers=3, decoder_layers=3)
  model = T5(config, Plan(), Compute(attention='fused', attention_dropout=0.0, platform='tpu'))
  batch, rows, length = tiny.make_batch(5, 128, 128), 5, 128
  loss = lambda params: tiny.forward(model, {'params': params}, batch)[0].sum()
  text = str(jax.make_jaxpr(jax.grad(loss))(tiny.variables_of(model)['params']))
  shape = f'{rows},{config.heads},{length},{length}]'
  assert f'f32[{shape}' in text and f'[3,{shape}' not in text
