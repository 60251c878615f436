"""A tiny random T5 over the playground's words, and configs of stages that train it in seconds."""

from __future__ import annotations

import functools

import jax
import numpy as np

from pemt_jax.data import playground
from pemt_jax.data.tokenizer import train_word_tokenizer
from pemt_jax.experts.library import load_expert
from pemt_jax.interop import bart_files, gpt2_files, huggingface
from pemt_jax.methods.base import initialiser
from pemt_jax.models.bart import Bart
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.gpt2 import GPT2
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import T5Config
from pemt_jax.stages.config import base_config
from pemt_jax.stages.run import run_stage
from pemt_jax.trees import flatten

SHAPE = dict(embed=16, kv=4, heads=2, mlp=24, encoder_layers=1, decoder_layers=1,
             relative_buckets=8, dropout=0.1)
V11 = dict(SHAPE, activation='gelu_tanh', gated=True, tied_head=False)
# Label words that have one token each, descriptions of four words.
SOURCES = ('playground/omen', 'playground/tide')
TARGET = 'playground/charm'


def write_backbone(folder, texts=(), seed=0, **shape):
  """Writes a random T5 with a tokenizer of the playground's words and those of `texts`."""
  tokenizer = train_word_tokenizer([*playground.vocabulary(), *texts], folder, sentinels=8)
  config = T5Config(vocab_size=tokenizer.vocab_size, **(shape or SHAPE))
  params, _ = initialiser(T5(config))(jax.random.key(seed))
  huggingface.save_t5(folder, config, jax.tree.map(np.asarray, params))
  return str(folder)


def write_bart(folder):
  """Writes a random BART with a tokenizer of the playground's words; two beams by its options."""
  tokenizer = train_word_tokenizer(playground.vocabulary(), folder, sentinels=1)
  config = BartConfig(tokenizer.vocab_size, 16, 2, 24, 1, 1, positions=40,
                      generation=(('num_beams', 2), ('forced_eos_token_id', 1)),
                      pad_id=0, bos_id=1, eos_id=1, start_id=1)
  params, _ = initialiser(Bart(config))(jax.random.key(0))
  bart_files.save_bart(folder, config, jax.tree.map(np.asarray, params))
  return str(folder)


def write_gpt2(folder):
  """Writes a random GPT-2 with a tokenizer of the playground's words."""
  tokenizer = train_word_tokenizer(playground.vocabulary(), folder, sentinels=0)
  config = GPT2Config(tokenizer.vocab_size, 16, 2, 24, 1, positions=40, pad_id=0, start_id=1,
                      eos_id=1)
  params, _ = initialiser(GPT2(config))(jax.random.key(0))
  gpt2_files.save_gpt2(folder, config, jax.tree.map(np.asarray, params))
  return str(folder)


def config_of(stage, backbone, tasks=SOURCES, steps=2, **changes):
  """A config of a tiny run on the playground; `changes` name paths with '__' for the dot."""
  config = base_config(stage)
  config.tasks = tuple(tasks)
  config.model.name = backbone
  config.model.scan_layers = True  # As on accelerators; scripts run in the form of CPUs.
  config.data.source = 'playground'
  config.data.max_source_length = 24
  config.data.max_target_length = 4
  config.data.buckets = (24,)
  config.data.target_buckets = (4,)
  config.data.batch_size = 8
  config.data.eval_batch_size = 16
  config.data.max_train_rows = 32
  config.data.max_validation_rows = 16
  config.data.max_test_rows = 16
  config.generation.max_length = 3
  config.train.steps = steps
  config.train.learning_rate = 1e-2
  config.train.log_every = 1
  config.train.tensorboard = False
  config.train.progress = 'never'
  if stage == 'pemt/stage1':
    config.method.rank = 2
    config.method.alpha = 4.0
    config.method.reduction = 8
  for name, value in changes.items():
    *path, last = name.split('__')
    node = config
    for part in path:
      node = node[part]
    with node.unlocked():
      node[last] = value
  return config


def stage1_config(backbone, **changes):
  """Two sources that differ in rows, batch, text length, learning rate and length of the prompt."""
  config = config_of('pemt/stage1', backbone, steps=0, train__epochs=1.0, data__buckets=(),
                     data__target_buckets=(), **changes)
  first, second = SOURCES
  with config.unlocked():
    config.prompt.descriptions = {first: 'is it lucky today , says ann ?'}
    config.per_task = {
        first: {'data': {'max_train_rows': 24}, 'train': {'learning_rate': 2e-2}},
        second: {'data': {'max_train_rows': 7, 'max_source_length': 10, 'batch_size': 4}}}
  return config


@functools.cache
def backbone(base):
  """Folder of the backbone below `base`."""
  return write_backbone(base / 'backbone')


@functools.cache
def stage1(base):
  """Both sources trained together: 3 and 2 steps."""
  return run_stage(stage1_config(backbone(base)), base / 'stage1')


@functools.cache
def stage2(base):
  """One target on the sources of `stage1`."""
  stage1(base)
  config = config_of('pemt/stage2', backbone(base), (TARGET,), sources=(str(base / 'stage1'),),
                     data__few_shot=6, train__eval_every=1)
  return run_stage(config, base / 'stage2')


def leaves_of(folder):
  """{path: array} of an expert."""
  return flatten(load_expert(folder)[0])


def assert_same_leaves(first, second, rtol=2e-4, atol=2e-5):
  """Equal paths, close leaves."""
  assert first.keys() == second.keys()
  for path, leaf in first.items():
    np.testing.assert_allclose(leaf, second[path], rtol=rtol, atol=atol, err_msg=path)
