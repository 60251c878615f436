"""A toy experiment for the tests of the loop: linear regression, one data set per replica."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np

from pemt_jax.training import config as config_lib
from pemt_jax.training import experiment as experiment_lib

ROWS, FEATURES, BATCH = 24, 5, 8


class ToyStream:
  """Endless shuffled batches; the position is (epoch, batch of the epoch)."""

  def __init__(self, name, seed, poison=None):
    self.name, self.seed, self.poison = name, seed, poison
    self.position = [0, 0]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    self.x = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    noise = 0.1 * rng.normal(size=ROWS)
    self.y = (self.x @ rng.normal(size=FEATURES) + noise).astype(np.float32)

  def __next__(self):
    epoch, index = self.position
    order = np.random.default_rng([self.seed, epoch]).permutation(ROWS)
    rows = order[index * BATCH:(index + 1) * BATCH]
    self.position = [epoch, index + 1] if index + 1 < ROWS // BATCH else [epoch + 1, 0]
    y = self.y[rows]
    if self.poison == (epoch, index):
      y = np.full_like(y, np.nan)
    return {'x': self.x[rows], 'y': y, 'example_ids': rows.astype(np.int32),
            'inputs_mask': np.ones((len(rows), FEATURES), np.float32)}

  def get_state(self):
    return {'position': list(self.position)}

  def set_state(self, state):
    self.position = list(state['position'])


def loss_fn(tuned, frozen, constants, batch, key):
  """Mean squared error with dropout on the features."""
  keep = jax.random.bernoulli(key, 0.9, batch['x'].shape)
  out = (batch['x'] * keep) @ (frozen['base'] + tuned['layer']['w']) * constants['scale']
  loss = jnp.mean((out - batch['y']) ** 2)
  return loss, {'weight': jnp.float32(batch['y'].size), 'moe_weight': tuned['layer']['w'][:2]}


def init(replica):
  rng = np.random.default_rng(replica.seed)
  return ({'layer': {'w': rng.normal(size=FEATURES).astype(np.float32)}},
          {'scale': np.float32(1.0)})


def make_experiment(totals, poison=None, scores=None, **changes):
  """Makes an experiment of one replica per entry of `totals` {name: total steps}.

  Args:
    totals: updates of each replica.
    poison: {name: (epoch, batch)} whose targets are not a number.
    scores: {name: list} of values to report one after the other instead of the true error.
    **changes: fields of `Experiment` to replace.
  """
  replicas = tuple(experiment_lib.Replica(name, seed, 0.05, 2, total)
                   for seed, (name, total) in enumerate(totals.items()))
  scripted = {name: iter(values) for name, values in (scores or {}).items()}

  def evaluate(tuned, frozen, constants, members, split):
    del constants
    results = []
    for index, replica in enumerate(members):
      data = ToyStream(replica.name, replica.seed)
      error = data.x @ (frozen['base'] + tuned['layer']['w'][index]) - data.y
      score = -float(np.mean(np.square(error)))
      if split == 'validation' and replica.name in scripted:
        score = next(scripted[replica.name])
      results.append({'score': score})
    return results

  fields = dict(
      replicas=replicas, frozen={'base': np.linspace(-1, 1, FEATURES, dtype=np.float32)}, init=init,
      loss_fn=loss_fn, evaluate=evaluate, steps_per_epoch=lambda replica: ROWS // BATCH,
      stream=lambda r: ToyStream(r.name, r.seed, (poison or {}).get(r.name)))
  return experiment_lib.Experiment(**{**fields, **changes})


def make_config(**changes):
  """Config of a toy run: evaluation each epoch of 3 steps, no TensorBoard."""
  train = config_lib.default_train_config()
  train.update(dict(metric='score', log_every=2, tensorboard=False, progress='never'))
  for name, value in changes.items():
    train[name] = value
  return mlc.ConfigDict({'train': train})
