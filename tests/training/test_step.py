"""Laws of the train step, on a toy model: ridge-free linear regression with dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.training import optimisers, schedules, state as state_lib, step as step_lib


def loss_fn(tuned, frozen, constants, batch, key):
  """Mean squared error over unmasked rows; `rate` 0 switches dropout off."""
  keep = jax.random.bernoulli(key, 1.0 - constants['rate'], batch['x'].shape)
  out = (batch['x'] * keep) @ (frozen['base'] + tuned['w']) + tuned['b']
  error = (out - batch['y']) ** 2 * batch['mask']
  weight = batch['mask'].sum()
  loss = error.sum() / jnp.maximum(weight, 1.0)
  return loss, {'weight': weight, 'bias': tuned['b']}


FROZEN = {'base': np.linspace(-1.0, 1.0, 4, dtype=np.float32)}


def make_batch(replicas, rows=8, seed=0):
  rng = np.random.default_rng(seed)
  mask = (np.arange(rows) < rows - 3).astype(np.float32)
  return {'x': rng.normal(size=(replicas, rows, 4)).astype(np.float32),
          'y': rng.normal(size=(replicas, rows)).astype(np.float32),
          'mask': np.broadcast_to(mask, (replicas, rows))}


def make_state(names, tx, rate=0.0):
  trees = [{'w': np.full(4, 0.1 * i, np.float32), 'b': np.float32(i)} for i, _ in enumerate(names)]
  constants = {'rate': jnp.full(len(names), rate, jnp.float32)}
  keys = np.stack([state_lib.replica_key(name, 0) for name in names])
  return state_lib.init_state(state_lib.stack_replicas(trees), constants, keys, tx)


def make_rates(total):
  total = jnp.asarray(total, jnp.int32)
  return state_lib.Rates(jnp.linspace(0.1, 0.2, len(total)), jnp.zeros_like(total), total)


def make_step(**options):
  tx = optimisers.adamw()
  step = step_lib.make_train_step(loss_fn, tx, schedules.linear_schedule,
                                  step_lib.StepOptions(**options))
  return step, tx


def leaves(tree):
  return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def test_accumulation_equals_one_large_batch():
  batch = make_batch(2)  # the masks give the microbatches unequal weights
  results = []
  for parts in (1, 4):
    step, tx = make_step(accumulate=parts)
    results.append(step(make_state('ab', tx), FROZEN, batch, make_rates([10, 10])))
  (state_one, one), (state_four, four) = results
  for name in ('loss', 'grad_norm', 'weight', 'bias'):
    np.testing.assert_allclose(one[name], four[name], rtol=1e-5, err_msg=name)
  for a, b in zip(leaves(state_one.tuned), leaves(state_four.tuned)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_accumulation_that_does_not_divide_the_batch_is_an_error():
  step, tx = make_step(accumulate=3)
  with pytest.raises(UserError, match='config.train.accumulate is 3, which does not divide a batch '
                     'of 8 rows'):
    step(make_state('a', tx), FROZEN, make_batch(1), make_rates([10]))


def test_replicas_together_equal_one_by_one_with_dropout():
  step, tx = make_step()
  batches = [make_batch(3, seed=i) for i in range(4)]
  together, rates = make_state('abc', tx, rate=0.5), make_rates([4, 9, 9])
  singles = [state_lib.take_state(together, [i]) for i in range(3)]
  for batch in batches:
    together, _ = step(together, FROZEN, batch, rates)
  for i, single in enumerate(singles):
    for batch in batches:
      mine = state_lib.take_replicas(batch, [i])
      single, _ = step(single, FROZEN, mine, state_lib.take_replicas(rates, [i]))
    for a, b in zip(leaves(state_lib.take_state(together, [i])), leaves(single)):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_inactive_and_finished_replicas_keep_everything():
  step, tx = make_step()
  state = make_state('abc', tx).replace(active=jnp.array([True, False, True]))
  before = leaves((state.tuned, state.moments))
  state, _ = step(state, FROZEN, make_batch(3), make_rates([5, 5, 0]))
  after = leaves((state.tuned, state.moments))
  for old, new in zip(before, after):
    np.testing.assert_array_equal(old[1:], new[1:])
  assert not np.array_equal(before[0][0], after[0][0])
  assert int(state.step) == 1


def test_first_bad_step_is_kept_and_the_replica_stands_still():
  step, tx = make_step()
  state, good = make_state('ab', tx), make_batch(2)
  bad = {**good, 'y': good['y'].copy()}
  bad['y'][1, 0] = np.nan
  finite = []
  for batch in (good, bad, good, bad):
    state, metrics = step(state, FROZEN, batch, make_rates([9, 9]))
    finite.append(np.array(metrics['finite']).tolist())
  np.testing.assert_array_equal(state.first_bad_step, [-1, 2])
  assert finite == [[True, True], [True, False], [True, True], [True, False]]
  assert all(np.isfinite(leaf).all() for leaf in leaves(state.tuned))


def test_other_rates_need_no_other_program():
  step, tx = make_step()
  state = make_state('ab', tx)
  for total in ([9, 9], [5, 7]):
    state, metrics = step(state, FROZEN, make_batch(2), make_rates(total))
  assert step._cache_size() == 1  # pylint: disable=protected-access
  np.testing.assert_allclose(metrics['learning_rate'], [0.1 * 4 / 5, 0.2 * 6 / 7], rtol=1e-6)


def test_hooks_change_gradients_and_constants():
  step, tx = make_step(transform_gradients=lambda grads, key, at: {**grads, 'b': 0 * grads['b']},
                       next_constants=lambda constants, at: {'rate': 1.0 / (at + 1.0)})
  state = make_state('ab', tx)
  bias = np.array(state.tuned['b'])
  state, _ = step(state, FROZEN, make_batch(2), make_rates([9, 9]))
  np.testing.assert_array_equal(state.tuned['b'], bias)
  np.testing.assert_allclose(state.constants['rate'], [0.5, 0.5])


def test_a_hook_behind_clipping_sees_clipped_gradients():
  step, tx = make_step(clip_norm=1e-6, transform_clipped=lambda grads, key, at: jax.tree.map(
      lambda g: jnp.where(jnp.abs(g) <= 1e-6, 0.0, 1e3), grads))
  state = make_state('ab', tx)
  before = jax.tree.map(np.array, state.tuned)
  state, _ = step(state, FROZEN, make_batch(2), make_rates([9, 9]))
  jax.tree.map(np.testing.assert_array_equal, before, state.tuned)


def test_summed_microbatches_are_the_sum_of_their_gradients():
  loss_fn = lambda w, frozen, constants, batch, key: (
      jnp.sum(w * batch['x']), {'weight': jnp.sum(batch['x'])})
  batch = {'x': jnp.arange(1.0, 5.0)}
  run = lambda parts, summed: step_lib.loss_and_gradients(
      loss_fn, jnp.float32(2.0), ({}, {}), batch, jax.random.key(0), parts, summed)[2]
  np.testing.assert_allclose(run(2, True), run(1, False))
  assert float(run(2, False)) < 0.7 * float(run(2, True))


def test_keys_depend_on_the_name_only():
  np.testing.assert_array_equal(state_lib.replica_key('rte', 3), state_lib.replica_key('rte', 3))
  keys = [state_lib.replica_key(name, seed) for name, seed in (('rte', 3), ('cb', 3), ('rte', 4))]
  assert len({tuple(key) for key in keys}) == 3


def test_replicas_of_unequal_shapes_are_an_error():
  with pytest.raises(UserError, match=r"'a/w' has shape \(3,\) in replica 1 and \(2,\) in "):
    state_lib.stack_replicas([{'a': {'w': np.ones(2)}}, {'a': {'w': np.ones(3)}}])


def test_sharded_replicas_give_the_same_numbers():
  mesh = jax.make_mesh((1,), ('replica',), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('replica'))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  plain, tx = make_step()
  state, rates = make_state('ab', tx), make_rates([9, 9])
  where = jax.tree.map(lambda x: split if x.ndim else whole, state)
  sharded = step_lib.make_train_step(loss_fn, tx, schedules.linear_schedule,
                                     step_lib.StepOptions(spmd_axis_name='replica'), where)
  with jax.set_mesh(mesh):
    found, _ = sharded(jax.device_put(state, where), FROZEN, make_batch(2), rates)
  expected, _ = plain(make_state('ab', tx), FROZEN, make_batch(2), rates)
  for a, b in zip(leaves(found), leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=1e-6)
