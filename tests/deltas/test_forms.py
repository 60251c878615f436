"""Laws of (IA)^3 and of the experimental low-rank and generated forms, and of folding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.deltas.fold import fold
from pemt_jax.deltas.ia3 import IA3
from pemt_jax.deltas.intrinsic import IntrinsicAdapter, IntrinsicLoRA
from pemt_jax.deltas.lora import LoRA
from pemt_jax.deltas.low_rank_forms import LowRankBias, TanhLoRA
from pemt_jax.deltas.prefix import KeyValuePrefix, Prefix
from pemt_jax.errors import UserError
from pemt_jax.experts.task_bank import TaskBank
from pemt_jax.methods import zoo
from pemt_jax.models.segments import join
from pemt_jax.models.sites import Plan, Rule, Site, SiteContext
from pemt_jax.models.t5 import T5
from tests import tiny

IN, OUT, RANK, Z, COUNT = 6, 4, 3, 5, 2
SITE = Site('encoder/self_attention/q', IN, OUT, 'embed', 'joined_kv', jnp.float32)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 2, IN)).astype(np.float32)
W = RNG.normal(size=(IN, OUT)).astype(np.float32)
IDS = np.array([1, 0, 1])


def silu(x):
  return x / (1 + np.exp(-x))


def generated(v, z, name, *shape):
  return (z @ v[f'hyper_{name}'] + v.get(f'bias_{name}', 0)).reshape(shape)


def intrinsic_lora(x, v, z):
  return x @ W + 0.5 * x @ generated(v, z, 'down', IN, RANK) @ generated(v, z, 'up', RANK, OUT)


def intrinsic_adapter(x, v, z):
  y = x @ W
  return y + silu(y @ generated(v, z, 'down', OUT, RANK)) @ generated(v, z, 'up', RANK, OUT)


# name -> (delta, the same in NumPy: (x, values, z) -> y)
FORMS = {
    'lora with row biases': (
        LoRA(RANK, 0.5, row_biases=True),
        lambda x, v, z: x @ W + 0.5 * x @ (v['down'] + v['down_bias']) @ (v['up'] + v['up_bias'])),
    'tanh lora': (
        TanhLoRA(RANK, 0.5),
        lambda x, v, z: x @ W + 0.5 * np.tanh(x @ v['down'] @ v['up']) @ v['mix']),
    'bias': (LowRankBias(RANK, 0.5), lambda x, v, z: x @ W + 0.5 * v['vector'] @ v['up']),
    'tanh bias': (LowRankBias(RANK, 0.5, tanh=True),
                  lambda x, v, z: x @ W + 0.5 * np.tanh(v['vector'] @ v['up']) @ v['mix']),
    'ia3 output': (IA3(), lambda x, v, z: x @ W * v['scale']),
    'ia3 input': (IA3('input'), lambda x, v, z: (x * v['scale']) @ W),
    'intrinsic lora': (IntrinsicLoRA(Z, RANK, scaling=0.5), intrinsic_lora),
    'intrinsic lora with biases': (IntrinsicLoRA(Z, RANK, True, scaling=0.5), intrinsic_lora),
    'intrinsic adapter': (IntrinsicAdapter(Z, RANK), intrinsic_adapter),
    'intrinsic adapter with biases': (IntrinsicAdapter(Z, RANK, True), intrinsic_adapter),
}


def random_values(weights, seed=0):
  return {name: tiny.random_leaf(name, weight.shape, seed) for name, weight in weights.items()}


def context_of(model, task_ids=None):
  return SiteContext(jnp.ones((3, 2)), jnp.ones(3), task_ids=task_ids, model=model)


@pytest.mark.parametrize('name', FORMS)
def test_the_form_is_its_formula_for_one_expert_and_for_rows_of_many(name):
  delta, formula = FORMS[name]
  bank = TaskBank(delta, COUNT)
  values, model = random_values(bank.weights(SITE)), random_values(bank.model_weights({}))
  expected = [formula(X, {k: v[e] for k, v in values.items()}, model['z'][e] if model else None)
              for e in range(COUNT)]
  base = lambda x: x @ W
  for expert in range(COUNT):
    pick = lambda tree, expert=expert: jax.tree.map(lambda a: a[expert], tree)
    y, aux = delta.act(pick(values), base, X, context_of(pick(model)), SITE)
    np.testing.assert_allclose(y, expected[expert], rtol=1e-4, atol=1e-5)
    assert not aux
  y, _ = bank.act(values, base, X, context_of(model, IDS), SITE)
  np.testing.assert_allclose(y, np.stack([expected[e][row] for row, e in enumerate(IDS)]),
                             rtol=1e-4, atol=1e-5)


def initial(delta, site=SITE):
  return {name: np.asarray(weight.init(jax.random.key(1), weight.shape))
          for name, weight in (delta.weights(site) | delta.model_weights({})).items()}


def test_first_values_are_those_of_the_published_forms():
  wide = Site('encoder/self_attention/q', 400, 300, 'embed', 'joined_kv', jnp.float32)
  near = lambda array, std: abs(array.std() / std - 1) < 0.05
  tanh, bias = initial(TanhLoRA(100), wide), initial(LowRankBias(100), wide)
  assert 0.95 * 400**-0.5 < np.abs(tanh['down']).max() <= 400**-0.5
  assert not tanh['up'].any() and near(tanh['mix'], 0.02)
  assert not bias['vector'].any() and near(bias['up'], 0.02)
  both = initial(LowRankBias(2000, tanh=True), wide)
  assert all(near(both[name], 0.02) for name in ('vector', 'up', 'mix'))
  made = initial(IntrinsicLoRA(2000, 2, True), Site('', 30, 20, '', '', jnp.float32))
  assert all(near(made[name], 0.02) for name in ('z', 'hyper_down', 'hyper_up'))
  assert not made['bias_down'].any() and not made['bias_up'].any()
  assert (initial(IA3())['scale'] == 1).all()


@pytest.mark.parametrize('changes, bound', [
    ({}, 25**-0.5), ({'lora_uniform': 2.0}, (6 / 75)**0.5), ({'down_init': 'in'}, 8**-0.5)])
def test_lora_of_the_ensembling_program_starts_from_its_bound(changes, bound):
  options = tiny.replace(zoo.ZOO['lora_ensembling'].default_options(), rank=25, **changes)
  method = zoo.make('lora_ensembling', options, tiny.CONFIG, 0)
  assert [rule.site for rule in method.plan.rules] == ['*_attention/q', '*_attention/v']
  values = initial(method.plan.rules[0].delta, Site('', 8, 8, '', '', jnp.float32))
  assert 0.95 * bound < np.abs(values['down']).max() <= bound
  assert not values['up'].any()


def test_a_second_stage_tunes_the_vector_alone():
  for name in ('lora_br', 'bias_mlp'):
    options = tiny.replace(zoo.ZOO[name].default_options(), tuned='vector')
    method = zoo.make(name, options, tiny.CONFIG, 0)
    _, tuned = tiny.split(method, tiny.variables_of(tiny.model_of(method)))
    assert {path.rsplit('/', 1)[1] for path in tiny.flatten(tuned)} == {'vector'}


@functools.cache
def folding_plan(layers):
  rules = (Rule('lora', '*_attention/[kq]', LoRA(2, 0.5)), Rule('ia3', '*_attention/k', IA3()),
           Rule('scale', '*/mlp/wo', IA3('input')),
           Rule('more', '*/mlp/wo', LoRA(2, 0.5, row_biases=True), layers))
  return Plan(rules)


@pytest.mark.parametrize('layers', [
    (('encoder', 1), ('decoder', 0)), pytest.param(None, marks=pytest.mark.slow)])
def test_a_folded_backbone_gives_the_logits_of_the_deltas(layers):
  """Outer deltas read what inner ones leave: the order of the rules is kept."""
  model, batch = T5(tiny.CONFIG, folding_plan(layers)), tiny.make_batch()
  variables = tiny.variables_of(model)
  params = join(fold(variables['params'], model.plan))
  plain = T5(tiny.CONFIG)
  assert tiny.flatten(params).keys() == tiny.shapes(plain)['params'].keys()
  logits, _ = tiny.forward(model, variables, batch)
  folded, _ = tiny.forward(plain, {'params': params}, batch)
  np.testing.assert_allclose(folded, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('rule', [
    Rule('prefix', '*/self_attention', KeyValuePrefix(2, 2)),
    Rule('prefix', '*/self_attention', Prefix(2, 3)),
    Rule('tanh', '*_attention/q', TanhLoRA(2)),
    Rule('bias', '*_attention/q', LowRankBias(2)),
    Rule('norm', '*/mlp_norm', IA3()),
], ids=lambda rule: f'{rule.name} {type(rule.delta).__name__}')
def test_what_no_kernel_can_replace_is_not_folded(rule):
  model = T5(tiny.CONFIG, Plan((rule,)))
  with pytest.raises(UserError, match='cannot be folded into the backbone'):
    fold(tiny.variables_of(model)['params'], model.plan)
