"""Laws of the RoBERTa backbone, alone and planned; numbers of Hugging Face are in tests/interop."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pemt_jax.deltas.adapter import Adapter, Bottleneck
from pemt_jax.deltas.lora import LoRA
from pemt_jax.deltas.post_norm import PostNormAdapter
from pemt_jax.deltas.prefix import KeyValuePrefix, Prefix
from pemt_jax.deltas.prompt import Prompt
from pemt_jax.errors import UserError
from pemt_jax.experts.task_bank import TaskBank
from pemt_jax.methods.base import Method, boxed_shapes
from pemt_jax.methods.classification import make_text_loss, text_loss
from pemt_jax.models.layers import Compute
from pemt_jax.models.roberta import Roberta
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.segments import cut
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5 import T5
from pemt_jax.sharding.rules import RULES
from pemt_jax.trees import flatten, unflatten
from tests import tiny

CONFIG = RobertaConfig(vocab_size=32, embed=8, heads=2, mlp=12, encoder_layers=2, positions=16)
BERT = dataclasses.replace(CONFIG, kind='bert', token_types=2, pad_id=0)
KEY = jax.random.key(5)
BOTTLENECK = Bottleneck(3, 'relu')


def variables_of(model, seed=0):
  """Random parameters, masks of ones."""
  found = tiny.shapes(model)
  params = {path: tiny.random_leaf(path, shape, seed) for path, shape in found['params'].items()}
  constants = {path: np.ones(shape, np.float32)
               for path, shape in found.get('constants', {}).items()}
  return {'params': unflatten(params), 'constants': unflatten(constants)}


def make_batch(config=CONFIG, rows=3, length=6, seed=0):
  rng = np.random.default_rng(seed)
  mask = np.arange(length) < np.array([[length], [4], [2]])[:rows]
  tokens = np.where(mask, rng.integers(3, config.vocab_size, mask.shape), config.pad_id)
  return {'inputs': tokens.astype(np.int32), 'inputs_mask': mask.astype(np.float32),
          'labels': np.array([0, 1, 1])[:rows]}


@functools.partial(jax.jit, static_argnums=0)
def forward(model, variables, batch, key=None):
  return model.apply(variables, batch['inputs'], batch['inputs_mask'], batch.get('token_types'),
                     batch.get('task_ids'), key)


def planned(*rules, config=CONFIG, compute=Compute(), labels=2):
  return Roberta(config, Plan(tuple(Rule(*rule) for rule in rules)), compute, labels)


def pad(batch, rows=0, length=0, pad_id=CONFIG.pad_id):
  wide = ((0, rows), (0, length))
  return {'inputs': np.pad(batch['inputs'], wide, constant_values=pad_id),
          'inputs_mask': np.pad(batch['inputs_mask'], wide)}


FULL = planned(('lora', 'encoder/self_attention/[qv]', LoRA(2)),
               ('adapter', 'encoder/mlp_norm', PostNormAdapter(BOTTLENECK)),
               ('prefix', 'encoder/self_attention', Prefix(2, 3, biases=True)),
               ('prompt', 'encoder/embed', Prompt(3)))


@pytest.mark.parametrize('compute', [
    Compute(scan_layers=False), Compute(remat='full')], ids=['unrolled', 'remat'])
@pytest.mark.slow
def test_unrolled_and_rematerialised_layers_give_the_same_numbers(compute):
  variables, batch = variables_of(FULL), make_batch()
  other = dataclasses.replace(FULL, compute=compute)
  assert tiny.shapes(other) == tiny.shapes(FULL)
  method = Method('all', FULL.plan, (('.*', 'all'),))

  def run(model):
    loss = jax.jit(jax.value_and_grad(make_text_loss(model, method), has_aux=True))
    return loss(variables['params'], {}, variables['constants'], batch, KEY)

  first, second = run(FULL), run(other)
  np.testing.assert_allclose(first[0][0], second[0][0], rtol=1e-6)
  tiny.assert_trees_close(first[1], second[1], rtol=1e-4)


def test_padding_and_filler_rows_change_nothing_with_dropout_on():
  variables, batch = variables_of(FULL), make_batch()
  logits, _ = forward(FULL, variables, batch, KEY)
  more, _ = forward(FULL, variables, pad(batch, 1, 3), KEY)
  np.testing.assert_allclose(more[:3], logits, rtol=1e-5, atol=1e-6)
  assert np.abs(logits - forward(FULL, variables, batch)[0]).max() > 0.01


def test_left_padding_of_a_prompt_changes_nothing():
  variables, batch = variables_of(FULL), make_batch()
  longer = dataclasses.replace(FULL, plan=Plan((*FULL.plan.rules[:-1],
                                                Rule('prompt', 'encoder/embed', Prompt(5)))))
  for key in (None, KEY):
    first = forward(FULL, variables, batch, key)[0]
    padded = tiny.left_padded(variables, 2)
    np.testing.assert_allclose(forward(longer, padded, batch, key)[0], first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('config', [CONFIG, BERT], ids=['roberta', 'bert'])
def test_every_site_is_called_and_every_parameter_has_known_axes(config):
  sites = Roberta(config).sites()
  model = planned(*(('probe', site, tiny.Affine(1.0, 0.0)) for site in sites), config=config)
  variables, batch = variables_of(model), make_batch(config)
  logits, aux = forward(model, variables, batch)
  assert {name.removesuffix('/probe/seen') for name in aux} == set(sites) - {'shared'}
  np.testing.assert_allclose(logits, forward(Roberta(config), variables, batch)[0], rtol=1e-6)
  known = {name for name, _ in RULES}
  boxed = flatten(boxed_shapes(model)['params'])
  assert {name for leaf in boxed.values() for name in leaf.names} <= known
  for path, leaf in boxed.items():
    assert (leaf.names[0] == 'layer') == ('/layers/' in path), path


@pytest.mark.parametrize('site', ['encoder/embed_norm', 'encoder/self_attention/v',
                                  'encoder/mlp/wi', 'head/out'])
def test_a_delta_at_a_site_has_its_effect(site):
  batch = make_batch()
  moved, plain = planned(('probe', site, tiny.Affine(0.5, 0.1))), Roberta(CONFIG)
  variables = variables_of(plain)
  first, second = (forward(model, variables, batch)[0] for model in (moved, plain))
  assert np.abs(first - second).max() > 1e-3
  if site == 'head/out':
    np.testing.assert_allclose(first, 0.5 * second + 0.1, rtol=1e-5)


def test_layers_with_deltas_of_their_own_are_segments_of_one_tree():
  rule = ('adapter', 'encoder/mlp_norm', PostNormAdapter(BOTTLENECK))
  everywhere, batch = planned(rule), make_batch()
  variables = variables_of(everywhere)
  last = planned((*rule, (('encoder', 1),)))
  params = flatten(variables['params'])
  for path, leaf in params.items():  # in the first layer the adapter adds nothing
    if '/adapter/up/' in path:
      params[path] = leaf * np.arange(2).reshape(-1, *(1,) * (leaf.ndim - 1))
  expected, _ = forward(everywhere, {'params': unflatten(params)}, batch)
  own = {path: leaf[1:] if '/adapter/' in path else leaf for path, leaf in params.items()}
  shapes = nn.meta.unbox(boxed_shapes(last))['params']
  cut_tree = cut(unflatten(own), shapes)
  assert 'layers_0_1' in cut_tree['encoder']
  # In the first layer LN(f + x) is normed once; with an adapter of zeros the sum is the same.
  np.testing.assert_allclose(forward(last, {'params': cut_tree}, batch)[0], expected, rtol=1e-5,
                             atol=1e-6)


def test_rows_of_one_batch_may_use_banks_of_their_own():
  bank = planned(('lora', 'encoder/*/[qv]', TaskBank(LoRA(2), 2)),
                 ('adapter', 'encoder/mlp_norm', TaskBank(PostNormAdapter(BOTTLENECK), 2)),
                 ('prefix', 'encoder/self_attention', TaskBank(KeyValuePrefix(2, 2), 2)))
  single = planned(*((rule.name, rule.site, rule.delta.delta) for rule in bank.plan.rules))
  variables, batch = variables_of(bank), make_batch()
  mixed, _ = forward(bank, variables, batch | {'task_ids': np.array([1, 0, 1])})
  own = lambda task: unflatten({
      path: leaf[:, task] if leaf.shape != tiny.shapes(single)['params'][path] else leaf
      for path, leaf in flatten(variables['params']).items()})
  for row, task in enumerate((1, 0, 1)):
    alone, _ = forward(single, {'params': own(task)}, batch)
    np.testing.assert_allclose(mixed[row], alone[row], rtol=1e-5, atol=1e-6)


def test_bfloat16_is_near_and_logits_stay_float32():
  model = Roberta(CONFIG)
  half = dataclasses.replace(model, compute=Compute(dtype='bfloat16'))
  variables, batch = variables_of(model), make_batch()
  first, second = (forward(m, variables, batch)[0] for m in (model, half))
  assert second.dtype == jnp.float32
  np.testing.assert_allclose(first, second, atol=0.1)
  assert np.abs(first - second).max() > 1e-5


def test_positions_follow_the_family():
  def ids(config, tokens, prompt_mask=None):
    model = Roberta(config, Plan((Rule('prompt', 'encoder/embed', Prompt(3)),))
                    if prompt_mask is not None else Plan())
    variables = variables_of(model)
    table = np.zeros((config.positions, config.embed), np.float32)
    table[:, 0] = np.arange(config.positions)
    params = flatten(variables['params']) | {'encoder/positions/embedding': table}
    for path in ('shared/embedding', 'encoder/token_types/embedding', 'encoder/embed/prompt/table'):
      if path in params:
        params[path] = 0 * params[path]
    show = dataclasses.replace(model, plan=Plan((*model.plan.rules,
                                                 Rule('see', 'encoder/embed_norm', tiny.Affine()))))
    constants = variables['constants']
    if prompt_mask is not None:
      constants = {'encoder': {'embed': {'prompt': {'mask': np.array(prompt_mask, np.float32)}}}}
    batch = {'inputs': np.array([tokens]), 'inputs_mask': np.ones((1, len(tokens)), np.float32)}
    _, aux = forward(show, {'params': unflatten(params), 'constants': constants}, batch)
    return [int(x) for x in aux['encoder/embed_norm/see/seen'][0, :, 0]]

  assert ids(CONFIG, [0, 5, 2, 1, 1]) == [2, 3, 4, 1, 1]
  assert ids(CONFIG, [0, 1, 5, 2]) == [2, 1, 3, 4]
  assert ids(CONFIG, [0, 5, 2, 1], [0, 1, 1]) == [1, 2, 3, 4, 5, 6, 1]
  assert ids(BERT, [4, 5, 0, 0]) == [0, 1, 2, 3]
  assert ids(BERT, [4, 5], [0, 1, 1])[1:] == [0, 1, 2, 3]


def test_an_input_longer_than_the_positions_is_told():
  assert CONFIG.max_length == 14 and BERT.max_length == 16
  with pytest.raises(UserError, match='an input has 15 positions, prompt included, but the'):
    boxed = make_batch(length=15)
    jax.eval_shape(lambda: Roberta(CONFIG).init(KEY, boxed['inputs'], boxed['inputs_mask']))


def layer_norm(x, scale, bias, epsilon):
  mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + epsilon) * scale + bias


def test_the_post_norm_adapter_uses_the_norm_twice():
  model = planned(('probe', 'encoder/mlp_residual', tiny.Affine()),
                  ('adapter', 'encoder/mlp_norm', PostNormAdapter(BOTTLENECK)),
                  ('after', 'encoder/self_attention/q', tiny.Affine()))
  variables, batch = variables_of(model), make_batch()
  _, aux = forward(model, variables, batch)
  f = np.asarray(aux['encoder/mlp_residual/probe/seen'][0])
  x2 = np.asarray(aux['encoder/self_attention/q/after/seen'][1])
  # The residual stream is the sum of the site without f; a plain norm gives the sum.
  own = variables['params']['encoder']['layers']['mlp_norm']
  scale, bias = own['scale'][0], own['bias'][0]
  shown = planned(('probe', 'encoder/mlp_norm', tiny.Affine()))
  total = np.asarray(forward(shown, variables, batch)[1]['encoder/mlp_norm/probe/seen'][0])
  h = layer_norm(total, scale, bias, CONFIG.norm_epsilon)
  adapter = {path: leaf[0] for path, leaf in flatten(own['adapter']).items()}
  hidden = np.maximum(h @ adapter['down/kernel'] + adapter['down/bias'], 0)
  g = f + hidden @ adapter['up/kernel'] + adapter['up/bias']
  expected = layer_norm(g + total - f, scale, bias, CONFIG.norm_epsilon)
  np.testing.assert_allclose(x2, expected, rtol=1e-4, atol=1e-5)


def test_the_post_norm_adapter_needs_a_norm_behind_a_sub_layer():
  rule = Rule('adapter', 'encoder/mlp_norm', PostNormAdapter(BOTTLENECK))
  with pytest.raises(UserError, match="'encoder/mlp_norm' is no norm behind a sub-layer"):
    boxed_shapes(T5(tiny.CONFIG, Plan((rule,))))


def test_an_adapter_reads_what_the_sub_layer_adds():
  model = planned(('adapter', 'encoder/mlp_residual', Adapter(BOTTLENECK, 'sublayer')))
  variables = variables_of(model)
  flat = flatten(variables['params'])
  still = {path: 0 * leaf if '/up/' in path else leaf for path, leaf in flat.items()}
  plain = forward(Roberta(CONFIG), variables, make_batch())[0]
  np.testing.assert_allclose(forward(model, {'params': unflatten(still)}, make_batch())[0], plain,
                             rtol=1e-6)
  assert np.abs(forward(model, variables, make_batch())[0] - plain).max() > 1e-3


@pytest.mark.parametrize('labels', [1, 3])
def test_the_loss_is_the_mean_over_real_rows(labels):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(4, labels)).astype(np.float32)
  targets = rng.normal(size=4).astype(np.float32) if labels == 1 else np.array([0, 2, 1, 1])
  rows = np.array([1, 1, 0, 1], np.float32)
  total, weight = text_loss(logits, targets, rows)
  if labels == 1:
    each = (logits[:, 0] - targets) ** 2
  else:
    each = -np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[range(4), targets]
  np.testing.assert_allclose(total / weight, each[[0, 1, 3]].mean(), rtol=1e-6)


def test_token_types_are_added():
  model = Roberta(BERT)
  variables, batch = variables_of(model), make_batch(BERT)
  zeros = forward(model, variables, batch | {'token_types': 0 * batch['inputs']})[0]
  np.testing.assert_array_equal(zeros, forward(model, variables, batch)[0])
  ones = forward(model, variables, batch | {'token_types': 0 * batch['inputs'] + 1})[0]
  assert np.abs(zeros - ones).max() > 1e-3


def test_without_a_head_the_states_come_out():
  model = Roberta(CONFIG, labels=0)
  variables, batch = variables_of(model), make_batch()
  states, _ = forward(model, variables, batch)
  assert states.shape == (3, 6, 8) and 'head' not in variables['params']


def test_every_place_draws_its_own_dropout():
  config = dataclasses.replace(CONFIG, embed=32, dropout=0.5)
  sites = ('encoder/self_attention_residual', 'encoder/mlp_residual', 'head/dense', 'head/out')
  model = planned(*(('probe', site, tiny.Affine()) for site in sites), config=config)
  variables, batch = variables_of(model), make_batch(config)
  _, aux = forward(model, variables, batch, KEY)
  seen = [np.asarray(aux[f'{site}/probe/seen']) for site in sites]
  dropped = [seen[0][0] == 0, seen[0][1] == 0, seen[1][0] == 0, seen[1][1] == 0]
  for i, one in enumerate(dropped):
    assert 0.4 < one.mean() < 0.6
    for other in dropped[:i]:
      assert 0.4 < (one != other).mean() < 0.6
  heads = [seen[2][:, 0] == 0, seen[3][:, 0] == 0]
  assert all(0.3 < one.mean() < 0.7 for one in heads)
  assert 0.3 < (heads[0] != heads[1]).mean() < 0.7
  _, aux = forward(model, variables, batch)
  assert all((np.asarray(aux[f'{site}/probe/seen']) != 0).all() for site in sites)
