"""GPT-2: padding anywhere, cached steps, prompts and prefixes, text to text."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.deltas.lora import LoRA
from pemt_jax.deltas.prefix import KeyValuePrefix, Prefix
from pemt_jax.deltas.prompt import Prompt
from pemt_jax.errors import UserError
from pemt_jax.methods.base import LossForm, Method, make_loss
from pemt_jax.methods.language_modelling import make_language_loss
from pemt_jax.models.gpt2 import GPT2
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.models.sites import Plan, Rule
from tests import tiny

CONFIG = GPT2Config(vocab_size=32, embed=8, heads=2, mlp=16, decoder_layers=2, positions=24,
                    pad_id=0, start_id=1, eos_id=1)
FULL = Method('full', Plan(), (('.*', 'backbone'),))


def planned(*rules):
  return GPT2(CONFIG, Plan(tuple(Rule(*rule) for rule in rules)))


PLAIN = planned()
CHANGED = planned(('lora', 'decoder/self_attention/[qv]', LoRA(2)),
                  ('probe', 'decoder/mlp_residual', tiny.Affine(0.5, 0.1)),
                  ('prompt', 'decoder/embed', Prompt(3)),
                  ('prefix', 'decoder/self_attention', Prefix(2, 4)),
                  ('own', 'decoder/self_attention', KeyValuePrefix(2, 2), (('decoder', 1),)))
both = pytest.mark.parametrize('model', [pytest.param(PLAIN, marks=pytest.mark.slow), CHANGED],
                               ids=['plain', 'changed'])


@functools.cache
def variables_of(model):
  found = tiny.shapes(model)
  params = {path: tiny.random_leaf(path, shape, 0) for path, shape in found['params'].items()}
  constants = {path: np.ones(shape, np.float32)
               for path, shape in found.get('constants', {}).items()}
  return {'params': tiny.unflatten(params), 'constants': tiny.unflatten(constants)}


@functools.partial(jax.jit, static_argnums=0)
def read(model, variables, tokens, mask, key=None):
  return model.apply(variables, tokens, mask, None, key, method='read')[0]


def rows_of(length=9, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(2, CONFIG.vocab_size, (2, length)).astype(np.int32)


@both
def test_padding_anywhere_changes_nothing_at_real_positions(model):
  tokens, variables = rows_of(6), variables_of(model)
  expected = read(model, variables, tokens, np.ones((2, 6), np.float32))
  for places in ([0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8], [0, 1, 4, 5, 7, 8]):
    padded, mask = np.full((2, 9), 9, np.int32), np.zeros((2, 9), np.float32)
    padded[:, places], mask[:, places] = tokens, 1
    found = read(model, variables, padded, mask)
    np.testing.assert_allclose(found[:, places], expected, rtol=1e-5, atol=1e-5)


def test_no_position_sees_a_later_one():
  tokens, mask = rows_of(), np.ones((2, 9), np.float32)
  other = tokens.copy()
  other[:, 5:] = rows_of(9, seed=1)[:, 5:]
  first, second = (read(CHANGED, variables_of(CHANGED), t, mask) for t in (tokens, other))
  np.testing.assert_array_equal(first[:, :5], second[:, :5])
  assert np.abs(first[:, 5:] - second[:, 5:]).max() > 0.1


@both
def test_cached_steps_give_the_logits_of_whole_texts(model):
  tokens, variables, front, beams = rows_of(), variables_of(model), 4, 2
  mask = np.ones((2, 9), np.float32)
  mask[1, :2] = 0  # the second text is padded on the left, the first one inside
  mask[0, 3] = 0
  expected = read(model, variables, tokens, mask)

  @jax.jit
  def run(variables):
    apply = lambda *args, name: model.apply(variables, *args, method=name)
    text = apply(tokens[:, :front], mask[:, :front], name='encode')
    memory, cache = apply(text, 2 * beams, 5, name='start_decoding')
    logits = []
    for place in range(5):
      column = jnp.repeat(tokens[:, front + place], beams)
      out, cache = apply(column, jnp.int32(place), cache, memory, name='decode_step')
      logits.append(out)
    return jnp.stack(logits, axis=1)

  found = np.asarray(run(variables))
  np.testing.assert_allclose(found, np.repeat(expected[:, front:], beams, axis=0), rtol=1e-4,
                             atol=1e-5)


def test_the_loss_of_text_is_the_mean_over_predicted_tokens():
  tokens, variables = rows_of(), variables_of(PLAIN)
  mask = np.ones((2, 9), np.float32)
  mask[1, 6:] = 0
  logits = np.asarray(read(PLAIN, variables, tokens, mask), np.float64)
  chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  each = [-np.log(chances[row, place, tokens[row, place + 1]])
          for row, length in ((0, 9), (1, 6)) for place in range(length - 1)]
  batch = {'inputs': tokens, 'inputs_mask': mask}
  run = lambda *form: jax.jit(lambda params: make_language_loss(PLAIN, FULL, *form)(
      params, {}, {}, batch, None))(variables['params'])
  loss, metrics = run()
  np.testing.assert_allclose(loss, np.mean(each), rtol=1e-5)
  assert metrics['weight'] == len(each) == 13
  total, _ = run(LossForm(reduction='sum'))
  np.testing.assert_allclose(total, np.sum(each), rtol=1e-5)


def test_text_to_text_is_the_loss_of_the_target_behind_the_source():
  variables = variables_of(PLAIN)
  batch = tiny.make_batch(rows=2, length=6, target_length=3, vocab=CONFIG.vocab_size)
  loss, _ = jax.jit(make_loss(PLAIN, FULL))(variables['params'], {}, {}, batch, None)
  total = count = 0
  for row in range(2):
    source = batch['inputs'][row][batch['inputs_mask'][row] > 0]
    target = batch['targets'][row][batch['targets_mask'][row] > 0]
    text = np.concatenate([source, [CONFIG.start_id], target])[None]
    logits = np.asarray(read(PLAIN, variables, np.pad(text, ((0, 0), (0, 10 - text.size))),
                             np.pad(np.ones(text.shape, np.float32),
                                    ((0, 0), (0, 10 - text.size)))))[0]
    chosen = jax.nn.log_softmax(logits)[np.arange(len(source), text.size - 1), target]
    total, count = total - float(chosen.sum()), count + len(target)
  np.testing.assert_allclose(loss, total / count, rtol=1e-5)


def test_dropout_acts_at_every_place_and_only_under_a_key():
  config = dataclasses.replace(CONFIG, embed=32, dropout=0.5, embed_dropout=0.5)
  sites = ('decoder/self_attention_residual', 'decoder/mlp_residual')
  model = GPT2(config, Plan(tuple(Rule('probe', site, tiny.Affine()) for site in sites)))
  variables, tokens = variables_of(model), rows_of()
  run = jax.jit(lambda key: model.apply(variables, tokens, np.ones((2, 9)), None, key,
                                        method='read')[1])
  aux = run(jax.random.key(3))
  zeros = [np.asarray(aux[f'{site}/probe/seen'])[layer] == 0 for site in sites
           for layer in range(2)]
  for i, one in enumerate(zeros):
    assert 0.4 < one.mean() < 0.6
    assert all(0.4 < (one != other).mean() < 0.6 for other in zeros[:i])


def test_a_text_longer_than_the_positions_is_told():
  tokens = jnp.ones((1, 25), jnp.int32)
  with pytest.raises(UserError, match='a text has 25 positions, prompt and answer included, but'):
    jax.eval_shape(lambda: PLAIN.apply(variables_of(PLAIN), tokens, tokens, method='read'))
