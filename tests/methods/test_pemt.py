"""Laws of PEMT's two stages: what is tuned, what the loss depends on, how large things are."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.methods import baselines, pemt
from pemt_jax.methods.base import make_loss
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import t5_config
from pemt_jax.training.rules import assign_groups
from pemt_jax.trees import flatten, merge
from tests import tiny

KEY = jax.random.key(9)
STAGE2 = tiny.stage2()


@functools.partial(jax.jit, static_argnums=0)
def _loss(method, variables, batch, key):
  model = tiny.model_of(method)
  return make_loss(model, method)({}, variables['params'], variables['constants'], batch, key)


def loss_of(method, variables, batch, key=None):
  """(loss, metrics) without a gradient."""
  return _loss(method, variables, batch, key)


def test_filler_rows_change_neither_loss_nor_metrics():
  method = tiny.stage2(mask_padding=False)
  variables, batch = tiny.variables_of(tiny.model_of(method)), tiny.make_batch()
  loss, metrics = loss_of(method, variables, batch)
  filled, filled_metrics = loss_of(method, variables, tiny.pad_batch(batch, rows=2))
  np.testing.assert_allclose(loss, filled, rtol=1e-6)
  assert {'moe_weight_0', 'moe_weight_1', 'gate_entropy_nats', 'sparsity_loss'} < set(metrics)
  tiny.assert_trees_close(metrics, filled_metrics, rtol=1e-5)


def test_only_the_masked_loss_is_independent_of_the_bucket():
  for masked in (True, False):
    method = tiny.stage2(mask_padding=masked)
    variables, batch = tiny.variables_of(tiny.model_of(method)), tiny.make_batch()
    losses = [loss_of(method, variables, each)[0] for each in (
        batch, tiny.pad_batch(batch, length=3, target_length=2))]
    if masked:
      np.testing.assert_allclose(*losses, rtol=1e-5)
    else:
      assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize('masked', [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize('key', [pytest.param(None, marks=pytest.mark.slow), KEY],
                         ids=['deterministic', 'dropout'])
def test_a_prompt_behind_padding_is_the_prompt(masked, key):
  short = tiny.stage2(mask_padding=masked)
  long = tiny.stage2(tiny.PROMPT + 2, mask_padding=masked)
  variables, batch = tiny.variables_of(tiny.model_of(short)), tiny.make_batch()
  loss, metrics = loss_of(short, variables, batch, key)
  padded, padded_metrics = loss_of(long, tiny.left_padded(variables, 2), batch, key)
  np.testing.assert_allclose(loss, padded, rtol=1e-5)
  tiny.assert_trees_close(metrics, padded_metrics, rtol=1e-4)


def test_replicas_in_one_program_equal_separate_runs():
  # The first replica has a shorter prompt, the others differ in parameters, rows and keys.
  long = tiny.PROMPT + 2
  method = tiny.stage2(long)
  model, short_model = tiny.model_of(method), tiny.model_of(STAGE2)
  backbone = tiny.variables_of(model, 0)
  frozen, _ = tiny.split(method, backbone)
  alone = [tiny.left_padded(tiny.variables_of(short_model, 1), 2), tiny.variables_of(model, 2)]
  tuned = [tiny.split(method, each)[1] for each in alone]
  constants = [each['constants'] for each in alone]
  batches = [tiny.make_batch(seed=seed) for seed in (1, 2)]
  keys = jax.random.split(KEY, 2)
  mapped = jax.jit(jax.vmap(make_loss(model, method), in_axes=(0, None, 0, 0, 0)))(
      tiny.stack(tuned), frozen, tiny.stack(constants), tiny.stack(batches), keys)
  for i in range(2):
    alone = {'params': merge(frozen, tuned[i]), 'constants': constants[i]}
    loss, metrics = loss_of(method, alone, batches[i], keys[i])
    mapped_loss, mapped_metrics = jax.tree.map(lambda leaf, i=i: leaf[i], mapped)
    np.testing.assert_allclose(mapped_loss, loss, rtol=1e-5)
    tiny.assert_trees_close(mapped_metrics, metrics)


def test_the_loss_is_cross_entropy_plus_the_weighted_mean_over_layers():
  variables, batch = tiny.variables_of(tiny.model_of(STAGE2)), tiny.make_batch()
  loss, metrics = loss_of(STAGE2, variables, batch)
  _, aux = tiny.forward(tiny.model_of(STAGE2), variables, batch)
  layers = np.concatenate([aux[f'{stack}/mlp/wo/pemt/misalignment']
                           for stack in ('encoder', 'decoder')])
  gates = np.concatenate([aux[f'{stack}/mlp/wo/pemt/gate'] for stack in ('encoder', 'decoder')])
  assert layers.shape == (4,)
  np.testing.assert_allclose(metrics['sparsity_loss'], layers.mean(), rtol=1e-5)
  np.testing.assert_allclose(loss, metrics['cross_entropy_nats'] + 0.1 * layers.mean(), rtol=1e-5)
  for i in range(2):
    np.testing.assert_allclose(metrics[f'moe_weight_{i}'], gates[..., i].mean(), rtol=1e-5)
  entropy = -(gates * np.log(gates)).sum(-1).mean()
  np.testing.assert_allclose(metrics['gate_entropy_nats'], entropy, rtol=1e-5)


def groups_of(method, config=tiny.CONFIG):
  """{group: paths} of a method; no memory is taken."""
  shapes = tiny.shapes(T5(config, method.plan))['params']
  groups = assign_groups(dict(shapes), method.tuned)
  found = {}
  for path, group in groups.items():
    found.setdefault(group, set()).add(path)
  return found, shapes


def test_stage_2_tunes_prompt_gates_adapters_and_all_norms_of_the_backbone():
  found, shapes = groups_of(tiny.stage2(adapter_pre_norm=True, tune_adapter_norms=False))
  assert set(found) == {'prompt', 'gate', 'adapter', 'norm', 'frozen'}
  assert found['prompt'] == {'encoder/embed/prompt/table'}
  assert found['gate'] == {f'{s}/layers/mlp/wo/pemt/gate/kernel' for s in ('encoder', 'decoder')}
  assert found['adapter'] == {
      f'{s}/layers/mlp/wo/pemt/adapter/{part}/{kind}' for s in ('encoder', 'decoder')
      for part in ('down', 'up') for kind in ('kernel', 'bias')}
  assert found['norm'] == {path for path in shapes
                           if path.endswith('_norm/scale') and '/adapter/' not in path}
  assert {path for path in found['frozen'] if '/adapter/' in path} == {
      f'{s}/layers/mlp/wo/pemt/adapter/pre_norm/{kind}' for s in ('encoder', 'decoder')
      for kind in ('scale', 'bias')}


ABLATIONS = {
    'no prompt': ({'prompt': False}, {'gate', 'adapter', 'norm'}),
    'no norms': ({'tune_norms': False}, {'prompt', 'gate', 'adapter'}),
    'router': ({'gate': 'router'}, {'prompt', 'gate', 'adapter', 'norm'}),
    'no target adapter': ({'target_adapter': False}, {'prompt', 'gate', 'norm'}),
    'uniform gate': ({'tune_gate': False}, {'prompt', 'adapter', 'norm'}),
    'encoder only': ({'decoder_layers': ()}, {'prompt', 'gate', 'adapter', 'norm'}),
    'trained adapter norms': ({'adapter_post_norm': True}, {'prompt', 'gate', 'adapter', 'norm'}),
}


@pytest.mark.parametrize('name', ABLATIONS)
@pytest.mark.parametrize('count', [1, 2])
def test_every_ablation_is_a_plan_with_its_own_tuned_groups(name, count):
  options, expected = ABLATIONS[name]
  bank = pemt.BankShape('lora', count, 3, prompt_lengths=tiny.SOURCE_PROMPTS[:count])
  found, shapes = groups_of(tiny.stage2(bank=bank, **options))
  assert set(found) - {'frozen'} == expected - ({'gate'} if count == 1 else set())
  adapters = {path for path in shapes if '/adapter/' in path}
  assert bool(adapters) == (name != 'no target adapter')
  if name == 'encoder only':
    assert not [path for path in adapters if path.startswith('decoder')]
  if name == 'trained adapter norms':
    assert any('post_norm' in path for path in found['adapter'])


def test_without_correlation_there_are_no_source_prompts():
  _, shapes = groups_of(tiny.stage2(correlation=False))
  assert 'encoder/embed/prompt/table' in shapes
  assert 'encoder/embed/prompt/sources' not in shapes


@pytest.mark.parametrize('make, sentence', [
    (lambda: pemt.Stage1Options(expert='prefix'),
     "method.expert is 'prefix'; choose one of lora, adapter."),
    (lambda: pemt.Stage1Options(up_init='normal'),
     "method.up_init is 'normal'; choose one of uniform, zero."),
    (lambda: pemt.Stage2Options(activation='tanh'),
     "method.activation is 'tanh'; choose one of gelu_new, gelu, relu, swish."),
    (lambda: pemt.Stage2Options(pool_without_prompt='last'),
     "method.pool_without_prompt is 'last'; choose one of first, all."),
    (lambda: baselines.AdapterOptions(activation='tanh'),
     "method.activation is 'tanh'; choose one of gelu_new, gelu, relu, swish."),
])
def test_an_unknown_word_among_the_options_is_an_error(make, sentence):
  with pytest.raises(UserError) as error:
    make()
  assert str(error.value) == sentence


BASE = tiny.replace(t5_config('t5-base'), vocab_size=32100)
SIX = pemt.BankShape('lora', 6, 64, prompt_lengths=(24, 22, 18, 18, 26, 36))
LENGTH = 20


def counts_of(method):
  found, shapes = groups_of(method, BASE)
  counts = {group: sum(math.prod(shapes[path]) for path in paths) for group, paths in found.items()}
  return counts, {path: math.prod(shape) for path, shape in shapes.items()}


def test_t5_base_has_the_published_number_of_parameters():
  assert sum(math.prod(shape) for shape in tiny.shapes(T5(BASE))['params'].values()) == 222_882_048


@pytest.mark.parametrize('options, total', [
    (pemt.Stage1Options(), 5_898_240), (pemt.Stage1Options(expert='adapter'), 5_918_208)])
def test_stage_1_tunes_the_published_number_of_parameters(options, total):
  counts, _ = counts_of(pemt.stage1(options, BASE, LENGTH))
  assert counts['expert'] == total
  assert counts['prompt'] == 768 * LENGTH


def test_stage_2_tunes_the_published_number_of_parameters():
  counts, sizes = counts_of(pemt.stage2(pemt.Stage2Options(), BASE, LENGTH, SIX))
  assert counts['adapter'] == 1_789_056
  assert counts['gate'] == 276_480
  assert counts['norm'] == 47_616
  assert sum(counts.values()) - counts['frozen'] == 2_113_152 + 768 * LENGTH
  assert sum(size for path, size in sizes.items() if '/bank/' in path) == 35_389_440


def test_frozen_leaves_cost_no_gradient():
  # XLA counts the body of a loop once, so layers are unrolled; 1 + 2 forward passes are a full
  # gradient, 1 + 1 the gradient of small experts.
  config = tiny.replace(tiny.CONFIG, embed=32, mlp=128, kv=16, dropout=0.0)
  method = pemt.stage2(pemt.Stage2Options(prompt=False), config, 0, tiny.LORA_BANK)
  model = tiny.model_of(method, config, tiny.UNROLLED)
  variables, batch = tiny.variables_of(model), tiny.make_batch()
  frozen, tuned = tiny.split(method, variables)
  loss = make_loss(model, method)

  def flops(function, *trees):
    lowered = jax.jit(function).lower(*trees, variables['constants'], batch, None)
    return lowered.cost_analysis()['flops']

  forward = flops(loss, tuned, frozen)
  small = flops(jax.value_and_grad(loss, has_aux=True), tuned, frozen)
  full = flops(jax.value_and_grad(loss, has_aux=True), variables['params'], {})
  assert 1.5 < small / forward < 2.3, small / forward
  assert 2.6 < full / forward < 3.3, full / forward
  grads = jax.eval_shape(jax.grad(loss, has_aux=True), tuned, frozen, variables['constants'],
                         batch, None)[0]
  assert flatten(grads).keys() == flatten(tuned).keys()
  assert not flatten(tuned).keys() & flatten(frozen).keys()


def test_constraints_are_in_the_lowered_program_of_a_mesh_only():
  from pemt_jax.sharding.mesh import make_mesh, use_mesh
  model = tiny.model_of(STAGE2)
  variables, batch = tiny.variables_of(model), tiny.make_batch()
  inputs = (batch['inputs'], batch['inputs_mask'], batch['targets'], batch['targets_mask'])
  lower = lambda: jax.jit(lambda v, *a: model.apply(v, *a)[0]).lower(variables, *inputs).as_text()
  with use_mesh(make_mesh(devices=jax.devices()[:1])):
    inside = lower()
  assert inside.count('sharding_constraint') >= 4
  assert lower().count('sharding_constraint') == 0
  assert jnp.isfinite(tiny.forward(model, variables, batch)[0]).all()
