"""Laws of the T5 backbone and of a planned backbone; numbers from Hugging Face's."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from pemt_jax.interop import huggingface
from pemt_jax.methods import pemt
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.models.layers import Compute
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.stack import REMAT
from pemt_jax.models.t5 import T5
from pemt_jax.training.flops import count_flops
from pemt_jax.trees import flatten
from tests import tiny

KEY = jax.random.key(3)
# Families of published T5 models at a tiny size; joined heads are narrower or wider than d_model.
FAMILIES = {
    'v1.0': {'feed_forward_proj': 'relu', 'tie_word_embeddings': True},
    'v1.1': {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False, 'd_kv': 5},
    'lm-adapt': {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False, 'num_layers': 3,
                 'num_decoder_layers': 1},
    'flan': {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False, 'num_heads': 3,
             'relative_attention_num_buckets': 6, 'relative_attention_max_distance': 20},
    'gated, tied': {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': True},
}


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_equal_huggingface(family, tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  options = {'d_kv': 4, 'num_heads': 4, 'num_layers': 2, **FAMILIES[family]}
  theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(
      vocab_size=48, d_model=16, d_ff=24, decoder_start_token_id=0, **options)).eval()
  torch.manual_seed(7)
  for weight in theirs.parameters():
    weight.data = torch.randn_like(weight) * (1.0 if weight.ndim == 1 else 0.4)
  theirs.save_pretrained(tmp_path)
  batch = tiny.make_batch(4, 24, 6, vocab=48)
  tensors = {name: torch.from_numpy(leaf).long() for name, leaf in batch.items()}
  with torch.no_grad():
    expected = theirs(
        input_ids=tensors['inputs'], attention_mask=tensors['inputs_mask'],
        decoder_input_ids=torch.nn.functional.pad(tensors['targets'][:, :-1], (1, 0))).logits
  config, params = huggingface.load_t5(tmp_path)
  logits, aux = tiny.forward(T5(config), {'params': params}, batch)
  assert not aux
  assert expected.std() > 0.1
  np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('compute', [
    tiny.UNROLLED, pytest.param(Compute(remat='full'), marks=pytest.mark.slow)],
    ids=['unrolled', 'remat'])
def test_unrolled_and_rematerialised_layers_give_the_same_numbers(compute):
  method = tiny.stage2()
  scanned = tiny.model_of(method)
  variables, batch = tiny.variables_of(scanned), tiny.make_batch()
  other = tiny.model_of(method, compute=compute)
  assert tiny.shapes(other) == tiny.shapes(scanned)
  loss, metrics, grads = tiny.loss_and_gradients(scanned, method, variables, batch, KEY)
  loss2, metrics2, grads2 = tiny.loss_and_gradients(other, method, variables, batch, KEY)
  np.testing.assert_allclose(loss, loss2, rtol=1e-6)
  tiny.assert_trees_close(metrics, metrics2)
  tiny.assert_trees_close(grads, grads2, rtol=1e-4)


def _sum_of_logits(model, batch, params):
  return tiny.forward(model, {'params': params}, batch)[0].sum()


def test_what_the_backward_pass_recomputes():
  """Attention has the products without weights; nothing is recomputed where all products stay."""
  params = tiny.variables_of(T5(tiny.CONFIG))['params']
  batch, flops = tiny.make_batch(), {}
  for remat in REMAT:
    model = T5(tiny.CONFIG, compute=Compute(remat=remat))
    total = functools.partial(_sum_of_logits, model, batch)
    flops[remat] = count_flops(jax.grad(total), params)
  assert flops['none'] == flops['dots'] < flops['projections'] < flops['full']
  assert flops['full'] < flops['none'] + count_flops(total, params)


def test_every_key_gives_other_logits():
  model = tiny.model_of(tiny.stage2())
  variables, batch = tiny.variables_of(model), tiny.make_batch()
  runs = [tiny.forward(model, variables, batch, key)[0] for key in (None, KEY, jax.random.key(4))]
  for first, second in ((0, 1), (0, 2), (1, 2)):
    assert np.abs(runs[first] - runs[second]).max() > 0.1


def test_layers_and_stacks_draw_their_own_dropout():
  config = tiny.replace(tiny.CONFIG, gated=True, activation='gelu_tanh', mlp=64)
  model = T5(config, Plan((Rule('probe', '*/mlp/wo', tiny.Affine()),)))
  batch = tiny.make_batch(length=6, target_length=6)
  _, aux = tiny.forward(model, tiny.variables_of(model), batch, KEY)
  dropped = np.concatenate([aux[f'{stack}/mlp/wo/probe/seen'] == 0
                            for stack in ('encoder', 'decoder')])
  for i, one in enumerate(dropped):
    assert abs(one.mean() - 0.1) < 0.04  # no zeros but those of dropout
    for other in dropped[:i]:
      assert abs((one & other).mean() - 0.01) < 0.015


@pytest.mark.parametrize('form', [
    'segmented', *(pytest.param(form, marks=pytest.mark.slow)
                   for form in ('lora', 'adapter', 'plain'))])
def test_cached_decoding_equals_decoding_of_whole_targets(form):
  method = {'lora': tiny.stage2(), 'adapter': tiny.stage2(bank=tiny.ADAPTER_BANK),
            'segmented': tiny.stage2(decoder_layers=(1,))}.get(form)
  model = tiny.model_of(method) if method else T5(tiny.CONFIG)
  variables, batch = tiny.variables_of(model), tiny.make_batch()
  other = np.random.default_rng(1).permutation(batch['targets'], axis=1)
  whole = [tiny.forward(model, variables, {**batch, 'targets': targets})[0]
           for targets in (batch['targets'], other)]
  cached = tiny.cached_logits(model, variables, batch, np.stack([batch['targets'], other], axis=1))
  np.testing.assert_allclose(cached, np.stack(whole, axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('key', [pytest.param(None, marks=pytest.mark.slow), KEY],
                         ids=['deterministic', 'dropout'])
def test_a_row_alone_in_a_longer_bucket_gives_the_same_logits(key):
  model = tiny.model_of(tiny.stage2())
  variables, batch = tiny.variables_of(model), tiny.make_batch()
  whole, aux = tiny.forward(model, variables, batch, key)
  first = {name: leaf[:1] for name, leaf in batch.items()}
  alone, alone_aux = tiny.forward(
      model, variables, tiny.pad_batch(first, length=3, target_length=2), key)
  np.testing.assert_allclose(alone[0, :whole.shape[1]], whole[0], rtol=1e-4, atol=1e-5)
  for name in aux:
    if name.endswith('gate'):
      np.testing.assert_allclose(alone_aux[name][:, 0], aux[name][:, 0], rtol=1e-5)


def test_the_initial_backbone_does_not_depend_on_the_plan():
  plain = T5(tiny.CONFIG)
  planned = T5(tiny.CONFIG, Plan(tiny.stage2().plan.rules))

  @functools.partial(jax.jit, static_argnums=0)
  def init(model):
    batch = tiny.make_batch(1, 2, 2)
    return nn.meta.unbox(model.init(jax.random.key(0), batch['inputs'], batch['inputs_mask'],
                                    batch['targets'], batch['targets_mask']))['params']

  first, second = flatten(init(plain)), flatten(init(planned))
  assert set(first) < set(second)
  for path, leaf in first.items():
    np.testing.assert_array_equal(leaf, second[path], err_msg=path)
  kernel = first['encoder/layers/mlp/wi/kernel']
  assert np.abs(kernel[0] - kernel[1]).min() > 0  # layers are drawn separately
  assert 0.5 < kernel.std() * tiny.CONFIG.embed**0.5 < 1.5


METHODS = {
    'stage 1, LoRA': pemt.stage1(pemt.Stage1Options(rank=3), tiny.CONFIG, 4),
    'stage 1, adapter': pemt.stage1(pemt.Stage1Options(expert='adapter'), tiny.CONFIG, 4),
    'stage 2, LoRA': tiny.stage2(adapter_pre_norm=True, adapter_post_norm=True),
    'stage 2, adapter': tiny.stage2(bank=tiny.ADAPTER_BANK),
    'stage 2, some layers': tiny.stage2(encoder_layers=(0,), decoder_layers=()),
}


@pytest.mark.parametrize('gated', [False, True], ids=['v1.0', 'v1.1'])
@pytest.mark.parametrize('name', METHODS)
def test_every_parameter_has_a_logical_axis_per_dimension(name, gated):
  config = tiny.replace(tiny.CONFIG, gated=gated, tied_head=not gated)
  boxed = flatten(boxed_shapes(T5(config, METHODS[name].plan))['params'])
  for path, leaf in boxed.items():
    assert isinstance(leaf, nn.LogicallyPartitioned), path
    assert len(leaf.names) == len(leaf.value.shape) and None not in leaf.names, path
    assert (leaf.names[0] == 'layer') == ('/layers' in path), path
