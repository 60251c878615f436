"""Laws of layers as experts: routes choose and mix copies, in training and in decoding."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pemt_jax.errors import UserError
from pemt_jax.experts.layer_experts import LayerExperts, copied, squeezed
from pemt_jax.experts.routers import RouterSpec
from pemt_jax.models.generation import generate
from pemt_jax.models.decoding import GenerationConfig
from pemt_jax.models.layer_experts import make_blocks
from pemt_jax.models.layers import Compute
from pemt_jax.models.segments import cut, join
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5 import T5
from pemt_jax.trees import flatten, merge, unflatten
from tests import tiny

COPIES, TASKS = 3, 4
DEPTHS = (('encoder', 2), ('decoder', 2))
ALL = {'encoder': (0, 1), 'decoder': (0, 1)}


def delta(**options):
  router = RouterSpec('linear', 6, 4, 4, COPIES)
  return LayerExperts(COPIES, DEPTHS, TASKS, router, **options)


def model_of(layers=None, compute=Compute(), **options):
  rule = Rule('routes', '*/layer', delta(**options), layers)
  return T5(tiny.CONFIG, Plan((rule,)), compute)


PLAIN = tiny.variables_of(T5(tiny.CONFIG))['params']


def variables_of(model, noise=0.3, chosen=ALL, table=None):
  """Experts that are noisy copies of the plain model; a table of logits of the tasks."""
  variables = tiny.variables_of(model)
  params = cut(copied(PLAIN, join(variables['params']), jax.random.key(1), chosen, noise),
               tiny_shapes(model))
  found = dict(flatten(merge(params, cut(PLAIN, tiny_shapes(model)))))
  if table is not None:
    found['deltas/routes/logits'] = jnp.asarray(table, jnp.float32)
  made = jax.eval_shape(model.init, jax.random.key(0), *model.example_batch())
  constants = made.get('constants', {})
  constants = {'deltas': {'routes': {
      name: jnp.ones(leaf.shape) if name == 'temperature' else jnp.zeros(leaf.shape)
      for name, leaf in constants['deltas']['routes'].items()}}} if 'deltas' in constants else {}
  return {'params': unflatten(found), 'constants': constants}


def tiny_shapes(model):
  shapes = jax.eval_shape(model.init, jax.random.key(0), *model.example_batch())['params']
  return jax.tree.map(lambda leaf: leaf.value, shapes, is_leaf=lambda leaf: hasattr(leaf, 'names'))


def one_hot_table(seed=0):
  """Logits whose softmax is one-hot to float32: another expert for each task and layer."""
  chosen = np.random.default_rng(seed).integers(0, COPIES, (TASKS, 4))
  return 200.0 * np.eye(COPIES)[chosen], chosen


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, task_ids, key):
  batch = tiny.make_batch(4, 5, 3)
  return model.apply(variables, batch['inputs'], batch['inputs_mask'], batch['targets'],
                     batch['targets_mask'], task_ids, key)


def logits_of(model, variables, task_ids, key=None):
  return apply(model, variables, jnp.asarray(task_ids), key)


@pytest.fixture(scope='module')
def mixed():
  """A model with routes of a table, its variables, and the chosen experts [task, layer]."""
  model = model_of(source='table', mode='softmax')
  table, chosen = one_hot_table()
  return model, variables_of(model, table=table), chosen


def test_equal_copies_are_the_plain_layer():
  model = model_of(source='average')
  logits, aux = logits_of(model, variables_of(model, noise=0.0), [0, 1, 2, 3])
  plain, _ = logits_of(T5(tiny.CONFIG), {'params': PLAIN}, [0, 1, 2, 3])
  np.testing.assert_allclose(logits, plain, rtol=2e-5, atol=2e-5)
  assert aux['encoder/layer/routes/routes'].shape == (2, 4, COPIES)


def test_a_one_hot_route_is_the_chosen_expert_alone_and_tasks_mix_in_a_batch(mixed):
  model, variables, chosen = mixed
  together, _ = logits_of(model, variables, [0, 1, 2, 3])
  for task in range(TASKS):
    hot = np.eye(COPIES)[chosen[task]]
    plain = squeezed(variables['params'], {'encoder': hot[:2], 'decoder': hot[2:]}, ALL)
    assert set(flatten(plain)) == set(flatten(PLAIN))
    alone, _ = logits_of(T5(tiny.CONFIG), {'params': plain}, [0, 1, 2, 3])
    np.testing.assert_allclose(together[task], alone[task], rtol=2e-5, atol=2e-5)
  assert np.abs(together[0] - logits_of(model, variables, [1] * 4)[0][0]).max() > 0.01


def test_the_gathered_form_is_the_mixed_one_at_less_cost(mixed):
  model, variables, _ = mixed
  one = model_of(source='table', mode='softmax', form='one_task')
  assert tiny.shapes(one) == tiny.shapes(model)
  for task in (0, 2):
    np.testing.assert_allclose(logits_of(one, variables, [task] * 4)[0],
                               logits_of(model, variables, [task] * 4)[0], rtol=2e-5, atol=2e-5)
  unrolled = Compute(scan_layers=False)  # XLA counts the body of a scan once
  flops = {}
  for name, found, values in (
      ('plain', T5(tiny.CONFIG, compute=unrolled), {'params': PLAIN}),
      ('one', model_of(None, unrolled, source='table', mode='softmax', form='one_task'), variables),
      ('mixed', model_of(None, unrolled, source='table', mode='softmax'), variables)):
    batch = tiny.make_batch(4, 64, 32)
    arguments = [batch[key] for key in ('inputs', 'inputs_mask', 'targets', 'targets_mask')]
    compiled = jax.jit(found.apply).lower(values, *arguments, jnp.zeros(4, jnp.int32)).compile()
    flops[name] = compiled.cost_analysis()['flops']
  assert flops['one'] < 1.1 * flops['plain']
  assert flops['mixed'] > 2.0 * flops['one']


def test_rows_run_through_their_own_experts_and_so_do_gradients(mixed):
  model, variables, _ = mixed
  by_row = model_of(source='table', mode='softmax', form='by_row')
  batch = tiny.make_batch(4, 5, 3)

  def gradients(model):
    def loss(params):
      logits, _ = model.apply({'params': params, 'constants': variables['constants']},
                              batch['inputs'], batch['inputs_mask'], batch['targets'],
                              batch['targets_mask'], jnp.asarray([2, 0, 1, 3]))
      return jnp.sum(logits**2), logits
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])

  ((_, expected), grads), ((_, found), own) = gradients(model), gradients(by_row)
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
  for path, leaf in flatten(grads).items():
    if not path.startswith('deltas/'):
      np.testing.assert_allclose(flatten(own)[path], leaf, rtol=1e-3, atol=1e-3, err_msg=path)


# Few lengths, since each is a program of its own.
@settings(max_examples=30)
@given(st.sampled_from((1, 4, 17)).flatmap(
    lambda size: st.lists(st.integers(0, 2), min_size=size, max_size=size)))
def test_blocks_hold_every_row_once_under_its_copy(chosen):
  blocks = make_blocks(jnp.asarray(chosen), 3)
  rows = np.asarray(blocks.rows)
  assert sorted(rows[rows < len(chosen)]) == list(range(len(chosen)))
  for own, copy in zip(rows, np.asarray(blocks.copies), strict=True):
    assert all(chosen[row] == copy for row in own if row < len(chosen))
  np.testing.assert_array_equal(rows.reshape(-1)[np.asarray(blocks.slots)], range(len(chosen)))


@pytest.mark.parametrize('form, beams', [
    pytest.param('mixed', 1, marks=pytest.mark.slow), ('mixed', 2),
    pytest.param('one_task', 2, marks=pytest.mark.slow), ('by_row', 2)])
def test_cached_decoding_is_full_decoding(mixed, form, beams):
  model, variables, _ = mixed
  model = model if form == 'mixed' else model_of(source='table', mode='softmax', form=form)
  ids = jnp.asarray([1] * 4 if form == 'one_task' else [0, 1, 2, 3])
  batch = tiny.make_batch(4, 5, 3)
  config = GenerationConfig(max_length=5, num_beams=beams)

  @jax.jit
  def decode(variables):
    encoded = model.apply(variables, batch['inputs'], batch['inputs_mask'], ids, method='encode')
    memory, cache = model.apply(variables, encoded, 4 * beams, 5, ids, method='start_decoding')
    step = lambda tokens, position, cache: model.apply(
        variables, tokens, position, cache, memory, method='decode_step')
    logits, _ = step(jnp.zeros(4 * beams, jnp.int32), jnp.int32(0), cache)
    tokens = jnp.zeros((4 * beams, 5), jnp.int32).at[:, 1].set(7)
    full = [logits]
    cache_1 = step(tokens[:, 0], jnp.int32(0), cache)[1]
    full.append(step(tokens[:, 1], jnp.int32(1), cache_1)[0])
    rows = model.apply(variables, encoded, 4, 5, ids, method='start_decoding')[1]
    return generate(step, rows, 4, config), jnp.stack(full, 1)

  out, steps = decode(variables)
  assert out.shape == (4, 5)
  forced = {'targets': jnp.zeros((4, 2), jnp.int32).at[:, 1].set(7), 'mask': jnp.ones((4, 2))}
  logits, _ = jax.jit(model.apply)(variables, batch['inputs'], batch['inputs_mask'],
                                   forced['targets'], forced['mask'], ids)
  np.testing.assert_allclose(steps.reshape(4, beams, 2, -1)[:, 0], logits, rtol=1e-4, atol=1e-4)


def test_layers_without_experts_stay_plain():
  layers = (('encoder', 1), ('decoder', 0))
  chosen = {'encoder': (1,), 'decoder': (0,)}
  model = model_of(layers, source='average')
  variables = variables_of(model, noise=0.0, chosen=chosen)
  names = {path for path in flatten(join(variables['params'])) if 'mlp/wi' in path}
  assert names == {f'{stack}/layers/{own}mlp/wi/kernel' for stack in ('encoder', 'decoder')
                   for own in ('', 'experts/')}
  logits, _ = logits_of(model, variables, [0] * 4)
  plain, _ = logits_of(T5(tiny.CONFIG), {'params': PLAIN}, [0] * 4)
  np.testing.assert_allclose(logits, plain, rtol=2e-5, atol=2e-5)
  back = squeezed(join(variables['params']), {s: np.ones((2, COPIES)) for s in ALL}, chosen)
  for path, leaf in flatten(PLAIN).items():
    np.testing.assert_allclose(flatten(back)[path], leaf, atol=1e-6, err_msg=path)


def test_copies_have_noise_of_their_own_in_training():
  model = model_of(source='average')
  variables = variables_of(model, noise=0.0)
  noisy, _ = logits_of(model, variables, [0] * 4, jax.random.key(3))
  plain, _ = logits_of(T5(tiny.CONFIG), {'params': PLAIN}, [0] * 4, jax.random.key(3))
  assert np.abs(noisy - plain).max() > 1e-3


def test_the_loss_of_straight_through_routes_reaches_router_and_vectors():
  model = model_of(penalised=True)
  variables = variables_of(model)
  batch = tiny.make_batch(4, 5, 3)

  @jax.jit
  def gradients(params):
    def loss(params):
      logits, aux = model.apply(
          {'params': params, 'constants': variables['constants']}, batch['inputs'],
          batch['inputs_mask'], batch['targets'], batch['targets_mask'], jnp.arange(4),
          jax.random.key(0))
      penalties = [value for name, value in aux.items() if name.endswith('/penalty')]
      return jnp.sum(logits**2) + sum(jnp.sum(value) for value in penalties)
    return jax.grad(loss)(params)

  grads = flatten(gradients(variables['params']))
  for path in ('deltas/routes/vectors', 'deltas/routes/router_out/kernel',
               'encoder/layers/experts/mlp/wi/kernel'):
    assert np.abs(grads[path]).max() > 0, path
  assert all(np.all(np.isfinite(leaf)) for leaf in grads.values())


def test_mistakes_are_told():
  rule = Rule('routes', '*/mlp/wo', delta(source='average'))
  with pytest.raises(UserError, match="makes copies of layers at 'encoder/mlp/wo'"):
    T5(tiny.CONFIG, Plan((rule,))).init(jax.random.key(0), *T5(tiny.CONFIG).example_batch())
  with pytest.raises(UserError, match="cannot run in the form 'one_task'"):
    delta(source='gate', form='one_task')
  assert dataclasses.is_dataclass(delta())
