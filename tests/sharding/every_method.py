"""Trains and decodes with methods of the zoo on a mesh of 8 devices and on one; run as a program.

Prints 'name: equal' for each name, or what differs. Methods are joined where they can be: one
program then shows several of them.
"""

from __future__ import annotations

import dataclasses
import sys

import jax
import numpy as np

from pemt_jax.methods.base import boxed_shapes, make_loss
from pemt_jax.models.decoding import GenerationConfig
from pemt_jax.models.t5 import T5
from pemt_jax.sharding.mesh import MeshShape, make_mesh
from pemt_jax.sharding.placement import Placement, fetch
from pemt_jax.stages.evaluate import make_predict
from pemt_jax.training import optimisers, schedules, state as state_lib, step as step_lib
from pemt_jax.training.config import default_train_config
from pemt_jax.trees import flatten
from tests import tiny
from tests.methods import test_zoo

CONFIG = dataclasses.replace(tiny.CONFIG, dropout=0.0, encoder_layers=1, decoder_layers=1)
ROWS, REPLICAS = 8, 2
test_zoo.CONFIG = CONFIG
test_zoo.SMALL |= {'switch': {'experts': 'mpo', 'cores': 3, 'count': 4}, 'top2': {'count': 4}}
STAGE2 = 'pemt/stage2'
COUNTERS = 4096  # bytes: counters of the optimiser stand whole
# Relative and absolute; the first moments are the gradients. An update by Adam has the size of the
# rate even where a gradient is rounding only, so new parameters are not compared.
TOLERANCE = {'metrics': (1e-4, 1e-5), 'statistics': (1e-4, 1e-5), 'tokens': (0, 0),
             'moments': (1e-3, 1e-6)}


def method_of(name):
  """The small method of a name, and the backbone's config."""
  if name == STAGE2:
    return tiny.stage2(config=tiny.CONFIG), tiny.CONFIG  # with dropout
  return test_zoo.method_of(name), CONFIG


def shape_of(boxed, replicas):
  """A mesh with all axes that the parameters can use."""
  names = {name for leaf in flatten(boxed).values() for name in leaf.names}
  if 'expert' in names:
    return MeshShape(1, 2, 2, 2)
  return MeshShape(1, 2, 2, 1, 2) if replicas > 1 else MeshShape(2, 2, 2, 1)


def outcome(method, model, variables, placement, replicas):
  """Everything after one update: new state and metrics, predictions, bytes of a device."""
  options = default_train_config()
  tx = optimisers.make_optimiser(options, method.tuned)
  frozen, tuned = tiny.split(method, variables)
  constants = (method.first_constants or dict)(test_zoo.constants_of(model))
  several = lambda tree: jax.tree.map(lambda leaf: np.stack(
      [np.asarray(leaf) * np.float32(0.5**number) for number in range(replicas)]), tree)
  keys = np.stack([state_lib.replica_key(str(number), 0) for number in range(replicas)])
  state = state_lib.init_state(several(tuned), several(constants), keys, tx)
  step = step_lib.make_train_step(
      make_loss(model, method), tx, schedules.make_schedule(options, method.tuned),
      step_lib.StepOptions(transform_gradients=method.transform_gradients,
                           next_constants=method.next_constants,
                           spmd_axis_name=placement.replica_axis))
  predict = make_predict(model, method, GenerationConfig(max_length=4))
  state, frozen = placement.placed(state), placement.frozen(frozen)
  batch = tiny.make_batch(ROWS, 8, 4)
  batch['task_ids'] = np.zeros(ROWS, np.int32)
  rows = placement.batch({name: np.stack([leaf] * replicas) for name, leaf in batch.items()})
  rates = state_lib.Rates(*(np.full(replicas, value, kind) for value, kind in (
      (1e-2, np.float32), (0, np.int32), (9, np.int32))))
  held = bytes_of_first_device((state.tuned, state.moments, frozen))

  @placement.bound
  @jax.jit
  def run(state, frozen, rows, rates):
    new, metrics = step(state, frozen, rows, rates)
    tokens, statistics = predict(state.tuned, frozen, state.constants, rows)
    return {'metrics': metrics, 'tokens': tokens, 'statistics': statistics,
            'moments': new.moments}

  return fetch(run(state, frozen, rows, rates)), held


def bytes_of_first_device(trees):
  """Bytes that the first device holds of some trees."""
  first = jax.devices()[0]
  return sum(shard.data.nbytes for leaf in jax.tree.leaves(trees)
             for shard in leaf.addressable_shards if shard.device == first)


def expected_bytes(method, placement, variables, replicas):
  """The same by the rules: what is tuned is held with two moments."""
  frozen, tuned = (flatten(tree) for tree in tiny.split(method, variables))
  parts = lambda path: int(np.prod([placement.mesh.shape[axis] for axis in jax.tree.leaves(
      tuple(placement.params[path].spec))]))
  own = replicas // placement.mesh.shape.get('replica', 1)
  return (sum(leaf.nbytes // parts(path) for path, leaf in frozen.items())
          + sum(3 * own * (leaf.nbytes // parts(path)) for path, leaf in tuned.items()))


def compare(name):
  """'equal', or what differs."""
  method, config = method_of(name)
  model, replicas = T5(config, method.plan), REPLICAS if name in ('lora', STAGE2) else 1
  boxed, variables = boxed_shapes(model)['params'], tiny.variables_of(model)
  variables = jax.tree.map(np.asarray, variables)
  found = {}
  for on_mesh in (False, True):
    placement = (Placement.of(make_mesh(shape_of(boxed, replicas)), boxed) if on_mesh
                 else Placement())
    found[on_mesh] = outcome(method, model, variables, placement, replicas)
  (one, _), (many, held) = found[False], found[True]
  wanted = expected_bytes(method, placement, variables, replicas)
  wrong = [] if abs(held - wanted) <= COUNTERS else [f'{held} bytes in place of {wanted}']
  for part, tolerance in TOLERANCE.items():
    for (path, first), second in zip(jax.tree_util.tree_leaves_with_path(one[part]),
                                     jax.tree.leaves(many[part]), strict=True):
      first, second = np.asarray(first), np.asarray(second)
      if not np.allclose(first, second, *tolerance):
        wrong.append(f'{part}{jax.tree_util.keystr(path)} by {np.max(np.abs(first - second)):.1e}')
  return ', '.join(wrong) or 'equal'


if __name__ == '__main__':
  for own in sys.argv[1:]:
    print(f'{own}: {compare(own)}', flush=True)
    jax.clear_caches()
