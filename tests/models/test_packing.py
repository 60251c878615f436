"""Rows of several examples: loss and gradients are those of one example per row."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from pemt_jax.data.packing import RowForm, pack_rows
from pemt_jax.data.tokenized import Ragged, TokenizedData
from pemt_jax.methods import pemt, zoo
from pemt_jax.models.bart import Bart
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.t5 import T5
from pemt_jax.training.rules import split_params
from pemt_jax.trees import flatten, unflatten
from tests import tiny

EXAMPLES = 6
SHALLOW = dataclasses.replace(tiny.CONFIG, encoder_layers=1, decoder_layers=1)
BART = BartConfig(vocab_size=32, embed=8, heads=2, mlp=16, encoder_layers=1, decoder_layers=1,
                  positions=64, dropout=0.0)


def make_data(seed=0):
  """Examples of different lengths, shared by several tasks."""
  rng = np.random.default_rng(seed)
  texts = lambda most: Ragged.from_lists(
      [rng.integers(2, 32, size=rng.integers(2, most)).tolist() for _ in range(EXAMPLES)])
  return TokenizedData(texts(8), texts(5), np.zeros(EXAMPLES, np.int32),
                       np.arange(EXAMPLES, dtype=np.int32), 0, 8, 5, 'x')


def batches_of(front):
  """The examples, one in each row, and packed behind places for a prompt."""
  data = make_data()
  packed = pack_rows(data, RowForm(front, 26 + front), 0, 'a')
  rows = np.append(np.arange(len(packed)), -1)
  return (data.assemble(np.arange(EXAMPLES), 0, (9, 6)),
          packed.assemble(rows, 0, (packed.input_limit, packed.target_limit)))


def left_padding(path, leaf):
  """Random values; the first row of a prompt is padding."""
  return np.r_[0.0, np.ones(len(leaf) - 1)].astype(np.float32) if path.endswith('/mask') else leaf


def check(model, method, front):
  """Compares loss, metrics and gradients of the tuned leaves of both batches."""
  shapes = tiny.shapes(model)
  params = unflatten({path: tiny.random_leaf(path, shape, 1)
                      for path, shape in shapes['params'].items()})
  constants = unflatten({path: left_padding(path, np.ones(shape, np.float32))
                         for path, shape in shapes.get('constants', {}).items()})
  frozen, tuned = split_params(params, method.tuned)
  alone, packed = batches_of(front)
  assert packed['example_ids'].shape[1] > 1 and len(packed['inputs']) < EXAMPLES
  value = tiny.gradients(model, method)
  (expected, metrics), wanted = value(tuned, frozen, constants, alone, None)
  (found, more), grads = value(tuned, frozen, constants, packed, None)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  tiny.assert_trees_close(more, metrics, rtol=1e-5)
  largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
  assert largest > 0
  for path, leaf in flatten(wanted).items():
    np.testing.assert_allclose(flatten(grads)[path], leaf, atol=1e-5 * largest, err_msg=path)


@functools.cache
def of_zoo(stage, config=SHALLOW):
  """A method of the zoo for a tiny backbone; options of size keep it small."""
  sizes = {'reduction': 2, 'rank': 2, 'length': 3, 'size': 3, 'dimension': 4, 'hidden': 6,
           'terms': 2, 'down_scale': 2, 'encoder_layers': None, 'decoder_layers': None}
  options = {}
  for name in zoo.names_of(stage):
    own = zoo.ZOO[name].default_options()
    fields = {field.name for field in dataclasses.fields(own)}
    options[name] = dataclasses.replace(own, **{k: v for k, v in sizes.items() if k in fields})
  return zoo.make(stage, options if len(options) > 1 else options[stage], config, tiny.PROMPT)


@pytest.mark.parametrize('bank', [tiny.LORA_BANK,
                                  pytest.param(tiny.ADAPTER_BANK, marks=pytest.mark.slow)])
def test_stage_2(bank):
  method = tiny.stage2(bank=bank, config=SHALLOW)
  check(T5(SHALLOW, method.plan), method, tiny.PROMPT)


@pytest.mark.slow
def test_stage_1():
  options = pemt.Stage1Options(expert='adapter', reduction=4)
  method = pemt.stage1(options, SHALLOW, tiny.PROMPT)
  check(T5(SHALLOW, method.plan), method, tiny.PROMPT)


def packs(name):
  """Whether all deltas of an entry of the zoo read positions or whole rows of one task."""
  method = of_zoo(name)
  return method.transform_loss is None and all(rule.delta.packs for rule in method.plan.rules)


def test_what_reads_a_row_as_one_example_does_not_pack():
  assert not any(map(packs, ('attempt', 'mixda', 'adamix', 'switch', 'top2', 'task_moe', 'maml')))
  assert not any(rule.delta.packs for rule in tiny.stage2(mask_padding=False).plan.rules[1:])


# Joined names share a program.
@pytest.mark.parametrize('name', ['prompt+prefix+propetl', *(
    pytest.param(name, marks=pytest.mark.slow) for name in (
        'lora+ia3+bitfit+pfeiffer', 'compacter+lora_br+intrinsic_prefix+full', 'mpo+parallel',
        'hyperformer+prefix_kv'))])
def test_methods_on_t5(name):
  method = of_zoo(name)
  front = sum(rule.delta.front_positions for rule in method.plan.rules)
  assert packs(name)
  check(T5(SHALLOW, method.plan), method, front)


@pytest.mark.slow
def test_positions_of_bart():
  method = of_zoo('prompt+prefix_kv', BART)
  check(Bart(BART, method.plan), method, tiny.PROMPT)
