"""A tiny T5 with every part of PEMT's second stage; random trees and batches for it."""

from __future__ import annotations

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.deltas.base import Delta
from pemt_jax.deltas.prompt import Prompt
from pemt_jax.methods import pemt
from pemt_jax.methods.base import boxed_shapes, make_loss, shift_right
from pemt_jax.models.layers import Compute
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import T5Config
from pemt_jax.training.rules import split_params
from pemt_jax.trees import flatten, unflatten

CONFIG = T5Config(vocab_size=32, embed=8, kv=4, heads=2, mlp=16, encoder_layers=2,
                  decoder_layers=2, relative_buckets=8, dropout=0.1)
PROMPT, SOURCE_PROMPTS = 4, (3, 5)
LORA_BANK = pemt.BankShape('lora', 2, 3, 0.5, prompt_lengths=SOURCE_PROMPTS)
ADAPTER_BANK = pemt.BankShape('adapter', 2, 3, prompt_lengths=SOURCE_PROMPTS)
UNROLLED = Compute(scan_layers=False)


@dataclasses.dataclass(frozen=True)
class Affine(Delta):
  """y = factor * base(x) + after; shows the input of a site."""

  factor: float = 1.0
  after: float = 0.0

  def act(self, values, base, x, context, site):
    return self.factor * base(x) + self.after, {'seen': getattr(x, 'query', x)}


@functools.cache
def stage2(prompt_length=PROMPT, bank=LORA_BANK, config=CONFIG, **options):
  """Stage 2 with a bottleneck of 4 units; the same arguments give the same object."""
  return pemt.stage2(pemt.Stage2Options(reduction=2, **options), config, prompt_length, bank)


@functools.cache
def model_of(method, config=CONFIG, compute=Compute()):
  """The model of a method; equal arguments share compiled programs."""
  return T5(config, method.plan, compute)


@functools.cache
def shapes(model):
  """{collection: {path: shape}} of a model."""
  boxed = boxed_shapes(model)
  unboxed = {name: jax.tree.map(lambda leaf: getattr(leaf, 'value', leaf), tree,
                                is_leaf=lambda leaf: hasattr(leaf, 'names'))
             for name, tree in boxed.items()}
  return {name: {path: leaf.shape for path, leaf in flatten(tree).items()}
          for name, tree in unboxed.items()}


def random_leaf(path, shape, seed):
  """Depends on its path, shape and seed only; large enough for every part to be seen."""
  rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
  values = rng.normal(size=shape).astype(np.float32)
  return 1.0 + 0.2 * values if path.endswith('scale') else 0.4 * values


def variables_of(model, seed=0):
  """Random parameters; masks without padding, except between source prompts."""
  found = shapes(model)
  params = unflatten({path: random_leaf(path, shape, seed)
                      for path, shape in found['params'].items()})
  masks = {}
  for rule in model.plan.rules:
    if isinstance(rule.delta, Prompt):
      masks['mask'] = np.ones(rule.delta.length, np.float32)
      lengths = np.array(rule.delta.source_lengths)
      if len(lengths):
        size = lengths.max()
        masks['sources_mask'] = (np.arange(size) >= size - lengths[:, None]).astype(np.float32)
  return {'params': params, 'constants': {'encoder': {'embed': {'prompt': masks}}} if masks else {}}


def make_batch(rows=3, length=7, target_length=5, seed=0, vocab=CONFIG.vocab_size):
  """Random rows of different lengths; the first row has no padding."""
  rng = np.random.default_rng(seed)
  batch = {}
  for name, size in (('inputs', length), ('targets', target_length)):
    real = rng.integers(2, size + 1, size=(rows, 1))
    real[0] = size
    mask = np.arange(size) < real
    batch[name] = (rng.integers(2, vocab, size=(rows, size)) * mask).astype(np.int32)
    batch[f'{name}_mask'] = mask.astype(np.float32)
  return batch


def pad_batch(batch, rows=0, length=0, target_length=0):
  """Adds filler rows and padding positions."""
  more = {'inputs': length, 'targets': target_length}
  return {name: np.pad(leaf, ((0, rows), (0, more[name.removesuffix('_mask')])))
          for name, leaf in batch.items()}


@functools.partial(jax.jit, static_argnums=0)
def forward(model, variables, batch, key=None):
  """(logits, auxiliaries) of a batch."""
  return model.apply(variables, batch['inputs'], batch['inputs_mask'],
                     shift_right(batch['targets'], model.config.start_id), batch['targets_mask'],
                     None, key)


def split(method, variables):
  """(frozen, tuned) parameters by the method's rules."""
  return split_params(variables['params'], method.tuned)


@functools.cache
def gradients(model, method):
  """Compiled (tuned, frozen, constants, batch, key) -> ((loss, metrics), gradients)."""
  return jax.jit(jax.value_and_grad(make_loss(model, method), has_aux=True))


def loss_and_gradients(model, method, variables, batch, key=None):
  """Loss, metrics and gradients of the tuned leaves."""
  frozen, tuned = split(method, variables)
  (loss, metrics), grads = gradients(model, method)(
      tuned, frozen, variables['constants'], batch, key)
  return loss, metrics, grads


def left_padded(variables, more):
  """The same prompt behind `more` rows of padding that hold large numbers."""
  prompt = variables['params']['encoder']['embed']['prompt']
  masks = variables['constants']['encoder']['embed']['prompt']
  noise = 9.0 * np.ones((more, prompt['table'].shape[1]), np.float32)
  table = np.concatenate([noise, prompt['table']])
  mask = np.concatenate([np.zeros(more, np.float32), masks['mask']])
  padded = dict(flatten(variables))
  padded['params/encoder/embed/prompt/table'] = table
  padded['constants/encoder/embed/prompt/mask'] = mask
  return unflatten(padded)


def assert_trees_close(first, second, rtol=1e-5, atol=1e-6):
  """Equal paths, close leaves."""
  one, two = flatten(first), flatten(second)
  assert one.keys() == two.keys()
  for path, leaf in one.items():
    np.testing.assert_allclose(leaf, two[path], rtol=rtol, atol=atol, err_msg=path)


def replace(config, **changes):
  """dataclasses.replace under a shorter name."""
  return dataclasses.replace(config, **changes)


def stack(trees):
  """Leaves of equal trees on a new leading axis."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@functools.partial(jax.jit, static_argnums=0)
def cached_logits(model, variables, batch, targets, task_ids=None):
  """Logits of decoding step by step; targets [batch, beams, length] stand as beams."""
  count, beams, length = targets.shape
  encoded = model.apply(variables, batch['inputs'], batch['inputs_mask'], task_ids,
                        method='encode')
  memory, cache = model.apply(variables, encoded, count * beams, length, task_ids,
                              method='start_decoding')
  tokens = shift_right(targets.reshape(-1, length), model.config.start_id)

  def step(cache, position):
    logits, cache = model.apply(variables, tokens[:, position], position, cache, memory,
                                method='decode_step')
    return cache, logits

  _, logits = jax.lax.scan(step, cache, jnp.arange(length))
  return logits.transpose(1, 0, 2).reshape(count, beams, length, -1)
