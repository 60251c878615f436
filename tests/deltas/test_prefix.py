"""Laws of prefixes: formulas, positions, decoding with a cache, rows of mixed tasks, segments."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.deltas.prefix import IntrinsicPrefix, KeyValuePrefix, Prefix, per_layer_rows
from pemt_jax.experts.task_bank import TaskBank
from pemt_jax.methods import zoo
from pemt_jax.methods.base import shift_right
from pemt_jax.methods.prefixes import KeyValuePrefixOptions
from pemt_jax.models import layers
from pemt_jax.models.sites import AttentionInputs, Plan, Rule, SiteContext, StackShape
from pemt_jax.models.t5 import T5
from tests import tiny

CONFIG = tiny.CONFIG
KEY = jax.random.key(3)
LENGTH, COUNT = 3, 2
RAW = Prefix(LENGTH, 5)
PLANS = {
    'raw': Plan((Rule('prefix', '*/self_attention', RAW),)),
    'layered': Plan((Rule('prefix', '*/self_attention', Prefix(LENGTH, 5, 'layered', True)),)),
    'keys and values': Plan((Rule('prefix', '*/self_attention', KeyValuePrefix(LENGTH, 2)),
                             Rule('cross', 'decoder/cross_attention', KeyValuePrefix(2, 2)))),
    'intrinsic': Plan((Rule('prefix', '*/self_attention', IntrinsicPrefix(LENGTH, 4)),)),
    'network': zoo.make('prefix_kv', KeyValuePrefixOptions(LENGTH, hidden=4), CONFIG, 0).plan,
    # Layers with different numbers of rows in front, and two prefixes at one site.
    'segmented': Plan((Rule('long', '*/self_attention', RAW, (('encoder', 1), ('decoder', 0))),
                       Rule('short', '*/self_attention', KeyValuePrefix(1, 2)))),
}


def bank_of(plan):
  return Plan(tuple(Rule(rule.name, rule.site, TaskBank(rule.delta, COUNT), rule.layers)
                    for rule in plan.rules))


@functools.partial(jax.jit, static_argnums=0)
def whole(model, variables, batch, task_ids=None, key=None):
  targets = shift_right(batch['targets'], 0)
  return model.apply(variables, batch['inputs'], batch['inputs_mask'], targets,
                     batch['targets_mask'], task_ids, key)[0]


def beams_of(batch):
  other = np.random.default_rng(1).permutation(batch['targets'], axis=1)
  return np.stack([batch['targets'], other], axis=1)


@pytest.mark.parametrize('name', [
    'raw', 'segmented', *(pytest.param(name, marks=pytest.mark.slow)
                          for name in ('layered', 'keys and values', 'intrinsic', 'network'))])
def test_mixed_rows_and_beams_decode_like_each_expert_alone(name):
  """Cached decoding of a bank = whole targets of a bank = each row with its own prefix."""
  plan = PLANS[name]
  single, bank = T5(CONFIG, plan), T5(CONFIG, bank_of(plan))
  variables, batch = tiny.variables_of(bank), tiny.make_batch()
  ids, targets = np.array([1, 0, 1]), beams_of(batch)
  rows = tiny.cached_logits(bank, variables, batch, targets, ids)
  for beam in range(2):
    seen = whole(bank, variables, {**batch, 'targets': targets[:, beam]}, ids)
    np.testing.assert_allclose(rows[:, beam], seen, rtol=1e-4, atol=1e-4)
  for expert in range(COUNT):
    own = {'params': experts_leaves(variables['params'], tiny.shapes(single)['params'], expert)}
    alone = whole(single, own, {**batch, 'targets': targets[:, 0]})
    np.testing.assert_allclose(rows[ids == expert, 0], alone[ids == expert], rtol=1e-4, atol=1e-4)
  if name != 'segmented':
    assert np.abs(rows[0, 0] - whole(T5(CONFIG), variables, batch)[0]).max() > 1e-2


def experts_leaves(params, shapes, expert):
  flat = {}
  for path, leaf in tiny.flatten(params).items():
    axis = 1 if '/layers' in path else 0
    flat[path] = leaf if leaf.shape == shapes[path] else np.take(leaf, expert, axis)
  return tiny.unflatten(flat)


def test_the_interleaved_layout_is_the_order_in_memory():
  shape = StackShape('encoder', 3, 8, 2, 4, 16, jnp.float32)
  flat = np.arange(LENGTH * 2 * 3 * 8, dtype=np.float32)
  rows = flat.reshape(LENGTH, -1)
  np.testing.assert_array_equal(per_layer_rows(rows, shape, 'interleaved').ravel(), flat)
  layered = np.asarray(per_layer_rows(rows, shape, 'layered'))
  assert layered.shape == (3, 2, 2, LENGTH, 4)
  for p in range(LENGTH):
    np.testing.assert_array_equal(layered[:, :, :, p].ravel(), rows[p])


@pytest.mark.parametrize('biases', [False, True])
def test_the_prefix_is_a_table_behind_a_tanh(biases):
  delta = Prefix(LENGTH, 5, biases=biases)
  shape = StackShape('encoder', 2, 8, 2, 4, 16, jnp.float32)
  values = {name: tiny.random_leaf(name, weight.shape, 0)
            for name, weight in delta.stack_weights(shape).items()}
  hidden = np.tanh(values['table'] @ values['project_in'] + values.get('bias_in', 0))
  rows = (hidden @ values['project_out'] + values.get('bias_out', 0)).reshape(2, 2, 2, LENGTH, 4)
  context = SiteContext(jnp.ones((1, 1)), jnp.ones(1))
  shared, layered = delta.prepare(values, shape, context)
  assert shared is None
  np.testing.assert_allclose(layered['keys'], rows[:, 0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(layered['values'], rows[:, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('options, found', [
    ({'places': ('decoder',)}, {'decoder/layers/self_attention/attend/prefix_kv/keys',
                                'decoder/layers/self_attention/attend/prefix_kv/values'}),
    ({'places': ('encoder', 'cross'), 'hidden': 4}, {
        f'{place}/{name}' for place in ('encoder/prefix_kv', 'decoder/prefix_kv_cross')
        for name in ('table', 'project_in', 'project_out', 'bias_in', 'bias_out')})])
def test_places_and_networks_of_key_value_prefixes(options, found):
  method = zoo.make('prefix_kv', KeyValuePrefixOptions(LENGTH, **options), CONFIG, 0)
  _, tuned = tiny.split(method, tiny.variables_of(tiny.model_of(method)))
  assert tiny.flatten(tuned).keys() == found


def test_first_values_have_the_published_bounds():
  shape = StackShape('encoder', 2, 64, 4, 16, 16, jnp.float32)
  weights = Prefix(50, 16).stack_weights(shape)
  values = {name: np.asarray(w.init(KEY, w.shape)) for name, w in weights.items()}
  assert abs(values['table'].std() - 0.02) < 0.001
  for name, bound in (('project_in', 64**-0.5), ('project_out', 16**-0.5)):
    assert 0.95 * bound < np.abs(values[name]).max() <= bound


def test_attention_reads_the_prefix_like_keys_in_front():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  query, key, value, bias = draw(2, 2, 4, 3), draw(2, 2, 5, 3), draw(2, 2, 5, 3), draw(1, 2, 4, 8)
  front_key, front_value = draw(2, 3, 3), draw(2, 3, 3)
  inputs = AttentionInputs(query, key, value).with_prefix(front_key, front_value)
  mixed = layers.attend(inputs, bias[..., 3:], bias[..., :3], 0.0, (None, {}))
  spread = lambda a: np.broadcast_to(a, (2, *a.shape))
  keys = np.concatenate([spread(front_key), key], axis=2)
  logits = query @ keys.swapaxes(-1, -2) + bias
  weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  expected = weights @ np.concatenate([spread(front_value), value], axis=2)
  np.testing.assert_allclose(mixed, expected.transpose(0, 2, 1, 3).reshape(2, 4, 6), rtol=1e-4,
                             atol=1e-5)


def test_rows_of_a_prefix_stand_before_the_first_token():
  """The last prefix row is one position before token 0, whatever the prompt's padding."""
  prompt = zoo.make('prompt', zoo.default_options('prompt')['prompt'], CONFIG, 2)
  plan = Plan((*prompt.plan.rules, *PLANS['raw'].rules))
  model = T5(CONFIG, plan)
  longer = zoo.make('prompt', zoo.default_options('prompt')['prompt'], CONFIG, 5)
  padded = T5(CONFIG, Plan((*longer.plan.rules, *PLANS['raw'].rules)))
  variables, batch = tiny.variables_of(model), tiny.make_batch()
  for key in (None, KEY):
    np.testing.assert_allclose(whole(model, variables, batch, None, key),
                               whole(padded, tiny.left_padded(variables, 3), batch, None, key),
                               rtol=1e-4, atol=1e-5)


def test_longer_prefixes_of_other_layers_do_not_matter():
  """In layer 0 a row stands next to the tokens, however many rows stand in front in layer 1."""
  seen = []
  for length in (1, 4):
    rules = (Rule('short', '*/self_attention', KeyValuePrefix(1, 2)),
             Rule('more', 'encoder/self_attention', KeyValuePrefix(length, 2), (('encoder', 1),)),
             Rule('probe', 'encoder/self_attention/o', tiny.Affine()))
    model = T5(tiny.replace(CONFIG, relative_buckets=32), Plan(rules))
    _, aux = tiny.forward(model, tiny.variables_of(model), tiny.make_batch())
    seen.append(aux['encoder/self_attention/o/probe/seen'])
  np.testing.assert_allclose(seen[0][0], seen[1][0], rtol=1e-5, atol=1e-6)
  assert np.abs(seen[0][1] - seen[1][1]).max() > 1e-3


def test_a_prefix_does_not_move_the_noise_of_the_tokens():
  rng = np.random.default_rng(0)
  query, key, value = rng.normal(size=(3, 2, 2, 5, 3)).astype(np.float32)
  inputs, front = AttentionInputs(query, key, value), np.ones((2, 3, 3), np.float32)
  bias, rng_ = np.zeros((1, 2, 5, 5), np.float32), (KEY, {})
  hidden = layers.attend(inputs.with_prefix(front, front), bias, jnp.asarray(-1e9), 0.4, rng_)
  np.testing.assert_allclose(hidden, layers.attend(inputs, bias, None, 0.4, rng_), rtol=1e-5)
