"""Laws of the source mixture: what gates read, what the sparsity loss averages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.deltas.adapter import Bottleneck
from pemt_jax.experts.bank import AdapterExperts, LoRAExperts
from pemt_jax.experts.mixture import SourceMixture, pool_prompt
from pemt_jax.models.sites import Site, SiteContext, StackShape
from tests import tiny

ROWS, LENGTH, MLP, EMBED, COUNT, RANK = 3, 6, 10, 8, 3, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, LENGTH, MLP)).astype(np.float32)
NORMED, BASE = RNG.normal(size=(2, ROWS, LENGTH, EMBED)).astype(np.float32)
MASK = (np.arange(LENGTH) < np.array([[6], [4], [3]])).astype(np.float32)
PROMPT_MASK = np.array([0, 1, 1], np.float32)


def act(config, mask=MASK, rows=np.ones(ROWS, np.float32), prompt_mask=PROMPT_MASK,
        stack='encoder', params=None, key=None):
  """(output, auxiliaries, parameters) of the mixture at one layer's `wo`."""
  site = Site(f'{stack}/mlp/wo', MLP, EMBED, 'mlp', 'embed', jnp.float32)
  context = SiteContext(mask, rows, prompt_mask=prompt_mask, sublayer_input=NORMED,
                        encoder_states=NORMED, key=key)
  prepared = config.stack_module(StackShape(stack, 1, EMBED, 2, 4, MLP, jnp.float32), 'pemt')
  if prepared is not None:
    context = context.replace(shared={'pemt': prepared.apply({}, context)[0]})
  module = config.module(site, 'pemt')
  call = (lambda x: BASE, X, context)
  if params is None:
    boxed = jax.eval_shape(lambda key: module.init(key, *call), jax.random.key(0))['params']
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: tiny.random_leaf(jax.tree_util.keystr(path), leaf.value.shape, 0),
        boxed, is_leaf=lambda leaf: hasattr(leaf, 'names'))
  y, aux = module.apply({'params': params}, *call)
  return y, aux, params


LORA = SourceMixture(LoRAExperts(RANK, 0.5), COUNT, Bottleneck(4))
ADAPTER = SourceMixture(AdapterExperts(RANK), COUNT, Bottleneck(4))


def softmax(z):
  weights = np.exp(z - z.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize('stack', ['encoder', 'decoder'])
@pytest.mark.parametrize('prompt, pool, rows', [
    (PROMPT_MASK, 'first', slice(1, 3)), (None, 'first', slice(0, 1)),
    (None, 'all', slice(0, LENGTH))], ids=['prompt', 'first', 'all'])
def test_gates_read_the_real_prompt_or_the_positions_of_the_rule(stack, prompt, pool, rows):
  config = SourceMixture(LoRAExperts(RANK), COUNT, None, 2.5, pool)
  _, aux, params = act(config, prompt_mask=prompt, stack=stack)
  states = X if stack == 'encoder' else NORMED
  expected = softmax(states[:, rows].mean(axis=1) @ params['gate']['kernel'] / 2.5)
  assert set(aux) == {'gate'}
  assert np.ptp(expected) > 0.05
  np.testing.assert_allclose(aux['gate'], expected, rtol=1e-5)


@pytest.mark.parametrize('stack', ['encoder', 'decoder'])
def test_a_router_may_take_the_place_of_the_linear_gate(stack):
  config = SourceMixture(LoRAExperts(RANK), COUNT, None, 2.5, gate_hidden=5)
  _, aux, params = act(config, stack=stack)
  z = (X if stack == 'encoder' else NORMED)[:, 1:3].mean(axis=1)
  hidden, out = params['gate']['hidden'], params['gate']['out']
  inner = jax.nn.gelu(z @ hidden['kernel'] + hidden['bias'], approximate=False)
  logits = inner @ out['kernel'] + out['bias']
  np.testing.assert_allclose(aux['gate'], softmax(logits / 2.5), rtol=1e-5)
  _, hard, _ = act(tiny.replace(config, gate_mode='gumbel_softmax_st'), stack=stack, params=params)
  np.testing.assert_array_equal(hard['gate'], np.eye(COUNT)[logits.argmax(-1)])
  noisy = tiny.replace(config, gate_mode='gumbel_softmax')
  first, second = (act(noisy, stack=stack, params=params, key=jax.random.key(seed))[1]['gate']
                   for seed in range(2))
  assert not np.allclose(first, second)


def test_prompt_padding_is_not_pooled():
  x = np.arange(12.0, dtype=np.float32).reshape(1, 4, 3)
  np.testing.assert_allclose(pool_prompt(x, jnp.array([0.0, 0.0, 1.0]), 'first'), x[:, 2])
  np.testing.assert_allclose(pool_prompt(x, jnp.ones(2), 'all'), x[:, :2].mean(axis=1))


def expert_outputs(config, params):
  bank = params['bank']
  if isinstance(config.experts, LoRAExperts):
    return [config.experts.scaling * X @ bank['down'][i] @ bank['up'][i] for i in range(COUNT)]
  hidden = [jax.nn.gelu(X @ bank['down_kernel'][i] + bank['down_bias'][i]) for i in range(COUNT)]
  return [hidden[i] @ bank['up_kernel'][i] + bank['up_bias'][i] + NORMED for i in range(COUNT)]


@pytest.mark.parametrize('config', [LORA, ADAPTER], ids=['lora', 'adapter'])
@pytest.mark.parametrize('mask_padding', [False, True])
def test_output_and_sparsity_loss_follow_their_formulas(config, mask_padding):
  config = tiny.replace(config, mask_padding=mask_padding)
  mask = np.concatenate([np.broadcast_to(PROMPT_MASK, (ROWS, 3)), MASK[:, 3:]], axis=1)
  rows = np.array([1, 1, 0], np.float32)
  u, aux, params = act(config, mask=mask, rows=rows)
  outputs, gate = expert_outputs(config, params), np.asarray(aux['gate'])
  y = BASE + sum(gate[:, i, None, None] * outputs[i] for i in range(COUNT))
  down, up = params['adapter']['down'], params['adapter']['up']
  hidden = jax.nn.gelu(y @ down['kernel'] + down['bias'], approximate=True)
  np.testing.assert_allclose(u, y + hidden @ up['kernel'] + up['bias'], rtol=1e-4, atol=1e-5)
  counted = rows[:, None] * (mask if mask_padding else np.array([0, 1, 1, 1, 1, 1]))
  loss = 0.0
  for i, e in enumerate(outputs):
    cosine = (u * e).sum(-1) / (np.linalg.norm(u, axis=-1) * np.linalg.norm(e, axis=-1))
    mean_gate = (rows @ gate[:, i]) / rows.sum()
    loss += mean_gate * (1 - (cosine * counted).sum() / counted.sum())
  np.testing.assert_allclose(aux['misalignment'], loss, rtol=1e-5)


def test_equal_experts_with_any_gate_are_the_expert_alone():
  _, aux, params = act(ADAPTER)
  params = dict(params, bank=jax.tree.map(lambda a: np.stack([a[0]] * COUNT), params['bank']))
  y, aux, _ = act(tiny.replace(ADAPTER, adapter=None), params={
      'bank': params['bank'], 'gate': params['gate']})
  np.testing.assert_allclose(y, BASE + expert_outputs(ADAPTER, params)[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(aux['gate'].sum(-1), 1.0, rtol=1e-6)
